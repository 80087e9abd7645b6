"""Records -> how much of the gap was closed, at which cost, and how much cheaper than the rival.

Pure functions on runs (`bench.io.record.Run`). The gap is `ce_spliced - ce_clean` and the closed
share is `(ce_spliced - ce) / gap`, so a share names a loss. Costs are along one of `AXES`;
a cost of `inf` is a share that was never reached, None one that was not measured.

Against an SAE trained end to end from scratch there are two definitions, `to_same_ce` and
`whole_runs`. They go by the CE itself: the share would be of the gap that a random SAE leaves.
"""

import itertools
import math
from dataclasses import dataclass
from statistics import median, median_high, median_low
from typing import Any

from analysis.records.comparison import REFERENCE, Comparison, clock
from bench.io.record import Run

AXES = ("seconds", "backwards", "tokens")
"""What a run costs: seconds of training, LM backward passes, tokens trained on."""

TARGETS = 4
"""How many shares of the gap costs are reported for."""


def finite_rows(run: Run) -> list[dict[str, Any]]:
    """The evaluations of a run up to the first CE that is not finite."""
    return list(itertools.takewhile(lambda row: row["ce"] is not None, run.rows))


def curve(run: Run, axis: str) -> tuple[list[float], list[float]]:
    """(costs, shares) of a run, one each per evaluation of `finite_rows`; shares are nan when
    splicing costs nothing."""
    rows, spliced = finite_rows(run), run.header["ce_spliced"]
    gap = spliced - run.header["ce_clean"]
    shares = [(spliced - row["ce"]) / gap if gap > 0 else math.nan for row in rows]
    return [row[axis] for row in rows], shares


def cost_to_reach(costs: list[float], shares: list[float], share: float) -> float:
    """Cost at which a curve first reaches `share`, on the line between the two evaluations
    around that point; inf when it never does."""
    for i, here in enumerate(shares):
        if here >= share:
            if i == 0:
                return costs[0]
            part = (share - shares[i - 1]) / (here - shares[i - 1])
            return costs[i - 1] + part * (costs[i] - costs[i - 1])
    return math.inf


def ranked(run: Run, axis: str = "") -> bool:
    """Whether a run counts on an axis: it finished, or diverged and thereby failed. One that was
    cut short from outside says nothing about what it would have reached; one that was resumed
    says nothing about seconds."""
    return run.status in ("finished", "diverged") and not (axis == "seconds" and resumed(run))


def resumed(run: Run) -> bool:
    """Whether several processes made a run one after the other: drawn, not ranked on seconds."""
    end = run.end or {}
    segments = max(end.get("segments") or 1, run.header.get("segments") or 1)
    return segments > 1 or "resumed" in (end.get("timing"), run.header.get("timing"))


def sae_cost(run: Run, axis: str) -> float | None:
    """What the SAE that a run starts from has cost; None when that is not known, or when its
    seconds come from another device or number of threads than the run's."""
    header = run.header
    if header["sae"].get("source") == "fresh":
        return 0.0
    cost = header.get("sae_cost") or {}
    # A cost that names no machine or matrix product is of the run's own.
    own = {"machine": header.get("machine"), "matmul": header.get("matmul")}
    if axis == "seconds" and clock(own | cost) != clock(header):
        return None
    return cost.get(axis)


def cost(run: Run, share: float, axis: str, total: bool = False) -> float | None:
    """Cost of closing `share` of the gap in one run; with `total`, that of its SAE added.

    inf when the run never does, None when it is not ranked on this axis.
    """
    before = sae_cost(run, axis) if total else 0.0
    if before is None or not ranked(run, axis):
        return None
    return before + cost_to_reach(*curve(run, axis), share)


def median_cost(runs: list[Run], share: float, axis: str, total: bool = False) -> float | None:
    """Median over seeds of `cost`, a miss counting as inf; None when no run is ranked."""
    costs = [cost(run, share, axis, total) for run in runs]
    known = [cost for cost in costs if cost is not None]
    return median(known) if known else None


def spent(comparison: Comparison, runs: list[Run], axis: str) -> float | None:
    """Median over seeds of what whole runs took, of `AXES` or `step`; None when none counts."""
    counted = [run for run in runs if run.rows and run.status == "finished"]
    if axis == "seconds":
        counted = [run for run in counted if comparison.one_clock and not resumed(run)]
    return median(run.rows[-1][axis] for run in counted) if counted else None


def speedup(
    rival: list[Run], runs: list[Run], share: float, axis: str, total: bool = False
) -> float | None:
    """Cost of the rival over cost of the method, median over seeds: above 1, the method is cheaper.

    `rival` and `runs` are one label's runs each; every seed that ran in both gives a ratio, as in
    `speedups_by_seed`. None when most seeds of either miss the share (a miss is not a speedup),
    either costs nothing on this axis, or they were timed on several clocks.
    """
    for side in (rival, runs):
        if not 0 < (median_cost(side, share, axis, total) or 0) < math.inf:
            return None
    ratios = _ratios(rival, runs, share, axis, total)
    missed = not ratios or median_low(ratios) == 0 or median_high(ratios) == math.inf
    return None if missed else median(ratios)


def speedups_by_seed(rival: list[Run], runs: list[Run], share: float, axis: str) -> list[float]:
    """Cost of the rival over that of the method in each seed that reached the share in both."""
    return [ratio for ratio in _ratios(rival, runs, share, axis) if 0 < ratio < math.inf]


