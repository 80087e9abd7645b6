"""A folder of records -> its tables and figures."""

import os
from pathlib import Path

from analysis import figures
from analysis.figures.comparison import draw, save
from analysis.records import manifest
from analysis.records.comparison import load
from analysis.records.manifest import Experiment
from analysis.tables.comparison import table
from analysis.tables.experiments import tables
from bench.errors import Rejected, Usage
from bench.io.files import new_text


def report(
    folder: Path, out: Path | None = None, names: list[str] | None = None
) -> tuple[str, list[Path]]:
    """Tables and figures of the records directly in `folder` -> (text, paths written).

    Where the manifests of experiments lie beside them, those are reported (`report_experiments`)
    unless `names` are given: many runs that answer different questions make no one table.

    Else writes `table.txt` and, for each problem that the records are about, `curves.png` and
    `curves.pdf` (`curves-2.png` and so on for a second) into `out`, by default the folder
    itself; `names`, where given, are the only records that are read. Raises `Usage` when the
    folder is missing, `Rejected` when it holds no sound record.
    """
    if names is None and _experiments_of(folder):
        return report_experiments(folder, out)
    comparisons = load(folder, names)
    out = Path(out or folder)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, comparison in enumerate(comparisons, start=1):
        if not comparison.random:
            stem = "curves" if number == 1 else f"curves-{number}"
            paths += save(draw(comparison), out / stem)
    text = "\n\n".join(map(table, comparisons))
    path = out / "table.txt"
    new_text(path, text)
    return text, [*paths, path]


def report_experiments(folder: Path, out: Path | None = None) -> tuple[str, list[Path]]:
    """The experiments whose manifests lie in `folder` -> (text, paths written).

    Writes `experiments.txt` and, for each experiment that has something to draw, NAME.png and
    NAME.pdf. Raises `Usage` when the folder is missing, `Rejected` when it holds no manifest or
    one of its files does not read.
    """
    if not Path(folder).is_dir():
        raise Usage(f"no folder '{folder}': expected one that holds experiments (NAME.json)")
    found = _experiments_of(folder)
    if not found:
        raise Rejected(f"{folder}: no experiments (NAME.json) here")
    out = Path(out or folder)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, experiment in found.items():
        figure = figures.draw(experiment)
        paths += save(figure, out / name) if figure else []
    text, path = tables(found), out / "experiments.txt"
    new_text(path, text)
    return text, [*paths, path]


def _experiments_of(folder: Path) -> dict[str, Experiment]:
    """Name -> `Experiment`, in the order of `figures.DRAW`."""
    found = manifest.load(folder)
    order = [*figures.DRAW, *sorted(found.keys() - figures.DRAW.keys())]
    return {name: found[name] for name in order if name in found}


def experiments(folder: Path) -> list[Path]:
    """`folder` and its subfolders that directly hold records, sorted.

    NAME/ beside NAME.jsonl is that run's saved state and is not looked into.
    """
    found = []
    for here, folders, files in os.walk(folder):
        states = {name.removesuffix(".jsonl") for name in files if name.endswith(".jsonl")}
        if states:
            found.append(Path(here))
        folders[:] = sorted(name for name in folders if name not in states and name[0] != ".")
    return found
