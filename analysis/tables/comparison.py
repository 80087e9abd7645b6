"""Comparison -> the text tables printed at the end of a run."""

import textwrap
from statistics import fmean, median

from analysis.records.comparison import Comparison
from analysis.stats.gap import Difference, ce_difference, closed_at_end, end_losses
from analysis.stats.speedup import AXES, median_cost, resumed, speedup, targets
from analysis.tables.notes import BLANK, heading, notes, number, percent, seeds, times
from bench.io.record import Run

WIDTH = 108
"""Columns that running text is wrapped to."""


def table(comparison: Comparison) -> str:
    """Everything there is to say about one problem, as text."""
    parts = [heading(comparison), results(comparison)]
    if not comparison.random:
        parts += [differences(comparison), costs_to_targets(comparison)]
    parts.append("\n".join(textwrap.fill(note, WIDTH) for note in notes(comparison)))
    return "\n\n".join(part for part in parts if part) + "\n"


def results(comparison: Comparison) -> str:
    """The table of what each label reached at the end and what that took."""
    rows = [["method", "CE", "gap closed", "over seeds", "seconds", "backwards", "tokens", "runs"]]
    for label, runs in comparison.runs.items():
        reached = [BLANK] * 3 if comparison.random else _reached(runs)
        spent = [number(_spent(comparison, runs, axis)) for axis in AXES]
        states = [run.status for run in runs]
        counts = [f"{states.count(status)} {status}" for status in dict.fromkeys(states)]
        rows.append([label, *reached, *spent, ", ".join(counts)])
    return aligned(rows, left=(0, 7))


def _reached(runs: list[Run]) -> list[str]:
    """CE, share of the gap closed with its standard error, and the seeds' range of it."""
    losses = [fmean(each) for run in runs if (each := end_losses(run))]
    ce, closed = f"{fmean(losses):.4f}" if losses else BLANK, closed_at_end(runs)
    if not closed:
        return [ce, BLANK, BLANK]
    between = f"{100 * closed.low:.1f} to {100 * closed.high:.1f}%"
    between = between if closed.low < closed.high else BLANK
    return [ce, percent(closed.share, closed.error or None), between]


def _spent(comparison: Comparison, runs: list[Run], axis: str) -> float | None:
    """Median over seeds of what whole runs took; None when none counts on this axis."""
    counted = [run for run in runs if run.rows and run.status == "finished"]
    if axis == "seconds":
        counted = [run for run in counted if comparison.one_clock and not resumed(run)]
    return median(run.rows[-1][axis] for run in counted) if counted else None


def differences(comparison: Comparison) -> str:
    """A sentence for each label: its CE at the end against the rival's, paired by document."""
    trained, rival, lines = comparison.trained, comparison.rival, []
    for label, runs in trained.items():
        if rival and label != rival and (difference := ce_difference(runs, trained[rival])):
            lines += textwrap.wrap(_difference(label, rival, difference), WIDTH)
    return "\n".join(lines)


def _difference(label: str, rival: str, difference: Difference) -> str:
    error = BLANK if difference.error is None else f"{difference.error:.4f}"
    agree = difference.lower if difference.mean < 0 else difference.seeds - difference.lower
    side = "lower" if difference.mean < 0 else "higher"
    text = f"CE of {label} minus {rival}: {difference.mean:+.4f} ± {error}"
    if difference.seeds:
        text += f", {side} in {agree} of {seeds(difference.seeds)}"
    if not difference.distinguishable:
        return f"{text}: not distinguishable here (less than 2 standard errors)."
    if agree < difference.seeds:
        return f"{text}: not distinguishable here (the seeds disagree)."
    alone = " in this one seed" if difference.seeds == 1 else ""
    return f"{text}: {label} is {'better' if difference.mean < 0 else 'worse'}{alone}."


def costs_to_targets(comparison: Comparison) -> str:
    """The table of what closing a share of the gap took, and how much less than the rival."""
    trained, rival = comparison.trained, comparison.rival
    shares = targets(trained)
    if rival is None or not shares:
        return "No share of the gap that two methods reach: no costs to compare." * bool(trained)
    heads = [
        ["gap", "method", "seconds", "seconds", "backwards", "tokens"],
        ["closed", "", "", "with SAE", "", ""],
    ]
    if len(trained) > 1:
        heads[0] += ["speedup:", "seconds", ""]
        heads[1] += ["seconds", "with SAE", "backwards"]
    counted = [c for c in COSTS if comparison.one_clock or c[0] != "seconds"]
    rows, theirs = [], trained[rival]
    for share in shares:
        first = percent(share)
        for label, runs in trained.items():
            costs = [median_cost(runs, share, *c) if c in counted else None for c in COSTS]
            ratios = [speedup(theirs, runs, share, *c) if c in counted else None for c in SPEEDUPS]
            against = list(map(times, ratios)) if label != rival else ["rival", "", ""]
            rows.append([first, label, *map(number, costs), *(against if len(trained) > 1 else [])])
            first = ""
    return aligned([*heads, *rows], left=(1,))


COSTS = (("seconds", False), ("seconds", True), ("backwards", False), ("tokens", False))
"""Columns of costs: axis, and whether the cost of the SAE is added."""

SPEEDUPS = COSTS[:3]


def aligned(rows: list[list[str]], left: tuple[int, ...]) -> str:
    """Rows of cells -> text; columns in `left` are set flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    forms = [f"{{:{'<' if i in left else '>'}{width}}}" for i, width in enumerate(widths)]
    return "\n".join("  ".join(forms).format(*row).rstrip() for row in rows)
