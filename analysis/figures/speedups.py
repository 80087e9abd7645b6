"""The panels of `timing` with the speedup over an SAE trained end to end from scratch."""

import math
from statistics import median

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.figures.panels import look, percent_axis
from analysis.figures.style import PAPER, REFERENCE
from analysis.records.paper import find, one
from analysis.stats.speedup import over_seeds, to_same_ce, whole_runs
from analysis.stats.usable import by_seed

LADDERS = ("e2e-finetune", "lora")
"""Roles that start from checkpoints of the SAE's training."""

CLAIMED = ("lowest", "highest")
"""The ends of the range that the paper claims."""


def speedups_by_share(axes, experiment, model):
    """Both speedups over e2e from scratch, by the share of the SAE's training that is done."""
    scratch = by_seed(experiment.of("e2e"))
    for role in LADDERS:
        for whole in (True, False):
            _ladder(axes, experiment, scratch, role, whole)
    paper = find("timing", "speedup", model=model)
    shares = [number.of["checkpoint"] / 100 for number in paper]
    axes.plot(shares, [n.value for n in paper], color=PAPER, marker="o", ms=5, linewidth=1.6)
    bounds = [one("timing", f"{end} speedup", model=model, curve="lora") for end in CLAIMED]
    if not paper and None not in bounds:
        axes.axhspan(*bounds, color=PAPER, alpha=0.25, linewidth=0)
    axes.set_xlabel("share of the SAE's training before adaptation")
    percent_axis(axes.xaxis)
    axes.set_title("filled: whole runs, as the paper; open: to the same CE; up: at least")
    _ratio_scale(axes)


def _ladder(axes, experiment, scratch, role, whole):
    """One role's speedups by one definition: median and range over seeds."""
    style, found = look(role), {}
    for share in experiment.values("share", role):
        runs = by_seed(experiment.of(role, share=share))
        pairs = [(scratch[seed], runs[seed]) for seed in runs if seed in scratch]
        ratios = [(whole_runs if whole else to_same_ce)(*pair, "seconds") for pair in pairs]
        found[share] = [ratio for ratio in ratios if ratio]
    found = {share: ratios for share, ratios in sorted(found.items()) if ratios}
    values = [[r if whole else r.value for r in ratios] for ratios in found.values()]
    middle = [median(some) for some in values]
    spread = [(m - min(some), max(some) - m) for m, some in zip(middle, values, strict=True)]
    style |= {"markerfacecolor": style["color"] if whole else "white", "markersize": 6}
    if found:
        errors = list(zip(*spread, strict=True))
        axes.errorbar(list(found), middle, errors, capsize=2.5, elinewidth=1, **style)
    bounds = [] if whole else [s for s, some in found.items() if over_seeds(some).at_least]
    for share in bounds:
        at = (share, over_seeds(found[share]).value)
        arrow = {"arrowstyle": "<-", "color": style["color"]}
        axes.annotate("", at, (0, 22), textcoords="offset points", arrowprops={**arrow})


def speedups_by_target(axes, experiment, model):
    """The speedup to the same CE, for every CE on the way of a run from each checkpoint."""
    scratch, clean = by_seed(experiment.of("e2e")), experiment.entries[0].run.header["ce_clean"]
    for role in LADDERS:
        for share in experiment.values("share", role):
            runs = by_seed(experiment.of(role, share=share))
            pairs = [(scratch[seed], runs[seed]) for seed in runs if seed in scratch]
            if pairs:
                _targets(axes, pairs, clean, look(role), f"{share:.0%}")
    base = one("timing", "CE", model=model, curve="clean")
    paper = find("timing", "speedup to CE", model=model)
    gaps = [number.of["ce"] - base for number in paper]
    axes.plot(gaps, [n.value for n in paper], color=PAPER, marker="o", ms=5, linewidth=1.6)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("target: CE above the clean model, nats")
    axes.set_title("to the same CE, by checkpoint (dotted: e2e ends before, at least)")
    _ratio_scale(axes)


def _targets(axes, pairs, clean, style, name):
    """One role's curve from one checkpoint: the median over seeds, dotted where a lower bound."""
    ends = [(run.rows[0]["ce"] - clean, min(r["ce"] for r in run.rows) - clean) for _, run in pairs]
    first, last = min(begin for begin, _ in ends), max(end for _, end in ends)
    if not 0 < last < first:
        return
    targets = [first * (last / first) ** (i / 40) for i in range(41)]
    found = {
        gap: over_seeds([to_same_ce(*pair, "seconds", clean + gap) for pair in pairs])
        for gap in targets
    }
    found = {gap: ratio for gap, ratio in found.items() if ratio}
    for bound, line in ((False, style["linestyle"]), (True, ":")):
        part = [ratio.value if ratio.at_least == bound else math.nan for ratio in found.values()]
        axes.plot(list(found), part, **{**style, "linestyle": line, "marker": ""})
    if found:
        gap, ratio = list(found.items())[-1]
        axes.annotate(
            name,
            (gap, ratio.value),
            (4, 0),
            textcoords="offset points",
            color=style["color"],
            fontsize=8.5,
            va="center",
        )


def _ratio_scale(axes):
    """Logarithmic, so that twice and half are as far from 1."""
    axes.axhline(1, color=REFERENCE, linewidth=0.9)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.7), max(high * 1.3, 3))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("speedup over e2e from scratch, seconds")
