"""The figure of `timing`: CE against total training, and the speedup over training end to end."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis.figures import panels
from analysis.figures.style import PAPER, REFERENCE, Style, method_look
from analysis.records.comparison import grouped
from analysis.records.manifest import Entry, Experiment, runs_of
from analysis.records.paper import Number, find, known, one
from analysis.stats.speedup import over_seeds, sae_cost, to_same_ce, whole_runs
from analysis.stats.usable import by_seed, placed
from bench.io.record import Run

NAMES = {
    "mse": "mse: the SAE's training on reconstruction",
    "e2e": "e2e from scratch",
    "lora": "lora, from each checkpoint",
    "e2e-finetune": "e2e, from each checkpoint",
}
LADDERS = ("e2e-finetune", "lora")
"""Roles that start from checkpoints of the SAE's training."""

UNITS = ((300, "seconds", 1), (9_000, "minutes", 60), (math.inf, "hours", 3_600))
"""Up to how many seconds an axis has which unit."""

Pairs = list[tuple[Run, Run]]
"""(e2e from scratch, a run that starts from a checkpoint) of each seed that has both."""

WIDE = 6
"""A CE axis is logarithmic away from the clean model where its curves end, above that, in gaps
that differ by more than this."""


def draw(experiment: Experiment) -> Figure:
    """Four panels: ours, the paper's on the same axes, speedup by checkpoint, speedup by CE."""
    figure, places = panels.sheet(experiment, 2, 2, (11.5, 8.8))
    ours, theirs, checkpoints, targets = places
    model = "Llama-3.2-1B" if experiment.name == "timing-llama" else "Gemma-2-2B"
    whole, why = placed(experiment)
    _paper_losses(theirs, model)
    if why:
        for axes in (ours, checkpoints, targets):
            axes.set_title("ours")
            panels.say(axes, why)
    else:
        clean = whole.entries[0].header["ce_clean"]
        _losses(ours, whole, clean)
        _speedups_by_share(checkpoints, whole, model)
        _speedups_by_target(targets, whole, clean, model)
    there = [role for role in NAMES if experiment.of(role)]
    handles = [panels.handle(NAMES[role], **panels.look(role)) for role in there]
    handles.append(panels.handle("clean model", color=REFERENCE, linestyle="--", linewidth=1.2))
    handles.append(panels.paper_handle(f"paper: {model}, digitised", marker="o"))
    panels.legend(figure, handles, columns=3)
    return figure


def _by_share(experiment: Experiment, role: str) -> dict[float, list[Entry]]:
    """Share of the SAE's training -> the runs of one role from there."""
    return grouped(experiment.of(role), lambda entry: entry.at.get("share", 0.0))


def _pairs(experiment: Experiment, role: str) -> dict[float, Pairs]:
    """Share of the SAE's training -> `Pairs` of one role from there."""
    scratch = by_seed(experiment.of("e2e"))
    return {
        share: [(scratch[n], run) for n, run in by_seed(entries).items() if n in scratch]
        for share, entries in _by_share(experiment, role).items()
    }


def _costs(run: Run) -> list[float]:
    """Seconds at each evaluation, those of the SAE added."""
    before = sae_cost(run, "seconds") or 0.0
    return [before + row["seconds"] for row in run.rows]


def _ces(run: Run) -> list[float]:
    """CE at each evaluation, nats per scored token."""
    return [row["ce"] for row in run.rows]


def _losses(axes: Axes, experiment: Experiment, clean: float) -> None:
    """CE against seconds of training, those of the SAE that a run starts from included."""
    last = max(_costs(run)[-1] for run in runs_of(experiment.entries))
    _, unit, seconds = next(row for row in UNITS if last < row[0])
    for role in ("mse", "e2e", *LADDERS):
        for runs in map(runs_of, _by_share(experiment, role).values()):
            costs = [[cost / seconds for cost in _costs(run)] for run in runs]
            style = {**panels.look(role), "markersize": 4}
            panels.seeds_curve(axes, costs, list(map(_ces, runs)), style)
    axes.set_xlabel(f"{unit} of training, the SAE's included")
    axes.set_ylabel("CE, nats per scored token")
    _loss_scale(axes, clean, list(map(_ces, runs_of(experiment.entries))))
    panels.line_across(axes, clean, f"clean model {clean:.3f}")
    axes.set_title("ours: median over seeds, range shaded")


