"""Tables and figures of folders of records."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from analysis.tables.frames import FORMATS
from bench.errors import Fault, Rejected, Unavailable, Usage
from bench.io.console import Parser, check_output, say, tolerate


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or that of the first fault; a fault in one folder does not stop the others."""
    parser = Parser(prog="python -m analysis", description=__doc__)
    text = "records lie here or in its subfolders"
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help=text)
    text = "write there instead; of several folders each under its own name"
    parser.add_argument("--out", type=Path, metavar="DIR", help=text)
    text = "print what the comparisons in all folders reached as one table, and draw nothing"
    parser.add_argument("--format", choices=FORMATS, help=text)
    text = "paper: also each panel of the curves, as wide as a column, as vectors"
    parser.add_argument("--style", choices=["paper"], help=text)
    text = "write CLAIMS.md alone: the papers' claims, judged"
    parser.add_argument("--claims", action="store_true", help=text)
    tolerate()
    try:
        arguments = parser.parse_args(argv)
        _check(arguments)
        found = [(root, folder) for root in arguments.folders for folder in _folders(root)]
    except Fault as fault:
        return _printed(fault)
    steps: list[Callable[[], object]] = [partial(_report, *each, arguments) for each in found]
    if arguments.format:
        steps = [partial(_table, [folder for _, folder in found], arguments.format)]
    elif arguments.claims:
        steps = [partial(_claims, arguments)]
    codes = [_code(step) for step in [*steps, check_output]]
    return next((code for code in codes if code), 0)


def _check(arguments: argparse.Namespace) -> None:
    """Raise `Usage` for options that are right one by one, but not together."""
    names = {folder.resolve().name for folder in arguments.folders}
    if arguments.format and (arguments.out or arguments.claims or arguments.style):
        raise Usage("--format prints one table: expected no --out, --claims, --style with it")
    if arguments.claims and arguments.style:
        raise Usage("--claims draws nothing: expected no --style with it")
    if arguments.claims and len(arguments.folders) > 1:
        raise Usage("--claims: expected one folder, that of all experiments")
    if arguments.out and len(names) < len(arguments.folders):
        raise Usage("--out: two of the folders have one name: expected one call for each")


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


def _report(root: Path, folder: Path, arguments: argparse.Namespace) -> None:
    from analysis.report import report

    out = arguments.out
    if out:
        name = root.resolve().name if len(arguments.folders) > 1 else ""
        out = out / name / folder.relative_to(root)
    text, paths = report(folder, out, style=arguments.style)
    say("\n".join([f"{folder}\n\n{text}", *map(str, paths), ""]))


def _table(folders: list[Path], kind: str) -> None:
    from analysis.records.comparison import load
    from analysis.tables.frames import formatted

    say(formatted([each for folder in folders for each in load(folder)], kind))


def _claims(arguments: argparse.Namespace) -> None:
    from analysis.claims.claims import write

    path, lines = write(arguments.folders[0], arguments.out)
    say("\n".join([*lines, str(path)]))


if __name__ == "__main__":
    sys.exit(main())
