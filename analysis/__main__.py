"""python -m analysis FOLDER [--out DIR] [--claims]: figures and tables of folders of records."""

import argparse
import sys
from pathlib import Path

from bench.errors import Fault, Rejected, Unavailable, Usage
from bench.io.console import check_output, say, tolerate


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or that of the first fault; a fault in one folder does not stop the others."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    parser.add_argument("folder", type=Path, help="records lie here or in its subfolders")
    parser.add_argument("--out", type=Path, help="write there instead, one folder per experiment")
    parser.add_argument(
        "--claims", action="store_true", help="write CLAIMS.md alone: the papers' claims, judged"
    )
    tolerate()
    arguments = parser.parse_args(argv)
    try:
        folders = _folders(arguments.folder)
        if arguments.claims:
            return _claims(arguments)
    except Fault as fault:
        return _tell(fault)
    codes = [_report(folder, arguments) for folder in folders]
    try:
        check_output()
    except Fault as fault:
        codes.append(_tell(fault))
    return next((code for code in codes if code), 0)


def _folders(folder: Path) -> list[Path]:
    from analysis.report import experiments

    if not folder.is_dir():
        raise Usage(f"no folder '{folder}': expected one with records (*.jsonl) in or below it")
    folders = experiments(folder)
    if not folders:
        raise Rejected(f"no records (*.jsonl) in '{folder}' or below it")
    return folders


def _report(folder: Path, arguments: argparse.Namespace) -> int:
    from analysis.report import report

    out = arguments.out and arguments.out / folder.relative_to(arguments.folder)
    try:
        text, paths = report(folder, out)
    except Fault as fault:
        return _tell(fault)
    except OSError as error:
        return _tell(Unavailable(f"cannot write: {error}"))
    say("\n".join([f"{folder}\n\n{text}", *map(str, paths), ""]))
    return 0


def _claims(arguments: argparse.Namespace) -> int:
    from analysis.claims.claims import write

    try:
        path, lines = write(arguments.folder, arguments.out)
    except OSError as error:
        raise Unavailable(f"cannot write: {error}") from None
    say("\n".join([*lines, str(path)]))
    return 0


def _tell(fault: Fault) -> int:
    print(f"analysis: {fault}", file=sys.stderr)
    return fault.code


if __name__ == "__main__":
    sys.exit(main())
