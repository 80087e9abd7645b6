"""What the analysis makes of runs that have ended. The only file of `bench` that imports it.

Drawing takes half a second to import, and is imported where there is something to draw.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.records import manifest
from analysis.records.comparison import load
from analysis.stats.gap import closed_at_end, units
from analysis.tables.comparison import table
from analysis.tables.experiments import tables
from bench.io.console import say
from bench.io.files import os_errors
from bench.io.record import Run
from bench.runs.compare import raise_worst

if TYPE_CHECKING:
    from bench.experiments import experiment
    from bench.runs import compare


def comparison(out: Path, ended: "compare.Ended") -> None:
    """Draw and print the runs of a comparison that `ended`; raise for those that failed.

    Where there was nothing to do, and the table that lies there says so, it is only printed.
    """
    with os_errors(out):
        drawn = not ended.todo and _text(out / "table.txt")
        if drawn and drawn == (text := "\n\n".join(map(table, load(out, sorted(ended.names))))):
            say(text)
        else:
            from analysis.report import report

            _written(out, *report(out, names=sorted(ended.names)))
    if not ended.todo:
        count = len(ended.names)
        say(f"nothing to do: {count} of {count} runs were already done (--fresh runs again)")
    if ended.names - ended.failed.keys():
        say("next: export RECORD --to DIR (PEFT, SAELens); in Python splicebench.load(RECORD)")
    raise_worst(ended.failed)


def experiments(ended: "experiment.Ended") -> None:
    """Draw and print the experiments that `ended`; raise for the jobs that failed."""
    folder = ended.folder
    with os_errors(folder):
        drawn = _text(folder / "experiments.txt")
        now = [] if ended.todo else tables(manifest.load(folder)).split("\n\n")
        if ended.todo or sorted(drawn.split("\n\n")) != sorted(now):  # in any order
            from analysis.report import report_experiments

            _written(folder, *report_experiments(folder))
    raise_worst(ended.failed)


def closed(run: Run) -> str:
    """What a run closed of its gap, as a model card says it."""
    share, over = closed_at_end([run]), units([run.header])
    if not share:
        return "how much of the gap is closed is not known"
    error = f" ± {share.error:.1%}" if share.error else ""
    return f"{share.value:.1%}{error} of the gap is closed (one standard error over {over})"


def submitted(folder: Path, board: Path, name: str | None) -> None:
    """Add a comparison to the board."""
    from analysis.board import submit

    with os_errors(board):
        paths = submit(folder, board, name)
    say("written: " + ", ".join(map(str, paths)))


def analysed(words: list[str]) -> int:
    """What `python -m analysis` does with these words -> its exit code."""
    from analysis.__main__ import main

    return main(words)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _written(folder: Path, text: str, paths: Iterable[Path]) -> None:
    names = ", ".join(str(path.relative_to(folder)) for path in paths)
    say(f"\n{text}\n\nwritten in {folder}: {names}")
