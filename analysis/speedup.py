"""Records -> how much of the gap was closed, at which cost, and how much cheaper than the rival.

Pure functions on runs (`bench.record.Run`). The gap is `ce_spliced - ce_clean` and the closed
share is `(ce_spliced - ce) / gap`, so a share names a loss. Costs are along one of `AXES`;
a cost of `inf` is a share that was never reached, None one that was not measured.
"""

import math
from dataclasses import dataclass
from statistics import fmean, median, median_low, stdev

from analysis.load import REFERENCE, clock

AXES = ("seconds", "backwards", "tokens")
"""What a run costs: seconds of training, LM backward passes, tokens trained on."""

TARGETS = 4
"""How many shares of the gap costs are reported for."""


@dataclass(frozen=True)
class Closed:
    """How much of the gap is closed at the end, on the documents of the full set."""

    share: float
    """Of the gap; 1 is the clean model."""
    error: float | None
    """Standard error over documents; None when there is one document only."""
    low: float
    """The worst seed's share."""
    high: float
    """The best seed's share."""


@dataclass(frozen=True)
class Difference:
    """CE of one label minus CE of another at the end, paired by document."""

    mean: float
    """Nats per scored token; below 0 when the first is the better one."""
    error: float | None
    """Standard error over documents; None when there is one document only."""
    lower: int
    """In how many of the shared seeds the first is the better one."""
    seeds: int
    """How many seeds ran in both."""

    @property
    def distinguishable(self):
        """Whether the difference is at least two standard errors."""
        return bool(self.error is not None and abs(self.mean) >= 2 * self.error)


def closed_share(ce, clean, spliced):
    """Share of the gap that `ce` closes; nan when splicing costs nothing."""
    return (spliced - ce) / (spliced - clean) if spliced > clean else math.nan


def curve(run, axis):
    """(costs, shares) of a run, one each per evaluation, up to the first CE that is not finite."""
    clean, spliced = run.header["ce_clean"], run.header["ce_spliced"]
    costs, shares = [], []
    for row in run.rows:
        if row["ce"] is None:
            break
        costs.append(row[axis])
        shares.append(closed_share(row["ce"], clean, spliced))
    return costs, shares


def cost_to_reach(costs, shares, share):
    """Cost at which a curve first reaches `share`, on the line between the two evaluations
    around that point; inf when it never does."""
    for i, reached in enumerate(shares):
        if reached >= share:
            if i == 0:
                return costs[0]
            part = (share - shares[i - 1]) / (reached - shares[i - 1])
            return costs[i - 1] + part * (costs[i] - costs[i - 1])
    return math.inf


def ranked(run):
    """Whether a run counts: it finished, or diverged and thereby failed. One that was cut short
    from outside says nothing about what it would have reached."""
    return run.status in ("finished", "diverged")


def resumed(run):
    """Whether a run was put together from several processes: drawn, not ranked on seconds."""
    end = run.end or {}
    segments = max(end.get("segments") or 1, run.header.get("segments") or 1)
    return segments > 1 or "resumed" in (end.get("timing"), run.header.get("timing"))


def sae_cost(run, axis):
    """What the SAE that a run starts from has cost; None when that is not known, or when its
    seconds come from another device or number of threads than the run's."""
    header = run.header
    if header["sae"].get("source") == "fresh":
        return 0.0
    cost = header.get("sae_cost") or {}
    if axis == "seconds" and cost and _sae_clock(cost, header) != clock(run):
        return None
    return cost.get(axis)


def cost(run, share, axis, total=False):
    """Cost of closing `share` of the gap in one run; with `total`, that of its SAE added.

    inf when the run never does, None when it is not ranked on this axis.
    """
    if not ranked(run) or (axis == "seconds" and resumed(run)):
        return None
    before = sae_cost(run, axis) if total else 0.0
    return None if before is None else before + cost_to_reach(*curve(run, axis), share)


def median_cost(runs, share, axis, total=False):
    """Median over seeds of `cost`, a miss counting as inf; None when no run is ranked."""
    costs = [cost(run, share, axis, total) for run in runs]
    costs = [value for value in costs if value is not None]
    return median(costs) if costs else None


def speedup(rival, runs, share, axis, total=False):
    """Cost of the rival over cost of the method: above 1, the method is the cheaper one.

    `rival` and `runs` are one label's runs each. None when either misses the share (a miss is
    not a speedup), costs nothing on this axis, or was timed on another clock.
    """
    if axis == "seconds" and len({clock(run) for run in [*rival, *runs]}) > 1:
        return None
    theirs, ours = (median_cost(some, share, axis, total) for some in (rival, runs))
    measured = all(value is not None and 0 < value < math.inf for value in (theirs, ours))
    return theirs / ours if measured else None


