"""python -m analysis FOLDER [--out DIR] [--claims]: figures and tables of folders of records."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
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
    except Fault as fault:
        return _printed(fault)
    steps = [partial(_report, folder, arguments) for folder in folders] + [check_output]
    codes = [_code(step) for step in ([partial(_claims, arguments)] if arguments.claims else steps)]
    return next((code for code in codes if code), 0)


def _code(step: Callable[[], object]) -> int:
    """0, or the exit code of the fault that a step ends with."""
    try:
        step()
    except Fault as fault:
        return _printed(fault)
    except OSError as error:
        return _printed(Unavailable(f"cannot write: {error}"))
    return 0


def _printed(fault: Fault) -> int:
    print(f"analysis: {fault}", file=sys.stderr)
    return fault.code


def _folders(folder: Path) -> list[Path]:
    from analysis.report import experiments

    if not folder.is_dir():
        raise Usage(f"no folder '{folder}': expected one with records (*.jsonl) in or below it")
    folders = experiments(folder)
    if not folders:
        raise Rejected(f"no records (*.jsonl) in '{folder}' or below it")
    return folders


def _report(folder: Path, arguments: argparse.Namespace) -> None:
    from analysis.report import report

    out = arguments.out and arguments.out / folder.relative_to(arguments.folder)
    text, paths = report(folder, out)
    say("\n".join([f"{folder}\n\n{text}", *map(str, paths), ""]))


def _claims(arguments: argparse.Namespace) -> None:
    from analysis.claims.claims import write

    path, lines = write(arguments.folder, arguments.out)
    say("\n".join([*lines, str(path)]))


if __name__ == "__main__":
    sys.exit(main())