def _ratios(
    rival: list[Run], runs: list[Run], share: float, axis: str, total: bool = False
) -> list[float]:
    """A ratio for each seed that ran in both: inf where the rival alone missed the share, 0 where
    the method alone did; none where both did, or on several clocks."""
    if axis == "seconds" and len({clock(run.header) for run in [*rival, *runs]}) > 1:
        return []
    theirs = {run.header["seed"]: cost(run, share, axis, total) for run in rival}
    pairs = [(theirs.get(run.header["seed"]), cost(run, share, axis, total)) for run in runs]
    known = [(a, b) for a, b in pairs if a and b and min(a, b) < math.inf]
    return [a / b for a, b in known]


def largest_share(runs: dict[str, list[Run]]) -> float:
    """The largest share of the gap that two labels reach in the median over seeds.

    `runs` is label -> runs. With one label to go by, the largest that it reaches; 0.0 with none.
    The lower median, since with an even number of seeds one miss in the middle is a miss.
    """
    largest = []
    for of_label in runs.values():
        best = [max(curve(run, "tokens")[1], default=0.0) for run in of_label if ranked(run)]
        if best and of_label[0].header["method"] != REFERENCE:
            largest.append(median_low(best))
    return max(min(sorted(largest, reverse=True)[:2], default=0.0), 0.0)


def targets(runs: dict[str, list[Run]], count: int = TARGETS) -> list[float]:
    """`count` even shares of the gap up to the largest that two labels reach, rising.

    The step between them is rounded down to 0.1 %, so that a target is what a table prints;
    an empty list when there is no such step.
    """
    largest = largest_share(runs)
    # The nudge keeps 0.2 / 4 from becoming 4.9 %; it is far below what a CE resolves.
    step = math.floor(largest / count * 1000 + 1e-9) if largest > 0 else 0
    return [i * step / 1000 for i in range(1, count + 1)] if step else []


@dataclass(frozen=True)
class Ratio:
    """How many times ours the rival's cost is."""

    value: float
    """Above 1, ours is the cheaper one."""
    at_least: bool = False
    """Whether the rival ended before it got there: the true value is then larger than this."""


def to_same_ce(scratch: Run, run: Run, axis: str, ce: float | None = None) -> Ratio | None:
    """Speedup by cost to the same CE -> `Ratio`, or None where there is none.

    Cost at which `scratch`, an SAE trained end to end, first reaches `ce`, over that at which
    `run` does, its SAE's cost included. Both are interpolated, on the curve set. `ce` is by
    default what `run` ends with. The SAE is charged whole, even for a CE that it has before any
    adaptation. Where `scratch` never gets there, its whole cost over ours is a lower bound. None
    where `run` does not get there, ours costs nothing, or the two are not `comparable`.
    """
    if not comparable(scratch, run, axis):
        return None
    ce = run.rows[-1]["ce"] if ce is None else ce
    theirs, ours = _cost_to_ce(scratch, axis, ce), _cost_to_ce(run, axis, ce)
    never = theirs == math.inf
    theirs = _whole_cost(scratch, axis) if never else theirs
    return Ratio(theirs / ours, never) if theirs > 0 and 0 < ours < math.inf else None


def whole_runs(scratch: Run, run: Run, axis: str) -> Ratio | None:
    """Speedup by whole runs -> `Ratio` or None: so the "3x to 20x" of 2501.19406 comes out, as 312
    hours over 104 to 15.4.

    The whole cost of `scratch` over that of the SAE that `run` starts from plus all of `run`,
    whatever CE the two end with. On the axis of LM backward passes an SAE trained on
    reconstruction costs nothing, since that runs no block after the site; its tokens and seconds
    count. None where ours costs nothing and where the two are not `comparable`.
    """
    if not comparable(scratch, run, axis):
        return None
    theirs, ours = _whole_cost(scratch, axis), _whole_cost(run, axis)
    return Ratio(theirs / ours) if theirs > 0 and ours > 0 else None


def comparable(scratch: Run, run: Run, axis: str) -> bool:
    """Whether two runs that start from different SAEs may be compared: both finished with a
    CE, on one model and text, with known costs, in seconds only on one clock and in one go.

    Whether the training of the SAE was resumed is not in these two records: the caller checks it.
    """
    for each in (scratch, run):
        if each.status != "finished" or not each.rows or each.rows[-1]["ce"] is None:
            return False
        if sae_cost(each, axis) is None or not ranked(each, axis):
            return False
    if axis == "seconds" and clock(scratch.header) != clock(run.header):
        return False
    return math.isclose(scratch.header["ce_clean"], run.header["ce_clean"], rel_tol=1e-4)


def over_seeds(ratios: list[Ratio]) -> Ratio:
    """Median `Ratio` of one or more. A lower bound at or below the median makes it one: the true
    value of that seed may lie above."""
    values = [ratio.value for ratio in ratios]
    upper = median_high(values)
    return Ratio(median(values), any(r.at_least and r.value <= upper for r in ratios))


def ce_at(run: Run, axis: str, cost: float) -> float:
    """CE of a run at a cost, on the line between evaluations; what it ends with beyond."""
    rows = [row for row in run.rows if row["ce"] is not None]
    for before, after in itertools.pairwise(rows):
        if cost <= after[axis]:
            wide = after[axis] - before[axis]
            part = max(0.0, (cost - before[axis]) / wide) if wide else 1.0
            return before["ce"] + part * (after["ce"] - before["ce"])
    return rows[-1]["ce"]


def _cost_to_ce(run: Run, axis: str, ce: float) -> float:
    """Cost of first reaching a CE, that of the SAE added; inf when the run never does."""
    rows = finite_rows(run)
    own = cost_to_reach([row[axis] for row in rows], [-row["ce"] for row in rows], -ce)
    return (sae_cost(run, axis) or 0.0) + own  # known, as the two are `comparable`


def _whole_cost(run: Run, axis: str) -> float:
    return (sae_cost(run, axis) or 0.0) + run.rows[-1][axis]
