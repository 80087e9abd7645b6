"""A folder of records -> its tables and figures."""

import os
from pathlib import Path

from analysis.figures import draw, save
from analysis.load import load
from analysis.tables import table


def report(folder, out=None, names=None):
    """Tables and figures of the records directly in `folder` -> (text, paths written).

    Writes `table.txt` and, for each problem that the records are about, `curves.png` and
    `curves.pdf` (`curves-2.png` and so on for a second) into `out`, by default the folder
    itself; `names`, where given, are the only records that are read. Raises `Usage` when the
    folder is missing, `Rejected` when it holds no sound record.
    """
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
    path.write_text(text, encoding="utf-8")
    return text, [*paths, path]


def experiments(folder):
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