def _loss_scale(axes: Axes, clean: float, curves: list[list[float]]) -> None:
    """Linear where all curves end near each other, else logarithmic away from the clean model."""
    ends = [losses[-1] - clean for losses in curves]
    low, high = max(min(ends), 1e-3), max(max(ends), 1e-3)
    highest = max(map(max, curves)) - clean
    if high < WIDE * low:
        axes.set_ylim(clean - 0.08 * high, clean + min(highest, 3 * high))
        return
    scale = (lambda ce: np.arcsinh((ce - clean) / low), lambda at: clean + low * np.sinh(at))
    axes.set_yscale("function", functions=scale)
    axes.set_ylim(clean - 0.25 * low, clean + 1.1 * highest)
    apart = [0] + [part * 10**power for power in range(-3, 3) for part in (1, 2, 5)]
    ticks = [clean + gap for gap in apart if not gap or 0.7 * low < gap < highest]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))


def _paper_losses(axes: Axes, model: str) -> None:
    """The paper's curves: what of them was digitised."""
    axes.set(xlabel="hours of training, the SAE's included", ylabel="CE, nats per token")
    axes.set_title(f"paper: {model}, digitised")
    clean = known("timing", "CE", model=model, curve="clean")
    for curve, name in (("mse", "TopK on reconstruction"), ("e2e", "e2e from scratch")):
        numbers = find("timing", "hours to CE", model=model, curve=curve)
        points = sorted({*((n.value, n.of["ce"]) for n in numbers), *_end(model, curve)})
        if points:
            axes.plot(*zip(*points, strict=True), color=PAPER, marker=method_look(curve)[1], ms=5)
            offset, side = ((8, -3), "left") if curve == "mse" else ((0, -16), "right")
            axes.annotate(name, points[-1], offset, textcoords="offset points", ha=side)
    checkpoints = [n.of["checkpoint"] for n in find("timing", "SAE hours", model=model)]
    ladder = [end for at in checkpoints for end in _end(model, "lora", checkpoint=at)]
    if ladder:
        axes.plot(*zip(*ladder, strict=True), color=PAPER, marker="o", ms=5, linestyle="")
        name = "TopK up to a checkpoint, then LoRA"
        axes.annotate(name, ladder[-1], (6, -12), textcoords="offset points")
        axes.set_ylim(clean - 0.01, None)
    else:
        axes.text(0.5, 0.5, "curves not found", transform=axes.transAxes, ha="center")
        axes.set(xlim=(0, 1), xticks=[])
    panels.line_across(axes, clean, f"clean model {clean:.3f}")


def _end(model: str, curve: str, **of: object) -> list[tuple[float, float]]:
    """[(hours, CE)] at the end of one of the paper's curves; [] where that is not known."""
    what = ("hours", "CE")
    hours, ce = (one("timing", quantity, model=model, curve=curve, **of) for quantity in what)
    return [] if hours is None or ce is None else [(hours, ce)]


def _speedups_by_share(axes: Axes, experiment: Experiment, model: str) -> None:
    """Both speedups over e2e from scratch, by the share of the SAE's training that is done."""
    for role in LADDERS:
        for whole in (True, False):
            _ladder(axes, _pairs(experiment, role), panels.look(role), whole)
    paper = find("timing", "speedup", model=model)
    shares = [number.of["checkpoint"] / 100 for number in paper]
    _paper_speedups(axes, shares, paper)
    lowest, highest = "lowest speedup", "highest speedup"
    low, high = (one("timing", end, model=model, curve="lora") for end in (lowest, highest))
    if not paper and low is not None and high is not None:
        axes.axhspan(low, high, color=PAPER, alpha=0.25, linewidth=0)
    axes.set_xlabel("share of the SAE's training before adaptation")
    panels.percent_axis(axes.xaxis)
    axes.set_title("filled: whole runs, as the paper; open: to the same CE; up: at least")
    _ratio_scale(axes)


