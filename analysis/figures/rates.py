"""A search for step sizes -> one figure: the loss at the end against what was tried."""

import math
from statistics import fmean, median

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.figures.panels import handle, legend, say
from analysis.figures.style import LOOK, REFERENCE, Style, line_styles
from analysis.records.comparison import Comparison, grouped, rate
from analysis.stats.gap import end_losses
from analysis.tables.notes import budget, setting
from bench.io.record import Run

NAMES = {"lr": "step size", "shrink": "shrinkage of the regression"}
"""Field of a config -> what it is, on the axis of its panel."""
RING: Style = {"marker": "o", "ms": 11, "mfc": "none"}
"""Around the best of a line."""


def draw(comparison: Comparison) -> Figure:
    """A `Comparison` that is a search -> Figure, a panel for each field that was searched.

    The loss is KL on the held-out set where the records have it, as `bench tune` chooses; else CE
    on the curve set. Of several seeds it is the median; a run that diverged counts as infinite.
    """
    search, runs = comparison.search, comparison.all
    measured = all(end_losses(run, "kl") for run in runs if run.status == "finished")
    styles = line_styles({name: tried[0] for name, tried in search.items()})
    by_field = grouped(search, lambda name: rate(search[name][0][0])[0])
    with rc_context(LOOK):
        margins = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        figure = Figure((5 + 3.5 * len(by_field), 5.4), layout=margins)
        wide = [2 + len(names) for names in by_field.values()]
        panels = figure.subplots(1, len(by_field), squeeze=False, width_ratios=wide)[0]
        for axes, (field, names) in zip(panels, by_field.items(), strict=True):
            _panel(axes, [(search[name], styles[name]) for name in names], measured)
            axes.set_xlabel(NAMES.get(field, field))
        held = comparison.spec.get("held_out", "validation")
        what = f"KL(clean || adapted) on the {held} set" if measured else "CE on the curve set"
        panels[0].set_ylabel(f"{what} at the end,\nnats per scored token; lower is better")
        title = f"Search for step sizes. {setting(comparison)}\n{budget(comparison)}"
        figure.suptitle(title, fontsize=11)
        handles = [handle(name, **style) for name, style in styles.items()]
        handles.append(handle("best", linestyle="", **RING, mec=REFERENCE))
        legend(figure, handles, columns=3 if len(max(styles, key=len)) < 25 else 2)
    return figure


def _panel(axes: Axes, lines: list[tuple[list[list[Run]], Style]], measured: bool) -> None:
    """A line for each method, its best ringed; what lies far above every second best leaves it."""
    ends, second, at = [], [], []
    for tried, style in lines:
        points = sorted((rate(runs[0])[1], _loss(runs, measured)) for runs in tried)
        axes.plot(*zip(*points, strict=True), **style)
        lowest = min(points, key=lambda point: point[1])
        axes.plot(*lowest, **RING, mec=style["color"])
        there = sorted(loss for _, loss in points if loss < math.inf)
        second += there[:2][-1:]
        ends += there
        at += [value for value, _ in points]
    if not ends:
        return say(axes, "no run finished")
    low = min(ends)
    high = min(max(ends), low + max(2.5 * (max(second) - low), median(ends) - low))
    axes.set(xscale="log", ylim=(low - 0.08 * (high - low), high + 0.08 * (high - low)))
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if max(at) > 200 * min(at) else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _loss(runs: list[Run], measured: bool) -> float:
    return median(_end(run, measured) if run.status == "finished" else math.inf for run in runs)


def _end(run: Run, measured: bool) -> float:
    return fmean(end_losses(run, "kl") or []) if measured else run.rows[-1]["ce"]
