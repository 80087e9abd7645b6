"""Records -> what their runs reached at the end on the full set, with errors that count seeds and
documents (`crossed`)."""

import dataclasses
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from analysis.stats.crossed import Estimate, crossed, ratio
from bench.io.record import Run

Loss = Literal["ce", "kl"]
"""CE, or KL(clean || adapted), both in nats per scored token."""

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
class Closed(Estimate):
    """How much of the gap is closed at the end, on the documents of the full set.

    Documents are here, and in the records, what the held-out text is split by: see `UNITS`.
    """

    @property
    def share(self) -> float:
        """Of the gap; 1 is the clean model."""
        return self.value


@dataclass(frozen=True)
class Difference(Estimate):
    """A loss of one label minus that of another at the end, paired by seed and document."""

    lower: int
    """In how many of the shared seeds the first is the better one."""

    @property
    def mean(self) -> float:
        """Nats per scored token; below 0 when the first is the better one."""
        return self.value

    @property
    def distinguishable(self) -> bool:
        """Whether there are two seeds or more and the 95% interval leaves out 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def end_losses(run: Run, loss: Loss = "ce") -> list[float] | None:
    """A loss per document after training, or None when the run has no finite one."""
    return _known((run.end or {}).get(f"{loss}_full"))


def spliced_losses(run: Run, loss: Loss = "ce") -> list[float] | None:
    """A loss per document before training, or None as in `end_losses`."""
    return _known(run.header.get(f"{loss}_full_spliced"))


def _known(losses: list[float] | None) -> list[float] | None:
    return losses if losses and None not in losses else None


def closed_at_end(runs: list[Run], loss: Loss = "ce") -> Closed | None:
    """Runs of one label -> `Closed`; None when no run has the loss per document.

    The share is a ratio of means over seeds and documents, of spliced - adapted over spliced -
    clean. None as well unless that gap is two of its own errors above 0.
    """
    gains, gaps = [], []  # [seed][document]
    for run in runs:
        before, after = spliced_losses(run, loss), end_losses(run, loss)
        clean = run.header.get("ce_full_clean") if loss == "ce" else before and [0.0] * len(before)
        if before and after and clean:
            gains.append([spliced - ended for spliced, ended in zip(before, after, strict=True)])
            gaps.append([spliced - best for spliced, best in zip(before, clean, strict=True)])
    if not gains:
        return None
    gap = crossed(gaps)
    if gap.value <= 2 * (gap.error or 0):
        return None
    return Closed(**dataclasses.asdict(ratio(gains, gaps)))


def ce_difference(runs: list[Run], others: list[Run], loss: Loss = "ce") -> Difference | None:
    """`difference` of two labels' runs in a loss, by seed; None when either lacks the loss."""
    ours, theirs = (
        {run.header["seed"]: losses for run in side if (losses := end_losses(run, loss))}
        for side in (runs, others)
    )
    return difference(ours, theirs) if ours and theirs else None


def difference(ours: dict[int, list[float]], theirs: dict[int, list[float]]) -> Difference:
    """Seed -> a loss per document, minus another's -> `Difference`.

    Over the seeds that both have. Where they share none, between the means over each one's seeds:
    then 0 seeds are counted, and there is no interval.
    """
    shared = sorted(ours.keys() & theirs.keys())
    pairs = [(ours[seed], theirs[seed]) for seed in shared]
    pairs = pairs or [(_over_seeds(ours), _over_seeds(theirs))]
    values = [[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]
    found = dataclasses.asdict(crossed(values)) | {"seeds": len(shared)}
    return Difference(**found, lower=sum(fmean(ours[s]) < fmean(theirs[s]) for s in shared))


def _over_seeds(losses: dict[int, list[float]]) -> list[float]:
    """Seed -> a loss per document -> its mean per document."""
    return [fmean(column) for column in zip(*losses.values(), strict=True)]
