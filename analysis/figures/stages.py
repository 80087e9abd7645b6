"""The figures of `additivity`, two stages after one another, and `no-sae`, the SAE out again."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.panels import INK, bar, handle, legend, paper_handle, seed_dots, sheet, spread
from analysis.figures.style import PAPER, REFERENCE, method_look, shades
from analysis.records.manifest import Experiment
from analysis.records.paper import known
from analysis.stats.gap import difference
from analysis.stats.usable import by_seed, ends, gain, spliced

ORDERS = ("lora+lora", "lora+e2e", "e2e+lora", "e2e+e2e")


def additivity(experiment: Experiment) -> Figure:
    """Gain in nats of a first and a second stage, stacked, for the four orders."""
    figure, (axes,) = sheet(experiment, 1, 1, (9.5, 5.6))
    for at, role in enumerate(ORDERS):
        _stages(axes, at, experiment, role)
    _karvonen(axes, len(ORDERS))
    names = [role.replace("+", ",\nthen ") for role in ORDERS]
    axes.set_xticks(range(len(ORDERS) + 1), [*names, "Karvonen, Gemma-2-2B:\nSAE, then adapter"])
    axes.axhline(0, color=REFERENCE, linewidth=0.9)
    axes.set_ylabel("gain, nats per scored token")
    parts = "lower part: first stage; upper part: second"
    axes.set_title(f"{parts}; {spread(experiment)}; dots: seeds")
    handles = [handle(m, color=method_look(m)[0], linewidth=6) for m in ("lora", "e2e")]
    handles.append(handle("first stages of both, added", color=REFERENCE, linestyle=":"))
    handles.append(paper_handle("2503.17272, from its csv files", linewidth=6))
    legend(figure, handles)
    return figure


def _stages(axes: Axes, at: float, experiment: Experiment, role: str) -> None:
    """Two bars on each other with the error of what each adds; a dot for the sum of each seed."""
    first, second = role.split("+")
    firsts, lasts = by_seed(experiment.of(first, stage=1)), by_seed(experiment.of(role, stage=2))
    seeds = [seed for seed in lasts if seed in firsts]
    if not seeds:
        axes.text(at, 0, "not measured", ha="center", va="bottom", color=REFERENCE, fontsize=9)
        return
    firsts, lasts = ({seed: runs[seed] for seed in seeds} for runs in (firsts, lasts))
    before, half, end = spliced(firsts), ends(firsts), ends(lasts)
    gained, added = difference(before, half), difference(half, end)
    bar(axes, at, gained.value, None, width=0.62, color=method_look(first)[0])
    low = gained.value if added.value >= 0 else gained.value + added.value
    colour, hatch = method_look(second)[0], None if added.value >= 0 else "///"
    axes.bar(at, abs(added.value), 0.62, low, hatch=hatch, color=colour, edgecolor="white")
    # The two side by side: they are about heights that may be close.
    sums = ((-0.2, gained.value, gained), (0.2, gained.value + added.value, added))
    for shift, height, part in sums:
        if part.error:
            axes.errorbar(at + shift, height, part.error, capsize=2.5, linewidth=1, color=INK)
    seed_dots(axes, at, [difference({s: before[s]}, {s: end[s]}).value for s in seeds], 0.4)
    alone = [experiment.of(method, stage=1) for method in (first, second)]
    if first != second and all(alone):
        height = sum(gain(entries).value for entries in alone)
        axes.plot([at - 0.36, at + 0.36], [height, height], color=REFERENCE, linestyle=":")


def _karvonen(axes: Axes, at: float) -> None:
    """Karvonen's finetune of the SAE for 15k examples, then an adapter of rank 16 for 15k."""
    of = {"budget": "30k", "width": 16_384}
    before = known("karvonen", "CE", run="start", **of)
    half = known("karvonen", "CE", run="finetune then adapter", examples=15_000, **of)
    end = known("karvonen", "CE", run="finetune then adapter-r16", **of)
    light, dark = shades("#606060", 3)[0], PAPER
    bar(axes, at, before - half, None, width=0.62, color=dark)
    bar(axes, at, half - end, None, width=0.62, bottom=before - half, color=light)


STATES = {
    "ce_clean": "clean",
    "ce_spliced": "spliced",
    "ce_adapted": "adapted,\nSAE in",
    "ce_without_sae": "adapted,\nSAE taken out",
}
"""What `no-sae` measures -> its name."""


def no_sae(experiment: Experiment) -> Figure:
    """CE above that of the clean model: spliced, adapted, and adapted without the SAE."""
    figure, (axes,) = sheet(experiment, 1, 1, (8.4, 5.2))
    roles = experiment.roles
    width = 0.8 / len(roles)
    for n, role in enumerate(roles):
        values = {entry.seed: entry.measured for entry in experiment.of(role)}
        for at, state in enumerate(STATES):
            place = at - 0.4 + (n + 0.5) * width
            _state(axes, place, values, state, method_look(role)[0], 0.8 * width)
    axes.axhline(0, color=REFERENCE, linewidth=0.9)
    axes.set_xticks(range(len(STATES)), STATES.values())
    axes.set_ylabel("CE above the clean model, nats per scored token")
    axes.set_title(f"on the bars: CE; {spread(experiment)}; dots: seeds")
    axes.margins(y=0.12)
    plain = [handle("no adaptation", color=REFERENCE, linewidth=6)]
    legend(figure, plain + [handle(r, color=method_look(r)[0], linewidth=6) for r in roles])
    return figure


def _state(
    axes: Axes, at: float, values: dict[int, dict[str, Any]], state: str, colour: str, width: float
) -> None:
    """The bar of one model, by document against the clean model, with its CE in numbers."""
    clean = {seed: of["ce_clean"] for seed, of in values.items()}
    losses = {seed: of[state] for seed, of in values.items()}
    above_clean = difference(losses, clean)
    nothing = {seed: [0.0] * len(ce) for seed, ce in losses.items()}
    dots = [difference({s: losses[s]}, {s: clean[s]}).value for s in losses]
    colour = REFERENCE if state in ("ce_clean", "ce_spliced") else colour
    dots = dots if state != "ce_clean" else []
    bar(axes, at, above_clean.value, above_clean.error, dots, width=width, color=colour)
    top = max([above_clean.value + (above_clean.error or 0), *dots, 0])
    text = f"{difference(losses, nothing).value:.3f}"
    axes.annotate(text, (at, top), (0, 5), ha="center", textcoords="offset points", fontsize=9)
