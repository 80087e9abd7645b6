"""Records -> what their runs reached at the end on the full set, with errors that count seeds and
documents (`crossed`)."""

from dataclasses import replace
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


def end_losses(run: Run, loss: Loss = "ce") -> list[float] | None:
    """A loss per document after training, or None when the run has no finite one."""
    return _known((run.end or {}).get(f"{loss}_full"))


def spliced_losses(run: Run, loss: Loss = "ce") -> list[float] | None:
    """A loss per document before training, or None as in `end_losses`."""
    return _known(run.header.get(f"{loss}_full_spliced"))


def _known(losses: list[float] | None) -> list[float] | None:
    return losses if losses and None not in losses else None


def closed_at_end(runs: list[Run], loss: Loss = "ce") -> Estimate | None:
    """The share of the gap that runs of one label closed; None when none has the loss per document.

    It is a ratio of means over seeds and documents, of spliced - adapted over spliced - clean. 1 is
    the clean model. None as well unless that gap is two of its own errors above 0. Documents are
    what the held-out text is split by: see `UNITS`.
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
    return ratio(gains, gaps)


def ce_difference(runs: list[Run], others: list[Run], loss: Loss = "ce") -> Estimate | None:
    """`difference` of two labels' runs in a loss, by seed; None when either lacks the loss."""
    ours, theirs = (
        {run.header["seed"]: losses for run in side if (losses := end_losses(run, loss))}
        for side in (runs, others)
    )
    return difference(ours, theirs) if ours and theirs else None


def difference(ours: dict[int, list[float]], theirs: dict[int, list[float]]) -> Estimate:
    """Seed -> a loss per document, minus another's -> the mean: below 0 where the first is better.

    Over the seeds that both have. Where they share none, between the means over each one's seeds:
    then 0 seeds are counted, and there is no interval.
    """
    shared = sorted(ours.keys() & theirs.keys())
    pairs = [(ours[seed], theirs[seed]) for seed in shared]
    pairs = pairs or [(_over_seeds(ours), _over_seeds(theirs))]
    values = [[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]
    return replace(crossed(values), seeds=len(shared))


def _over_seeds(losses: dict[int, list[float]]) -> list[float]:
    """Seed -> a loss per document -> its mean per document."""
    return [fmean(column) for column in zip(*losses.values(), strict=True)]
