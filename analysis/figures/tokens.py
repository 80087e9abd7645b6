"""The figures of what happens token by token and block by block: `token-loss` and `distance`."""

import re
from statistics import fmean, median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.panels import handle, legend, look, over_seeds, percent_axis, sheet
from analysis.figures.style import DEGRADED, IMPROVED, REFERENCE, Style
from analysis.records.manifest import Entry, Experiment
from analysis.stats.gap import units
from analysis.stats.usable import changed_tokens

NINETY = 1.645
"""Standard errors on each side of a 90% interval, as in the paper."""


def token_loss(experiment: Experiment) -> Figure:
    """Histograms of how the loss of each token changes, improvements and degradations."""
    roles = experiment.roles
    size = (1 + 5.2 * len(roles), 5)
    figure, panels = sheet(experiment, 1, len(roles), size, sharey=True)
    for axes, role in zip(panels, roles, strict=True):
        values = [entry.measured for entry in experiment.of(role)]
        for kind, colour in (("improved", IMPROVED), ("degraded", DEGRADED)):
            _histogram(axes, values, kind, colour)
        axes.set_xscale("log")
        axes.set_xlabel("change of a token's loss, nats")
        percent_axis(axes.yaxis)
        axes.set_title(_title(role, values))
        axes.set_ylim(0, None)
    panels[0].set_ylabel("tokens in a bin, median over seeds")
    handles = [handle("loss improved", color=IMPROVED, linewidth=6, alpha=0.6)]
    handles.append(handle("loss degraded", color=DEGRADED, linewidth=6, alpha=0.6))
    if len(experiment.seeds) > 1:
        handles.append(handle("range over seeds", color=REFERENCE, linewidth=6, alpha=0.25))
    legend(figure, handles)
    return figure


def _histogram(axes: Axes, values: list[dict[str, Any]], kind: str, colour: str) -> None:
    """One kind's share of all tokens by bin: the median over seeds filled, the range shaded."""
    edges = values[0]["edges"]
    shares = [[count / seed["n_tokens"] for count in seed[kind]] for seed in values]
    middle, low, high = over_seeds(shares)
    axes.stairs(middle, edges, color=colour, alpha=0.3, fill=True)
    axes.stairs(middle, edges, color=colour, linewidth=1.5)
    if len(values) > 1:
        axes.stairs(high, edges, baseline=low, color=colour, alpha=0.25, fill=True)


def _title(role: str, values: list[dict[str, Any]]) -> str:
    """The shares of tokens that get better and worse, in words."""
    better, worse = changed_tokens(values)
    unseen = median((seed["below"] + seed["above"]) / seed["n_tokens"] for seed in values)
    outside = f" ({unseen:.1%} outside)" if unseen >= 0.001 else ""
    return f"{role}: {better:.1%} improved, {worse:.1%} degraded{outside}"


def distance(experiment: Experiment) -> Figure:
    """How much nearer the adapted model's residuals are than the spliced one's, by block."""
    figure, panels = sheet(experiment, 1, 2, (11.5, 5))
    roles = experiment.roles
    for axes, kind in zip(panels, ("l2", "cosine"), strict=True):
        for role in roles:
            _differences(axes, experiment.of(role), kind, look(role))
        axes.axhline(0, color=REFERENCE, linewidth=0.9)
        axes.set_xlabel("block whose output is compared")
    panels[0].set_ylabel("L2 distance, adapted minus spliced")
    panels[0].set_title("below 0: nearer to the clean model")
    panels[1].set_ylabel("cosine, adapted minus spliced")
    panels[1].set_title("above 0: nearer to the clean model")
    handles = [handle(role, **look(role)) for role in roles]
    over = units([entry.header for entry in experiment.entries])
    shade = f"90% interval over {over} alone, mean over seeds"
    handles.append(handle(shade, color=REFERENCE, linewidth=6, alpha=0.25))
    if len(experiment.seeds) > 1:
        handles.append(handle("single seed", color=REFERENCE, linewidth=0.7))
    legend(figure, handles)
    return figure


def _differences(axes: Axes, entries: list[Entry], kind: str, style: Style) -> None:
    """The mean over seeds with its interval, each seed thin.

    The mean of the seeds' errors is at least the error of their mean: they share documents.
    """
    layers = _behind_the_sae(entries)
    by_seed, errors = [], []
    for entry in entries:
        values = entry.measured
        at = [values["layers"].index(layer) for layer in layers]
        by_seed.append([values["difference"][kind][i] for i in at])
        errors.append([values["difference"][f"{kind}_error"][i] for i in at])
    middle, error = ([fmean(at) for at in zip(*each, strict=True)] for each in (by_seed, errors))
    low, high = ([m + n * e for m, e in zip(middle, error, strict=True)] for n in (-NINETY, NINETY))
    axes.fill_between(layers, low, high, color=style["color"], alpha=0.2, linewidth=0)
    if len(by_seed) > 1:
        for differences in by_seed:
            axes.plot(layers, differences, color=style["color"], linewidth=0.7, alpha=0.6)
    axes.plot(layers, middle, **{**style, "markersize": 4})


def _behind_the_sae(entries: list[Entry]) -> list[int]:
    """The blocks from the (first) SAE's own on: before it nothing differs."""
    site = (entries[0].header.get("spec") or {}).get("site")
    blocks = map(int, re.findall(r"blocks\.(\d+)\.", str(site)))
    first = min(blocks, default=0)
    return [layer for layer in entries[0].measured["layers"] if layer >= first]
