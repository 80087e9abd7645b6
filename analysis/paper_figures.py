"""The figures of the papers' experiments, drawn from the experiments of a folder."""

from matplotlib import rc_context

from analysis import draw_bars, draw_stages, draw_sweeps, draw_timing, draw_tokens
from analysis.finished import finished
from analysis.style import LOOK

DRAW = {
    "timing": draw_timing.draw,
    "timing-llama": draw_timing.draw,
    "rivals": draw_bars.rivals,
    "rank": draw_sweeps.rank,
    "sparsity": draw_sweeps.sparsity,
    "width": draw_sweeps.width,
    "layer": draw_sweeps.layer,
    "size": draw_sweeps.size,
    "one-layer": draw_bars.one_layer,
    "multi-sae": draw_sweeps.multi_sae,
    "additivity": draw_stages.additivity,
    "token-loss": draw_tokens.token_loss,
    "distance": draw_tokens.distance,
    "no-sae": draw_stages.no_sae,
}
"""Name of an experiment -> its figure."""


def draw(experiment):
    """Experiment -> Figure; None where there is nothing to draw, or no figure for it."""
    whole = finished(experiment)
    if not whole.entries or experiment.name not in DRAW:
        return None
    with rc_context(LOOK):
        return DRAW[experiment.name](whole)
