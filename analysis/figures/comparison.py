"""Comparison -> one figure: CE against each cost, and speedup against share of the gap closed.

Drawn on `Figure` itself, not through pyplot: no window, no backend to choose, no global state.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from textwrap import wrap

from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from analysis.figures.panels import handle, legend, log_ticks, say
from analysis.figures.style import COLUMN, LOOK, REFERENCE, Style, line_styles
from analysis.records.comparison import REFERENCE as NONE
from analysis.records.comparison import Comparison
from analysis.stats.speedup import curve, finite_rows, ranked, speedup, speedups_by_seed, targets
from analysis.stats.usable import SEVERAL_CLOCKS
from analysis.tables.notes import budget, setting
from bench.io.files import new_file
from bench.io.record import Run

LABELS = {
    "seconds": "seconds of training",
    "backwards": "LM backward passes",
    "tokens": "tokens of training",
}
PANELS = (*LABELS, "speedup")


def draw(comparison: Comparison) -> Figure:
    """Comparison -> Figure of four panels; CE on the left axis in nats per scored token."""
    with rc_context(LOOK):
        figure = Figure((10.5, 7.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
        panels = figure.subplots(2, 2).flat
        styles = line_styles(comparison.trained)
        for axes, name in zip(panels, PANELS, strict=True):
            _panel(axes, comparison, name, styles)
        figure.suptitle(f"{setting(comparison)}\n{budget(comparison)}", fontsize=11.5)
        handles = _handles(comparison, styles)
        longest = max(len(str(handle.get_label())) for handle in handles)
        legend(figure, handles, min(5, max(1, 110 // (longest + 7))))  # 110 characters fit
    return figure


def columns(comparison: Comparison) -> dict[str, Figure]:
    """The panels of `draw`, each a figure as wide as the column of a paper, without a title."""
    styles = line_styles(comparison.trained)
    figures = {}
    for name in PANELS:
        with rc_context(COLUMN):
            figure = Figure((3.35, 3.0), layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
            _panel(figure.subplots(), comparison, name, styles)
            handles = _handles(comparison, styles)
            longest = max(len(str(each.get_label())) for each in handles)
            legend(figure, handles, 2 if longest < 28 else 1)
        figures[name] = figure
    return figures


def _panel(axes: Axes, comparison: Comparison, name: str, styles: dict[str, Style]) -> None:
    """One of `PANELS`."""
    if name == "speedup":
        return _speedups(axes, comparison, styles)
    axes.set_xlabel(LABELS[name])
    if name == "seconds" and not comparison.one_clock:
        return say(axes, SEVERAL_CLOCKS)
    return _losses(axes, comparison, name, styles)


def save(figure: Figure, stem: Path, look: Style = LOOK) -> list[Path]:
    """Write STEM.png and STEM.pdf -> their paths. The same figure gives the same bytes."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
    with rc_context(look):
        new_file(paths[0], lambda to: figure.savefig(to, format="png", dpi=180))
        dated = {"CreationDate": None}
        new_file(paths[1], lambda to: figure.savefig(to, format="pdf", metadata=dated))
    return paths


def _losses(axes: Axes, comparison: Comparison, axis: str, styles: dict[str, Style]) -> None:
    """CE against one cost: the median over seeds with markers, every seed thin."""
    bottom, top, clean_in_view = _limits(comparison)
    axes.axhline(comparison.ce_spliced, color=REFERENCE, linestyle=":", linewidth=1.4)
    if clean_in_view:
        axes.axhline(comparison.ce_clean, color=REFERENCE, linestyle="--", linewidth=1.2)
    else:
        _clean_below_a_break(axes, comparison)
    for label, runs in comparison.trained.items():
        style = styles[label]
        for run in runs:
            costs, losses = _curve(comparison, run, axis)
            axes.plot(costs, losses, color=style["color"], linewidth=0.7, alpha=0.45)
            if run.status == "diverged" and costs:
                at = min(max(losses[-1], bottom), top)
                axes.plot(costs[-1], at, "x", color=style["color"], ms=8, mew=2, clip_on=False)
        middle = median_curve(runs, axis, lambda run: _curve(comparison, run, axis)[1])
        axes.plot([cost for cost, *_ in middle], [ce for _, ce, _ in middle], **style)
    axes.set_ylim(bottom, top)
    # Under a break of the axis no number is to scale.
    lowest = bottom if clean_in_view else bottom + 0.12 * (top - bottom)
    axes.set_yticks([tick for tick in axes.get_yticks() if lowest < tick < top])
    axes.set_ylabel("CE, nats per scored token")
    _cost_scale(axes, comparison, axis)
    if comparison.gap > 0:
        _share_axis(axes, comparison, lowest)


