"""Records -> what their runs reached at the end, on the full set, with its error over documents."""

import math
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from bench.io.record import Run

UNITS = {
    "by group of documents": "groups of documents",
    "last tenth, by group of windows": "groups of windows",
    "last tenth": "windows",
    "random": "windows",
}
"""`split` of a header -> what its `documents` are, where they are no single documents."""


def units(headers: list[dict[str, Any]]) -> str:
    """What the errors of these records or measurements are over: `documents`, mostly."""
    kinds = dict.fromkeys(UNITS.get(header.get("split", ""), "documents") for header in headers)
    return " or ".join(kinds) or "documents"


@dataclass(frozen=True)
class Closed:
    """How much of the gap is closed at the end, on the documents of the full set.

    Documents are here, and in the records, what the held-out text is split by: see `UNITS`.
    """

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
    def distinguishable(self) -> bool:
        """Whether the difference is at least two standard errors."""
        return bool(self.error is not None and abs(self.mean) >= 2 * self.error)


def end_losses(run: Run) -> list[float] | None:
    """CE per document after training, or None when the run has no finite one."""
    losses = (run.end or {}).get("ce_full")
    return losses if losses and None not in losses else None


def closed_at_end(runs: list[Run]) -> Closed | None:
    """Runs of one label -> `Closed`; None when no run has CE per document or there is no gap.

    The share is a ratio of means over documents, of spliced - adapted over spliced - clean,
    each averaged over seeds; its error is that of a ratio estimator with paired documents.
    """
    gains, gaps = [], []  # [seed][document]
    for run in runs:
        before, after = run.header.get("ce_full_spliced"), end_losses(run)
        clean = run.header.get("ce_full_clean")
        if before and after and clean:
            gains.append([spliced - ce for spliced, ce in zip(before, after, strict=True)])
            gaps.append([spliced - ce for spliced, ce in zip(before, clean, strict=True)])
    if not gains or any(fmean(gap) <= 0 for gap in gaps):
        return None
    gain, gap = _over_seeds(gains), _over_seeds(gaps)
    share = fmean(gain) / fmean(gap)
    error = _error([a - share * b for a, b in zip(gain, gap, strict=True)])
    by_seed = [fmean(a) / fmean(b) for a, b in zip(gains, gaps, strict=True)]
    return Closed(share, error and error / fmean(gap), min(by_seed), max(by_seed))


def ce_difference(runs: list[Run], others: list[Run]) -> Difference | None:
    """`difference` of two labels' runs, by seed; None when either has no CE per document."""
    ours = {run.header["seed"]: losses for run in runs if (losses := end_losses(run))}
    theirs = {run.header["seed"]: losses for run in others if (losses := end_losses(run))}
    return difference(ours, theirs) if ours and theirs else None


def difference(ours: dict[int, list[float]], theirs: dict[int, list[float]]) -> Difference:
    """Seed -> CE per document, minus another's -> `Difference`.

    Averaged over the seeds that both have, over all of each where they share none.
    """
    shared = ours.keys() & theirs.keys()
    ours_at, theirs_at = shared or ours, shared or theirs
    ours_mean = _over_seeds([ours[seed] for seed in ours_at])
    theirs_mean = _over_seeds([theirs[seed] for seed in theirs_at])
    differences = [a - b for a, b in zip(ours_mean, theirs_mean, strict=True)]
    lower = sum(fmean(ours[seed]) < fmean(theirs[seed]) for seed in shared)
    return Difference(fmean(differences), _error(differences), lower, len(shared))


def _over_seeds(values: list[list[float]]) -> list[float]:
    """[seed][document] -> mean per document."""
    return [fmean(column) for column in zip(*values, strict=True)]


def _error(values: list[float]) -> float | None:
    """Standard error of the mean, or None for a single value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
