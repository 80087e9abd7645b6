"""A folder of records -> its tables and figures."""

import os
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from analysis import figures
from analysis.figures import rates
from analysis.figures.comparison import columns, draw, save
from analysis.figures.style import COLUMN
from analysis.page import page
from analysis.records import manifest
from analysis.records.comparison import load
from analysis.records.manifest import Experiment
from analysis.tables import frontier
from analysis.tables.comparison import table
from analysis.tables.experiments import tables
from bench.errors import Rejected, Usage
from bench.io.files import new_text


def report(
    folder: Path, out: Path | None = None, names: list[str] | None = None, style: str | None = None
) -> tuple[str, list[Path]]:
    """Tables and figures of the records directly in `folder` -> (text, paths written).

    Where the manifests of experiments lie beside them, those are reported (`report_experiments`)
    unless there are `names`: many runs that answer different questions make no one table.

    Else writes `table.txt`, `report.html` and, for each problem of the records, `curves.png` and
    `curves.pdf` (`curves-2.png` and so on for a second), or `rates.png` of a search for step sizes,
    into `out`, by default the folder itself. In `style` "paper" also each panel of the curves, as
    wide as a column: `curves-seconds.pdf` and so on. Reads only the records in `names`, where there
    are any. Raises `Usage` when the folder is missing, or of experiments and a style is asked for,
    `Rejected` when it holds no sound record.
    """
    if names is None and _experiments_of(folder):
        if style:
            raise Usage(
                f"--style {style}: expected a folder of a comparison, '{folder}' has experiments"
            )
        return report_experiments(folder, out)
    comparisons = load(folder, names)
    stems = ["", *(f"-{number}" for number in range(2, len(comparisons) + 1))]
    drawn = {}
    for stem, each in zip(stems, comparisons, strict=True):
        if not each.random:
            name, figure = ("rates", rates.draw) if each.search else ("curves", draw)
            drawn[name + stem] = figure(each)
    out = Path(out or folder)
    text, paths = _written(out, drawn, "table.txt", "\n\n".join(map(table, comparisons)))
    new_text(out / "report.html", page(comparisons))
    for stem, each in zip(stems, comparisons, strict=True):
        if style and f"curves{stem}" in drawn:
            for name, panel in columns(each).items():
                paths += save(panel, out / f"curves{stem}-{name}", COLUMN)
    return text, [*paths, out / "report.html"]


def report_experiments(folder: Path, out: Path | None = None) -> tuple[str, list[Path]]:
    """The experiments whose manifests lie in `folder` -> (text, paths written).

    Writes `experiments.txt` and, for each experiment that has something to draw, NAME.png and
    NAME.pdf; for a frontier also NAME.md, its table for a page. Raises `Usage` when the folder is
    missing, `Rejected` when it holds no manifest or one of its files does not read.
    """
    if not Path(folder).is_dir():
        raise Usage(f"no folder '{folder}': expected one that holds experiments (NAME.json)")
    named = _experiments_of(folder)
    if not named:
        raise Rejected(f"{folder}: no experiments (NAME.json) here")
    drawn = {name: figures.draw(experiment) for name, experiment in named.items()}
    text, paths = _written(Path(out or folder), drawn, "experiments.txt", tables(named))
    for name in filter(named.get, frontier.FRONTIERS):
        paths.append(Path(out or folder) / f"{name}.md")
        new_text(paths[-1], frontier.markdown(named, name))
    return text, paths


def _written(
    out: Path, drawn: Mapping[str, Figure | None], name: str, text: str
) -> tuple[str, list[Path]]:
    """Write the figures, each under its stem, and the text under `name` -> (text, paths)."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [path for stem, figure in drawn.items() if figure for path in save(figure, out / stem)]
    new_text(out / name, text)
    return text, [*paths, out / name]


def _experiments_of(folder: Path) -> dict[str, Experiment]:
    """Name -> `Experiment`, in the order of `figures.DRAW`."""
    named = manifest.load(folder)
    order = [*figures.DRAW, *sorted(named.keys() - figures.DRAW.keys())]
    return {name: named[name] for name in order if name in named}


def experiments(folder: Path) -> list[Path]:
    """`folder` and its subfolders that directly hold records, sorted.

    NAME/ beside NAME.jsonl is that run's saved state and is not looked into.
    """
    with_records = []
    for here, folders, files in os.walk(folder):
        states = {name.removesuffix(".jsonl") for name in files if name.endswith(".jsonl")}
        if states:
            with_records.append(Path(here))
        folders[:] = sorted(name for name in folders if name not in states and name[0] != ".")
    return with_records