def _ladder(axes: Axes, pairs: dict[float, Pairs], style: Style, whole: bool) -> None:
    """One role's speedups by one definition: median and range over seeds, an arrow up from a
    lower bound."""
    definition = whole_runs if whole else to_same_ce
    by_share = {s: [definition(*pair, "seconds") for pair in pairs[s]] for s in sorted(pairs)}
    ratios = {share: [ratio for ratio in each if ratio] for share, each in by_share.items()}
    medians = {share: over_seeds(of_seeds) for share, of_seeds in ratios.items() if of_seeds}
    if not medians:
        return
    seeds = [(m.value, [r.value for r in ratios[share]]) for share, m in medians.items()]
    middle, below, above = zip(*((m, m - min(s), max(s) - m) for m, s in seeds), strict=True)
    style |= {"markerfacecolor": style["color"] if whole else "white", "markersize": 6}
    axes.errorbar(list(medians), middle, (below, above), capsize=2.5, elinewidth=1, **style)
    for at in ((share, ratio.value) for share, ratio in medians.items() if ratio.at_least):
        arrow = {"arrowstyle": "<-", "color": style["color"]}
        axes.annotate("", at, (0, 22), textcoords="offset points", arrowprops=arrow)


def _speedups_by_target(axes: Axes, experiment: Experiment, clean: float, model: str) -> None:
    """The speedup to the same CE, for every CE on the way of a run from each checkpoint."""
    for role in LADDERS:
        for share, pairs in _pairs(experiment, role).items():
            if pairs:
                _targets(axes, pairs, clean, panels.look(role), f"{share:.0%}")
    base = known("timing", "CE", model=model, curve="clean")
    paper = find("timing", "speedup to CE", model=model)
    _paper_speedups(axes, [number.of["ce"] - base for number in paper], paper)
    axes.set_xscale("log")
    axes.invert_xaxis()
    panels.log_ticks(axes.xaxis)
    axes.set_xlabel("target: CE above the clean model, nats")
    axes.set_title("to the same CE, by checkpoint (dotted: e2e ends before, at least)")
    _ratio_scale(axes)


def _paper_speedups(axes: Axes, places: list[float], numbers: list[Number]) -> None:
    values = [number.value for number in numbers]
    axes.plot(places, values, color=PAPER, marker="o", ms=5, linewidth=1.6)


def _targets(axes: Axes, pairs: Pairs, clean: float, style: Style, name: str) -> None:
    """One role's curve from one checkpoint: the median over seeds, dotted where a lower bound."""
    ends = [(run.rows[0]["ce"] - clean, min(r["ce"] for r in run.rows) - clean) for _, run in pairs]
    first, last = min(begin for begin, _ in ends), max(end for _, end in ends)
    if not 0 < last < first:
        return
    targets = [first * (last / first) ** (i / 40) for i in range(41)]
    ratios = [[to_same_ce(*pair, "seconds", clean + gap) for pair in pairs] for gap in targets]
    known_ratios = [[ratio for ratio in each if ratio] for each in ratios]
    medians = {gap: over_seeds(r) for gap, r in zip(targets, known_ratios, strict=True) if r}
    for bound, line in ((False, style["linestyle"]), (True, ":")):
        part = [ratio.value if ratio.at_least == bound else math.nan for ratio in medians.values()]
        axes.plot(list(medians), part, **{**style, "linestyle": line, "marker": ""})
    if medians:
        gap, ratio = list(medians.items())[-1]
        text = {"color": style["color"], "fontsize": 8.5, "va": "center"}
        axes.annotate(name, (gap, ratio.value), (4, 0), textcoords="offset points", **text)


def _ratio_scale(axes: Axes) -> None:
    """Logarithmic, so that twice and half are as far from 1."""
    axes.axhline(1, color=REFERENCE, linewidth=0.9)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.7), max(high * 1.3, 3))
    panels.log_ticks(axes.yaxis, "x")
    axes.set_ylabel("speedup over e2e from scratch, seconds")