def _clean_below_a_break(axes: Axes, comparison: Comparison) -> None:
    """The clean model's dashed line under a break of the axis: far below, and not to scale."""
    text = f"clean model: {comparison.ce_clean:.3f} (axis broken)"
    at: Style = {"transform": axes.transAxes, "color": REFERENCE}
    axes.plot([0, 1], [0.035, 0.035], linestyle="--", linewidth=1.2, **at)
    axes.text(0.02, 0.05, text, fontsize=0.9 * rcParams["font.size"], **at)
    axes.text(1.015, 0.035, "100%", va="center", **at)
    for side in (0, 1):
        slash = {"marker": [(-1, -0.6), (1, 0.6)], "markersize": 9, **at}
        axes.plot([side, side], [0.085, 0.11], linestyle="", clip_on=False, **slash)


def _limits(comparison: Comparison) -> tuple[float, float, bool]:
    """(bottom, top) of the CE axis and whether the clean model is inside.

    The curves come first: the clean model's line is to scale only where it leaves them a third of
    the axis or more. A curve that rises far above the spliced model runs out of the axis.
    """
    spliced, gap = comparison.ce_spliced, comparison.gap
    losses = [ce for run in comparison.all for ce in _curve(comparison, run, "tokens")[1]]
    low, high = min([*losses, spliced]), max([*losses, spliced])
    span = max(spliced - low, 0.02 * abs(gap), 1e-4)
    high = min(high, spliced + span)
    clean_in_view = span >= 0.35 * gap
    if clean_in_view:
        low = min(low, comparison.ce_clean)
    height = max(high - low, span)
    return low - (0.06 if clean_in_view else 0.2) * height, high + 0.08 * height, clean_in_view


def _cost_scale(axes: Axes, comparison: Comparison, axis: str) -> None:
    """Linear, or logarithmic from the first step on where the costs span more than 200 times.

    A run starts at cost 0 (and `mse` stays there on the axis of backward passes), which a
    purely logarithmic axis could not show.
    """
    costs = [row[axis] for run in comparison.all for row in run.rows if row["step"] > 0]
    costs = [cost for cost in costs if cost > 0]
    if not costs:
        axes.set(xlim=(-1, 1), xticks=[0])
        return
    first, last = min(costs), max(costs)
    if last > 200 * first:
        axes.set_xscale("symlog", linthresh=first, linscale=0.3)
        axes.set_xlim(-0.1 * first, 1.4 * last)
        decades = range(math.ceil(math.log10(first)), math.floor(math.log10(1.4 * last)) + 1)
        axes.set_xticks([0, *(10.0**decade for decade in decades)])
        axes.set_xticks([], minor=True)
    else:
        axes.set_xlim(-0.03 * last, 1.04 * last)
        # There is no half of a pass.
        whole = axis != "seconds"
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10), integer=whole))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))


def _short(cost: float, _: object = None) -> str:
    """`12k` from a thousand on; what is small as it is: `5m` reads as minutes."""
    return f"{cost:g}" if abs(cost) < 1_000 else EngFormatter(sep="")(cost)


def _share_axis(axes: Axes, comparison: Comparison, lowest: float) -> None:
    """The CE axis again, on the right, as share of the gap closed; no ticks below CE `lowest`."""
    spliced, gap = comparison.ce_spliced, comparison.gap
    both_ways = (lambda ce: 100 * (spliced - ce) / gap, lambda share: spliced - share * gap / 100)
    right = axes.secondary_yaxis("right", functions=both_ways)
    right.set_ylabel("gap closed")
    highest = axes.get_ylim()[1]
    ticks = MaxNLocator(7, steps=(1, 2, 5, 10)).tick_values(*map(both_ways[0], (highest, lowest)))
    ticks = [tick for tick in ticks if lowest <= both_ways[1](tick) <= highest]
    right.set_yticks(ticks, [f"{tick:g}%" for tick in ticks])


def _curve(comparison: Comparison, run: Run, axis: str) -> tuple[list[float], list[float]]:
    """(costs, CE) of a run. Where each seed has its own SAE, CE is at the same share of the mean
    gap: so the axis of shares holds for every run."""
    costs, shares = curve(run, axis)
    if comparison.one_sae or not comparison.gap > 0:
        return costs, [row["ce"] for row in finite_rows(run)]
    return costs, [comparison.ce_spliced - share * comparison.gap for share in shares]


