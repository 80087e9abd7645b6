"""The figure of `timing`: CE against total training, and the speedup over training end to end."""

import math

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis.figures.panels import (
    handle,
    legend,
    line_across,
    look,
    paper_handle,
    say,
    seeds_curve,
    sheet,
)
from analysis.figures.speedups import LADDERS, speedups_by_share, speedups_by_target
from analysis.figures.style import PAPER, REFERENCE, method_look
from analysis.records.paper import find, one
from analysis.stats.speedup import sae_cost
from analysis.stats.usable import placed

NAMES = {
    "mse": "mse: the SAE's training on reconstruction",
    "e2e": "e2e from scratch",
    "lora": "lora, from each checkpoint",
    "e2e-finetune": "e2e, from each checkpoint",
}
UNITS = ((300, "seconds", 1), (9_000, "minutes", 60), (math.inf, "hours", 3_600))
"""Up to how many seconds an axis has which unit."""

WIDE = 6
"""A CE axis is logarithmic away from the clean model where its curves end, above that, in gaps
that differ by more than this."""


def draw(experiment):
    """Four panels: ours, the paper's on the same axes, speedup by checkpoint, speedup by CE."""
    figure, panels = sheet(experiment, 2, 2, (11.5, 8.8))
    ours, theirs, checkpoints, targets = panels
    model = "Llama-3.2-1B" if experiment.name == "timing-llama" else "Gemma-2-2B"
    whole, why = placed(experiment)
    _paper_losses(theirs, model)
    if why:
        for axes in (ours, checkpoints, targets):
            axes.set_title("ours")
            say(axes, why)
    else:
        _losses(ours, whole)
        speedups_by_share(checkpoints, whole, model)
        speedups_by_target(targets, whole, model)
    roles = [role for role in NAMES if experiment.of(role)]
    handles = [handle(NAMES[role], **look(role)) for role in roles]
    handles.append(handle("clean model", color=REFERENCE, linestyle="--", linewidth=1.2))
    handles.append(paper_handle(f"paper: {model}, digitised", marker="o"))
    legend(figure, handles, columns=3)
    return figure


def _losses(axes, experiment):
    """CE against seconds of training, those of the SAE that a run starts from included."""
    groups = {role: [experiment.of(role)] for role in ("mse", "e2e")}
    for role in LADDERS:
        shares = experiment.values("share", role)
        groups[role] = [experiment.of(role, share=share) for share in shares]
    points = {role: [list(map(_path, some)) for some in groups[role]] for role in groups}
    last = max(path[-1][0] for some in points.values() for paths in some for path in paths)
    unit, seconds = next(u[1:] for u in UNITS if last < u[0])
    for role in ("mse", "e2e", *LADDERS):
        for paths in points[role]:
            if paths:
                scaled = [[(cost / seconds, loss) for cost, loss in path] for path in paths]
                seeds_curve(axes, scaled, {**look(role), "markersize": 4})
    axes.set_xlabel(f"{unit} of training, the SAE's included")
    axes.set_ylabel("CE, nats per scored token")
    clean = experiment.entries[0].run.header["ce_clean"]
    _loss_scale(axes, clean, [path for some in points.values() for paths in some for path in paths])
    line_across(axes, clean, f"clean model {clean:.3f}")
    axes.set_title("ours: median over seeds, range shaded")


def _path(entry):
    """[(cost, CE)] of a run, from the cost of its SAE on."""
    before = sae_cost(entry.run, "seconds")
    return [(before + row["seconds"], row["ce"]) for row in entry.run.rows]


def _loss_scale(axes, clean, paths):
    """Linear where all curves end near each other, else logarithmic away from the clean model."""
    ends = [path[-1][1] - clean for path in paths]
    low, high = max(min(ends), 1e-3), max(max(ends), 1e-3)
    highest = max(loss for path in paths for _, loss in path) - clean
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


def _paper_losses(axes, model):
    """The paper's curves: what of them was digitised."""
    axes.set(xlabel="hours of training, the SAE's included", ylabel="CE, nats per token")
    axes.set_title(f"paper: {model}, digitised")
    clean = one("timing", "CE", model=model, curve="clean")
    for curve, name in (("mse", "TopK on reconstruction"), ("e2e", "e2e from scratch")):
        of = {"model": model, "curve": curve}
        points = [(n.value, n.of["ce"]) for n in find("timing", "hours to CE", **of)]
        end = [one("timing", what, **of) for what in ("hours", "CE")]
        points = sorted({*points, tuple(end)} - {(None, None)})
        if points:
            axes.plot(*zip(*points, strict=True), color=PAPER, marker=method_look(curve)[1], ms=5)
            offset, side = ((8, -3), "left") if curve == "mse" else ((0, -16), "right")
            axes.annotate(name, points[-1], offset, textcoords="offset points", ha=side)
    ladder = [_pair(model, n.of["checkpoint"]) for n in find("timing", "SAE hours", model=model)]
    if ladder:
        axes.plot(*zip(*ladder, strict=True), color=PAPER, marker="o", ms=5, linestyle="")
        name = "TopK up to a checkpoint, then LoRA"
        axes.annotate(name, ladder[-1], (6, -12), textcoords="offset points")
        axes.set_ylim(clean - 0.01, None)
    else:
        axes.text(0.5, 0.5, "curves not found", transform=axes.transAxes, ha="center")
        axes.set(xlim=(0, 1), xticks=[])
    line_across(axes, clean, f"clean model {clean:.3f}")


def _pair(model, checkpoint):
    """(hours, CE) at the end of LoRA from a checkpoint."""
    of = {"model": model, "curve": "lora", "checkpoint": checkpoint}
    return one("timing", "hours", **of), one("timing", "CE", **of)
