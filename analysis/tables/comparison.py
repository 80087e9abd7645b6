"""Comparison -> the text tables printed at the end of a run."""

import math
import textwrap
from collections.abc import Iterable
from statistics import fmean

from analysis.records.comparison import Comparison
from analysis.stats.gap import Loss, closed_at_end, end_losses
from analysis.stats.speedup import AXES, median_cost, speedup, spent, targets
from analysis.tables.conclusions import conclusions
from analysis.tables.notes import BLANK, WIDTH, heading, interval, notes, number, percent, times
from bench.io.record import Run


def table(comparison: Comparison) -> str:
    """Everything there is to say about one problem, as text; what may be concluded comes last."""
    parts = [heading(comparison), results(comparison)]
    judged = not comparison.random and not comparison.search
    if judged:
        parts.append(costs_to_targets(comparison))
    parts.append("\n".join(textwrap.fill(note, WIDTH) for note in notes(comparison)))
    if judged:
        parts.append(conclusions(comparison))
    return "\n\n".join(part for part in parts if part) + "\n"


def results(comparison: Comparison) -> str:
    """Two tables: what each label reached at the end, and what that took."""
    rows = cells(comparison, losses_of([comparison]))
    at = len(rows[0]) - len(AXES) - 1
    took = [[row[0], *row[at:]] for row in rows]
    text = f"What it took:\n{aligned(took, left=(0, len(took[0]) - 1))}"
    if comparison.random:
        return text
    tuning = comparison.spec.get("held_out") == "tuning"
    over = "the tuning windows" if tuning else "the validation set"
    ends = aligned([row[:at] for row in rows], left=(0,))
    return f"At the end, on {over}:\n{ends}\n\n{text}"


def losses_of(comparisons: Iterable[Comparison]) -> list[Loss]:
    """The losses that were measured at the end of some run."""
    kl = any(end_losses(run, "kl") for comparison in comparisons for run in comparison.all)
    return ["ce", "kl"] if kl else ["ce"]


def cells(comparison: Comparison, losses: list[Loss]) -> list[list[str]]:
    """Heads, and a row for each label: method, losses, shares of their gaps, costs, runs."""
    heads = [*(loss.upper() for loss in losses), *(f"{loss.upper()} gap closed" for loss in losses)]
    rows = [["method", *heads, *AXES, "runs"]]
    for label, runs in comparison.runs.items():
        reached = [BLANK] * len(heads) if comparison.random else _reached(runs, losses)
        took = [number(spent(comparison, runs, axis)) for axis in AXES]
        rows.append([label, *reached, *took, _states(runs)])
    return rows


def _reached(runs: list[Run], losses: list[Loss]) -> list[str]:
    """Each loss, then of each the share of its gap that is closed with its 95% interval."""
    ends = [[fmean(each) for run in runs if (each := end_losses(run, of))] for of in losses]
    closed = [closed_at_end(runs, of) for of in losses]
    return [
        *(f"{fmean(end):.4f}" if end else BLANK for end in ends),
        *(interval(each) if each else BLANK for each in closed),
    ]


def _states(runs: list[Run]) -> str:
    """How many runs there are, and how many ended otherwise than finished."""
    states = [run.status for run in runs]
    counts = [f"{states.count(status)} {status}" for status in dict.fromkeys(states)]
    return ", ".join(counts) if set(states) != {"finished"} else str(len(states))


def costs_to_targets(comparison: Comparison) -> str:
    """The table of what closing a share of the gap took, and how much less than the rival."""
    trained, rival = comparison.trained, comparison.rival
    shares = targets(trained)
    if rival is None or not shares:
        return "No share of the gap that two methods reach: no costs to compare." * bool(trained)
    heads = [
        ["gap", "method", "seconds", "seconds", "back-", "tokens"],
        ["closed", "", "", "and SAE", "wards", ""],
    ]
    if len(trained) > 1:
        heads[0] += ["speedup:", "seconds", "back-"]
        heads[1] += ["seconds", "and SAE", "wards"]
    counted = [c for c in COSTS if comparison.one_clock or c[0] != "seconds"]
    rows, theirs = [], trained[rival]
    for share in shares:
        first = percent(share)
        for label, runs in trained.items():
            costs = [median_cost(runs, share, *c) if c in counted else None for c in COSTS]
            if costs[-1] == math.inf:
                continue
            costs = [None if cost == math.inf else cost for cost in costs]
            ratios = [speedup(theirs, runs, share, *c) if c in counted else None for c in SPEEDUPS]
            against = list(map(times, ratios)) if label != rival else ["rival", "", ""]
            rows.append([first, label, *map(number, costs), *(against if len(trained) > 1 else [])])
            first = ""
    text = aligned([*heads, *rows], left=(1,))
    return f"To close a share of the CE gap for the first time, on the curve set:\n{text}"


COSTS = (("seconds", False), ("seconds", True), ("backwards", False), ("tokens", False))
"""Columns of costs: axis, and whether the cost of the SAE is added."""

SPEEDUPS = COSTS[:3]


def aligned(rows: list[list[str]], left: tuple[int, ...]) -> str:
    """Rows of cells -> text; columns in `left` are set flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    forms = [f"{{:{'<' if i in left else '>'}{width}}}" for i, width in enumerate(widths)]
    return "\n".join("  ".join(forms).format(*row).rstrip() for row in rows)


def page(rows: list[list[str]], left: int = 1) -> str:
    """Rows as a table in Markdown, the first its heads; so many columns are set flush left."""
    rule = ["---"] * left + ["---:"] * (len(rows[0]) - left)
    lines = [rows[0], rule, *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
