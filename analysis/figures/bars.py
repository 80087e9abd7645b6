"""The figures of what is compared side by side: rivals, and single layers."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import panels
from analysis.figures.style import PAPER, REFERENCE, method_look
from analysis.records.comparison import Comparison
from analysis.records.manifest import Experiment
from analysis.records.paper import find, known
from analysis.stats.gap import closed_at_end
from analysis.stats.speedup import curve
from analysis.stats.usable import timed
from bench.io.record import Run


def rivals(experiment: Experiment) -> Figure:
    """Gap closed by method from each checkpoint of the SAE; CE against seconds from the last."""
    sizes = {"width_ratios": (1.6, 1)}
    figure, (bars, losses) = panels.sheet(experiment, 1, 2, (13, 5.8), **sizes)
    shares = sorted(experiment.values("share"))
    width = 0.84 / len(experiment.roles)
    for group, share in enumerate(shares):
        for n, role in enumerate(experiment.roles):
            at, colour = group - 0.42 + (n + 0.5) * width, method_look(role)[0]
            _closed_bar(bars, at, experiment.runs(role, share=share), 0.9 * width, colour)
    names = [f"SAE at {share:.0%}" for share in shares] + ["Karvonen,\nGemma-2-2B"]
    _karvonen(bars, len(shares))
    bars.set_xticks(range(len(names)), names)
    bars.set_xlabel("share of the SAE's training before adaptation")
    bars.axhline(0, color=REFERENCE, linewidth=0.9)
    bars.set_ylabel("gap closed")
    panels.percent_axis(bars.yaxis)
    bars.set_title(f"{panels.spread(experiment)}; dots: seeds")
    _losses(losses, experiment, shares[-1])
    handles = [panels.handle(role, **panels.look(role)) for role in experiment.roles]
    handles.append(panels.paper_handle("2503.17272, from its csv files", linewidth=6))
    panels.legend(figure, handles, columns=5)
    return figure


def _closed_bar(axes: Axes, at: float, runs: list[Run], width: float, colour: str) -> None:
    """Gap closed by runs of one label, with a dot for each seed."""
    closed = closed_at_end(runs)
    if closed:
        dots = [one_seed.value for one_seed in (closed_at_end([run]) for run in runs) if one_seed]
        panels.bar(axes, at, closed.value, closed.error, dots, width=width, color=colour)


KARVONEN = (
    ("lora", "lora-after", "15k"),
    ("e2e", "finetune-kl", "15k"),
    ("linear", "linear-r16", "30k"),
)
"""Method -> what comes nearest to it in 2503.17272, and its training examples."""


def _karvonen(axes: Axes, at: float) -> None:
    """Karvonen's gap closed by LoRA, finetuning of the SAE and a linear adapter."""
    for n, (method, run, budget) in enumerate(KARVONEN):
        share = find("karvonen", "closed", run=run, budget=budget)[0].value / 100
        place = at + 0.25 * (n - 1)
        panels.bar(axes, place, share, None, width=0.2, color=PAPER)
        text, size = f"{method}\n{budget}", 7.5
        axes.text(place, share, text, ha="center", va="bottom", fontsize=size, color=REFERENCE)


def _losses(axes: Axes, experiment: Experiment, share: float) -> None:
    """CE against seconds from one checkpoint; with an SAE for each seed, at their mean gap."""
    axes.set_title(f"SAE at {share:.0%}: median over seeds, range shaded")
    kept, why = timed(experiment)
    runs = kept.runs(share=share)
    if why or not runs:
        return panels.say(axes, why or "not measured")
    faced = Comparison({"all": runs})
    clean, spliced = faced.ce_clean, faced.ce_spliced
    for role in experiment.roles:
        curves = [curve(run, "seconds") for run in kept.runs(role, share=share)]
        if curves:
            costs, shares = zip(*curves, strict=True)
            losses = [[spliced - s * (spliced - clean) for s in by_step] for by_step in shares]
            panels.seeds_curve(axes, costs, losses, {**panels.look(role), "markersize": 4})
    text = f"spliced {spliced:.3f}; clean model: {clean:.3f}"
    panels.line_across(axes, spliced, text, linestyle=":")
    lowest, highest = axes.get_ylim()
    axes.set_ylim(lowest, min(highest, spliced + 0.5 * (spliced - lowest)))
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("CE at the seeds' mean gap, nats per scored token")


def one_layer(experiment: Experiment) -> Figure:
    """Gap closed with one adapted layer, beside that of all layers after the SAE."""
    figure, (axes,) = panels.sheet(experiment, 1, 1, (8.4, 5.2))
    layers = sorted(value for value in experiment.values("layer") if isinstance(value, int))
    colour, _ = method_look("lora")
    for n, layer in enumerate(layers):
        _closed_bar(axes, n, experiment.runs("lora", layer=layer), 0.7, colour)
    every = closed_at_end(experiment.runs("lora", layer="after"))
    if every:
        axes.axhline(every.value, color=colour, linewidth=1.8)
        low, high = every.value - (every.error or 0), every.value + (every.error or 0)
        axes.axhspan(low, high, color=colour, alpha=0.15, linewidth=0)
    theirs = known("scaling", "closed", layer=12, width=16, l0=82, rank=64) / 100
    axes.axhline(theirs, color=PAPER, linewidth=1.6)
    axes.axhline(0, color=REFERENCE, linewidth=0.9)
    axes.set_xticks(range(len(layers)), map(str, layers))
    axes.set_xlabel("the one adapted block")
    axes.set_ylabel("gap closed")
    axes.set_title(panels.spread(experiment))
    panels.percent_axis(axes.yaxis)
    names = {"lora on one block": 6, "lora on all blocks after the SAE": 1.8}
    handles = [panels.handle(name, color=colour, linewidth=wide) for name, wide in names.items()]
    paper = "paper: Gemma-2-2B, digitised, all layers after (L0 82, rank 64)"
    panels.legend(figure, [*handles, panels.paper_handle(paper)], columns=2)
    return figure
