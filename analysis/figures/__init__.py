"""Figures of records, by matplotlib: here those of the papers' experiments, by name.

Computes no statistics of its own.
"""

from collections.abc import Callable

from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis.figures import bars, comparison, frontier, rates, stages, sweeps, timing, tokens
from analysis.figures.style import LOOK
from analysis.records.manifest import Experiment
from analysis.stats.usable import finished
from analysis.tables.frontier import FRONTIERS

__all__ = ["DRAW", "comparison", "draw", "rates", "style"]

DRAW: dict[str, Callable[[Experiment], Figure]] = {
    **dict.fromkeys(FRONTIERS, frontier.draw),
    "timing": timing.draw,
    "timing-llama": timing.draw,
    "rivals": bars.rivals,
    "rank": sweeps.rank,
    "sparsity": sweeps.sparsity,
    "width": sweeps.width,
    "layer": sweeps.layer,
    "size": sweeps.size,
    "one-layer": bars.one_layer,
    "multi-sae": sweeps.multi_sae,
    "additivity": stages.additivity,
    "token-loss": tokens.token_loss,
    "distance": tokens.distance,
    "no-sae": stages.no_sae,
}
"""Name of an experiment -> its figure."""


def draw(experiment: Experiment) -> Figure | None:
    """Experiment -> Figure; None where there is nothing to draw, or no figure for it."""
    whole = finished(experiment)
    if not whole.entries or experiment.name not in DRAW:
        return None
    with rc_context(LOOK):
        return DRAW[experiment.name](whole)
