"""Comparisons -> one table for a spreadsheet, a page or a paper, by pandas."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from analysis.records.comparison import NOT_THE_PROBLEM, Comparison
from analysis.stats.gap import Loss, closed_at_end, end_losses
from analysis.stats.speedup import AXES, spent
from analysis.tables.comparison import cells, losses_of, page
from analysis.tables.notes import model_name
from bench.errors import unknown
from bench.io.record import Run

if TYPE_CHECKING:
    from pandas import DataFrame

FORMATS = ("csv", "markdown", "latex")
LOSSES: tuple[Loss, ...] = ("ce", "kl")
OF = ("method", "run", "evaluation")
"""What a row of a frame is of."""


def frame(comparisons: Sequence[Comparison], of: str = "method") -> "DataFrame":
    """A row for each label of each comparison, or for each run, or each evaluation of each run;
    nothing rounded.

    `ce` and `kl` are at the end, in nats per scored token, means over seeds and documents;
    `ce_closed` the share of the gap, with its 95% interval over both; `seconds`, `backwards` and
    `tokens` medians over finished seeds. What was not measured is empty. An evaluation has the
    fields of a record's row, on the curve set. Raises `Usage` where `of` is not in `OF`.
    """
    import pandas

    if of not in OF:
        raise unknown("row", of, OF)
    every = zip(comparisons, _where(comparisons), strict=True)
    rows = [
        {**place, "method": label, **row}
        for each, place in every
        for label in each.runs
        for row in _rows(each, label, of)
    ]
    return pandas.DataFrame(rows)


def formatted(comparisons: Sequence[Comparison], kind: str) -> str:
    """The same as text of a kind in `FORMATS`; for people the cells are those of the text table,
    and what is the same in all comparisons is left out. Raises `Usage` for another kind."""
    if kind not in FORMATS:
        raise unknown("format", kind, FORMATS)
    if kind == "csv":
        return frame(comparisons).to_csv(index=False).rstrip("\n")
    losses, where = losses_of(comparisons), _where(comparisons)
    apart = [name for name in where[0] if len({place[name] for place in where}) > 1]
    rows: list[list[str]] = []
    for place, comparison in zip(where, comparisons, strict=True):
        heads, *of_labels = cells(comparison, losses)
        rows = rows or [[*apart, *heads]]
        rows += [[*(place[name] for name in apart), *row] for row in of_labels]
    if kind == "markdown":
        return page(rows, left=len(apart) + 1)
    import pandas

    columns = "l" * (len(apart) + 1) + "r" * (len(rows[0]) - len(apart) - 1)
    table = pandas.DataFrame(rows[1:], columns=rows[0])
    return table.to_latex(index=False, escape=True, column_format=columns).rstrip("\n")


def _rows(comparison: Comparison, label: str, of: str) -> list[dict[str, Any]]:
    """What the rows of a label say, its place aside."""
    runs = comparison.runs[label]
    if of == "method":
        return [_row(comparison, runs)]
    names = [{"run": run.name, "seed": run.header["seed"], "status": run.status} for run in runs]
    if of == "run":
        return [name | _row(comparison, [run]) for name, run in zip(names, runs, strict=True)]
    left_out = LOSSES if comparison.random else ()
    return [
        name | {field: value for field, value in row.items() if field not in left_out}
        for name, run in zip(names, runs, strict=True)
        for row in run.rows
    ]


def _row(comparison: Comparison, runs: list[Run]) -> dict[str, Any]:
    numbers: dict[str, float | None] = {}
    for loss in LOSSES:
        numbers |= _reached([] if comparison.random else runs, loss)
    numbers |= {axis: spent(comparison, runs, axis) for axis in AXES}
    known = {name: math.nan if value is None else value for name, value in numbers.items()}
    finished = sum(run.status == "finished" for run in runs)
    counts = {"runs": len(runs), "finished": finished, "documents": comparison.documents}
    return {**known, **counts}


def _reached(runs: list[Run], loss: Loss) -> dict[str, float | None]:
    """A loss at the end and the share of its gap, None where they are not known."""
    ends = [fmean(each) for run in runs if (each := end_losses(run, loss))]
    closed = closed_at_end(runs, loss)
    shares = (closed.value, closed.low, closed.high) if closed else (None, None, None)
    names = (f"{loss}_closed{end}" for end in ("", "_low", "_high"))
    return {loss: fmean(ends) if ends else None, **dict(zip(names, shares, strict=True))}


def _where(comparisons: Sequence[Comparison]) -> list[dict[str, str]]:
    """What each comparison is of: its folder, model, site and SAE, and each other field of the
    spec in which they differ."""
    specs = [each.spec for each in comparisons]
    fields = dict.fromkeys(field for spec in specs for field in spec)
    known = {"name", "model", "site", *NOT_THE_PROBLEM}
    differ = [f for f in fields if f not in known and len({str(s.get(f)) for s in specs}) > 1]
    places = []
    for each in comparisons:
        run, spec = each.all[0], each.spec
        place = {"folder": str(run.path.parent), "model": model_name(spec.get("model", ""))}
        sae = str(run.header["sae"].get("sha256"))[:8] if each.one_sae else "one a seed"
        place |= {"site": str(spec.get("site", "")), "sae": sae}
        places.append(place | {field: str(spec.get(field)) for field in differ})
    return places