def total_speedup(rival, runs, share, axis):
    """`speedup` with the cost of the SAE added to both."""
    return speedup(rival, runs, share, axis, total=True)


def speedups_by_seed(rival, runs, share, axis):
    """`speedup` of each seed that ran in both and reached the share in both."""
    theirs = {run.header["seed"]: run for run in rival}
    pairs = [(theirs[run.header["seed"]], run) for run in runs if run.header["seed"] in theirs]
    ratios = [speedup([their], [our], share, axis) for their, our in pairs]
    return [ratio for ratio in ratios if ratio is not None]


def largest_share(runs):
    """The largest share of the gap that two labels reach in the median over seeds.

    `runs` is label -> runs. With one label to go by, the largest that it reaches; 0.0 with none.
    The lower median, since with an even number of seeds one miss in the middle is a miss.
    """
    reached = []
    for some in runs.values():
        best = [max(curve(run, "tokens")[1], default=0.0) for run in some if ranked(run)]
        if best and some[0].header["method"] != REFERENCE:
            reached.append(median_low(best))
    best_two = sorted(reached, reverse=True)[:2]
    return max(min(best_two, default=0.0), 0.0)


def targets(runs, count=TARGETS):
    """`count` even shares of the gap up to the largest that two labels reach, rising.

    The step between them is rounded down to 0.1 %, so that a target is what a table prints;
    an empty list when there is no such step.
    """
    largest = largest_share(runs)
    # The nudge keeps 0.2 / 4 from becoming 4.9 %; it is far below what a CE resolves.
    step = math.floor(largest / count * 1000 + 1e-9) if largest > 0 else 0
    return [i * step / 1000 for i in range(1, count + 1)] if step else []


def end_losses(run):
    """CE per document after training, or None when the run has no finite one."""
    losses = (run.end or {}).get("ce_full")
    return losses if losses and None not in losses else None


def closed_at_end(runs):
    """Runs of one label -> `Closed`; None when no run has CE per document or there is no gap.

    The share is a ratio of means over documents, of spliced - adapted over spliced - clean,
    each averaged over seeds; its error is that of a ratio estimator with paired documents.
    """
    gains, gaps = [], []  # [seed][document]
    for run in runs:
        losses, header = end_losses(run), run.header
        if losses and header.get("ce_full_spliced") and header.get("ce_full_clean"):
            pairs = zip(header["ce_full_spliced"], losses, strict=True)
            gains.append([spliced - ce for spliced, ce in pairs])
            pairs = zip(header["ce_full_spliced"], header["ce_full_clean"], strict=True)
            gaps.append([spliced - clean for spliced, clean in pairs])
    if not gains or any(fmean(gap) <= 0 for gap in gaps):
        return None
    gain, gap = _over_seeds(gains), _over_seeds(gaps)
    share = fmean(gain) / fmean(gap)
    error = _error([a - share * b for a, b in zip(gain, gap, strict=True)])
    by_seed = [fmean(a) / fmean(b) for a, b in zip(gains, gaps, strict=True)]
    return Closed(share, error and error / fmean(gap), min(by_seed), max(by_seed))


def ce_difference(runs, others):
    """CE of `runs` minus CE of `others` (one label's runs each) at the end -> `Difference`.

    Averaged over the seeds that have an end in both, over all of each where no seed is shared;
    None when either has no CE per document.
    """
    ours = {run.header["seed"]: end_losses(run) for run in runs if end_losses(run)}
    theirs = {run.header["seed"]: end_losses(run) for run in others if end_losses(run)}
    if not ours or not theirs:
        return None
    shared = ours.keys() & theirs.keys()
    ours_at, theirs_at = shared or ours, shared or theirs
    ours_mean = _over_seeds([ours[seed] for seed in ours_at])
    theirs_mean = _over_seeds([theirs[seed] for seed in theirs_at])
    difference = [a - b for a, b in zip(ours_mean, theirs_mean, strict=True)]
    lower = sum(fmean(ours[seed]) < fmean(theirs[seed]) for seed in shared)
    return Difference(fmean(difference), _error(difference), lower, len(shared))


def _sae_clock(cost, header):
    """Like `clock`. A cost that names no machine is taken to be of the run's own."""
    machine = cost.get("machine", header.get("machine"))
    products = cost.get("matmul", header.get("matmul"))
    return machine, cost.get("device"), cost.get("threads"), products


def _over_seeds(values):
    """[seed][document] -> mean per document."""
    return [fmean(column) for column in zip(*values, strict=True)]


def _error(values):
    """Standard error of the mean, or None for a single value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