def median_curve(
    runs: list[Run], axis: str, heights: Callable[[Run], Sequence[float]], worst: float = math.inf
) -> list[tuple[float, float, int]]:
    """(cost, height, step), medians over the seeds that are ranked on the axis, at each step.

    `heights(run)` has one for each of `finite_rows`; a run in which one is nan does not count. One
    that has diverged has `worst` from there on, and where that is the median nothing is.
    """
    counted = [(run, heights(run)) for run in runs if ranked(run, axis)]
    counted = [(run, ys) for run, ys in counted if not any(map(math.isnan, ys))]
    points: dict[int, list[tuple[float, float]]] = {}
    for run, ys in counted:
        for row, y in zip(finite_rows(run), ys, strict=True):
            points.setdefault(row["step"], []).append((row[axis], y))
    middle = []
    for step, at in sorted(points.items()):
        height = median([y for _, y in at] + [worst] * (len(counted) - len(at)))
        if math.isfinite(height):
            middle.append((median(x for x, _ in at), height, step))
    return middle


def _speedups(axes: Axes, comparison: Comparison, styles: dict[str, Style]) -> None:
    """Speedup over the rival against share of the gap closed, in seconds and in passes."""
    trained, rival = comparison.trained, comparison.rival
    axes.set_xlabel("share of the gap closed")
    if rival is None or len(trained) < 2:
        return say(axes, "one method: no rival to compare with")
    marked = targets(trained)
    if not marked:
        return say(axes, "no share of the gap that two methods reach")
    shares = sorted({*marked, *(marked[-1] * i / 60 for i in range(1, 60))})
    counted = ("seconds", "backwards") if comparison.one_clock else ("backwards",)
    axes.axhline(1, color=styles[rival]["color"], linewidth=1.6)
    ratios = [1.0]
    at = [i for i, share in enumerate(shares) if share in marked]
    for label in [label for label in trained if label != rival]:
        style, sides = {**styles[label], "markevery": at}, (trained[rival], trained[label])
        for axis in counted:
            ratios += _speedup(axes, sides, axis, shares, style)
    seeds = "; shade: single seeds" if len(comparison.seeds) > 1 else ""
    seconds = "filled: seconds; " if comparison.one_clock else ""
    axes.set_title(f"{seconds}open: backward passes{seeds}")
    lines = wrap(f"speedup over {rival.replace(':', ': ')}", 28)  # a long label, over the axis
    axes.set_ylabel("\n".join(lines).replace(": ", ":"))
    axes.set_xlim(0, 1.04 * marked[-1])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    _ratio_scale(axes, ratios)


def _speedup(
    axes: Axes, sides: tuple[list[Run], list[Run]], axis: str, shares: list[float], style: Style
) -> list[float]:
    """The curve of `sides`, runs of the rival and of one label, its range over seeds shaded -> the
    ratios drawn."""
    ratios = [speedup(*sides, share, axis) or math.nan for share in shares]
    spread = [speedups_by_seed(*sides, share, axis) or [math.nan] for share in shares]
    low, high = list(map(min, spread)), list(map(max, spread))
    filled = axis == "seconds"
    axes.fill_between(shares, low, high, color=style["color"], alpha=0.13, linewidth=0)
    look = {**style, "markerfacecolor": style["color"] if filled else "white"}
    axes.plot(shares, ratios, **{**look, "linewidth": 1.9 if filled else 1.1})
    return [ratio for ratio in [*ratios, *low, *high] if not math.isnan(ratio)]


def _ratio_scale(axes: Axes, ratios: list[float]) -> None:
    """Logarithmic, so that twice and half are as far from 1; never so narrow that noise looms."""
    axes.set_yscale("log")
    axes.set_ylim(min(0.5, 0.85 * min(ratios)), max(2, 1.2 * max(ratios)))
    log_ticks(axes.yaxis, "x")
    axes.tick_params(axis="y", which="minor", left=False)


def _handles(comparison: Comparison, styles: dict[str, Style]) -> list[Line2D]:
    """What the legend shows, row by row."""
    handles = [handle(label, **style) for label, style in styles.items()]
    grey = {"color": REFERENCE}
    spliced = "none: the spliced model" if NONE in comparison.runs else "spliced model"
    handles.append(handle(spliced, linestyle=":", linewidth=1.4, **grey))
    handles.append(handle("clean model", linestyle="--", linewidth=1.2, **grey))
    if len(comparison.seeds) > 1:
        handles.append(handle("single seed (thick: median)", linewidth=0.7, **grey))
    if any(run.status == "diverged" for run in comparison.all):
        handles.append(handle("diverged", linestyle="", marker="x", markeredgewidth=2, **grey))
    return handles
