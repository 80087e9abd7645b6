"""The figures of what is swept: rank, sparsity, width, layer, model size, several SAEs."""

from collections.abc import Callable, Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.figures.panels import handle, legend, look, paper_handle, percent_axis, sheet, spread
from analysis.figures.style import PAPER, REFERENCE, Style, shades
from analysis.records.comparison import grouped
from analysis.records.manifest import Entry, Experiment, runs_of
from analysis.records.paper import Number, find
from analysis.stats.gap import closed_at_end
from analysis.stats.usable import by_seed, ends, gain

PAPER_NAME = "paper: Gemma-2-2B, digitised"
SCALED = {"fixed": "-", "scaled": "--"}
"""How alpha goes with the rank -> line."""


def rank(experiment: Experiment) -> Figure:
    """Gap closed by rank, alpha fixed and scaled, beside the paper's row of L0 82."""
    figure, (axes,) = sheet(experiment, 1, 1, (7.6, 5.4))
    handles = []
    for kind in experiment.values("alpha"):
        ranks = sorted({e.at["rank"] for e in experiment.of("lora", alpha=kind)})
        style = {**look("lora"), "linestyle": SCALED.get(kind, ":")}
        groups = [experiment.of("lora", alpha=kind, rank=number) for number in ranks]
        _shares(axes, ranks, groups, style)
        handles.append(handle(f"lora, {_alpha(groups, kind)}", **style))
    row = find("scaling", "closed", layer=12, width=16, l0=82)
    theirs = [(number.of["rank"], number.value / 100) for number in row]
    axes.plot(*zip(*theirs, strict=True), color=PAPER, marker="o", linewidth=1.6, markersize=5)
    handles.append(paper_handle(f"{PAPER_NAME} (L0 82, alpha 32 fixed)", marker="o"))
    axes.set_xlabel("rank of the adapters")
    axes.set_title(spread(experiment))
    _log_axis(axes, sorted({*experiment.values("rank"), *(at for at, _ in theirs)}))
    _closed_axis(axes)
    legend(figure, handles, columns=2)
    return figure


def _alpha(groups: list[list[Entry]], kind: str) -> str:
    if kind == "scaled":
        return "alpha = rank"
    alphas = {e.header["config"].get("alpha") for entries in groups for e in entries}
    value = f" at {alphas.pop():g}" if len(alphas) == 1 and None not in alphas else ""
    return f"alpha {kind}{value}"


def sparsity(experiment: Experiment) -> Figure:
    """Gap closed and gain by measured L0, a line for each rank."""
    name, ticks = "L0 of the SAE, latents per token", [5, 10, 20, 50, 100, 200, 500]
    return _swept(experiment, _l0, "l0", {"layer": 12, "width": 16}, name, ticks)


def width(experiment: Experiment) -> Figure:
    """Gap closed and gain by the SAE's latents, a line for each rank."""
    ticks = [1e3, 3e3, 1e4, 3e4, 1e5, 3e5]
    place = experiment, lambda e: e.at["width"], "width", {"layer": 12}
    figure = _swept(*place, "latents of the SAE", ticks, scale=1_000)
    for axes in figure.axes:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}k"))
    return figure


def layer(experiment: Experiment) -> Figure:
    """Gap closed and gain by the layer the SAE comes after, a line for each rank."""
    name = "block that the SAE comes after (paper: of 26)"
    return _swept(experiment, lambda e: e.at["layer"], "layer", {"width": 16}, name)


def size(experiment: Experiment) -> Figure:
    """Gap closed and gain by model, a line for each rank; of the paper's the 2B model alone."""
    models = [*experiment.values("model"), "Gemma-2-2B\n(paper)"]
    theirs, last = {"layer": 12, "width": 131}, len(models) - 1
    figure = _swept(experiment, lambda e: models.index(e.at["model"]), "", theirs, scale=last)
    for axes in figure.axes:
        axes.set_xticks(range(len(models)), models)
        axes.set_xlim(-0.4, last + 0.4)
    return figure


def _l0(entry: Entry) -> float:
    """L0 of the SAE on the validation set, as it was measured before training."""
    assert entry.run is not None, "what is swept over is runs"
    return entry.run.header.get("l0_full") or entry.run.rows[0]["l0"]


def _swept(
    experiment: Experiment,
    place: Callable[[Entry], float],
    column: str,
    theirs: dict[str, int],
    name: str = "",
    ticks: Sequence[float] = (),
    scale: float = 1,
) -> Figure:
    """Two panels by what is varied: share of the gap closed, and nats.

    `place(entry)` is where a run lies on the axis, `column` times `scale` where the paper's numbers
    of `theirs` do; with `ticks` the axis is logarithmic.
    """
    figure, (shares, nats) = sheet(experiment, 1, 2, (11.5, 5.4))
    ranks = sorted(experiment.values("rank"))
    handles = []
    for number, colour in zip(ranks, shades(look("lora")["color"], len(ranks)), strict=True):
        style = {**look("lora"), "color": colour}
        by_place = grouped(experiment.of("lora", rank=number), place)
        places = sorted(by_place)
        _shares(shares, places, [by_place[at] for at in places], style)
        _gains(nats, places, [by_place[at] for at in places], style)
        handles.append(handle(f"lora, rank {number}", **style))
    for axes, quantity, unit in ((shares, "closed", 100), (nats, "gain", 1)):
        _paper(axes, find("scaling", quantity, **theirs), column, scale, unit)
    ranks_of_paper = "rank 1 to 256, darker: higher; gains of 1 and 256"
    handles.append(paper_handle(f"{PAPER_NAME} ({ranks_of_paper})", marker="o"))
    _closed_axis(shares)
    nats.set_ylabel("gain, nats per scored token")
    nats.set_ylim(min(0, nats.get_ylim()[0]), None)
    for axes in (shares, nats):
        axes.set_title(spread(experiment))
        axes.set_xlabel(name)
        if ticks:
            _log_axis(axes, ticks)
    legend(figure, handles, columns=4)
    return figure


def _paper(axes: Axes, numbers: list[Number], column: str, scale: float, unit: float) -> None:
    """The paper's lines, one for each rank. Where several L0 share a place, the one of 82."""
    greys = dict(zip((1, 4, 16, 64, 256), shades("#606060", 5), strict=True))
    varied = [n for n in numbers if (n.of["layer"], n.of["width"]) != (12, 16) or n.of["l0"] == 82]
    rows = numbers if column == "l0" else varied
    for rank, row in sorted(grouped(rows, lambda number: number.of["rank"]).items()):
        places = sorted((scale * n.of.get(column, 1), n.value / unit) for n in row)
        x, y = zip(*places, strict=True)
        axes.plot(x, y, "o-", color=greys[rank], markersize=4, linewidth=1.1, zorder=1.5)


def _shares(axes: Axes, places: list[float], groups: list[list[Entry]], style: Style) -> None:
    """Share of the gap closed at each place, with its standard error."""
    closed = [closed_at_end(runs_of(entries)) for entries in groups]
    _line(axes, [(at, c.value, c.error) for at, c in zip(places, closed, strict=True) if c], style)


def _gains(axes: Axes, places: list[float], groups: list[list[Entry]], style: Style) -> None:
    """Nats gained at each place, with their standard error."""
    gains = [gain(entries) for entries in groups]
    _line(axes, [(at, g.value, g.error) for at, g in zip(places, gains, strict=True)], style)


def _line(axes: Axes, points: list[tuple[float, float, float | None]], style: Style) -> None:
    """Points (x, y, standard error or None), joined."""
    if points:
        x, y, errors = zip(*points, strict=True)
        axes.errorbar(x, y, [e or 0 for e in errors], capsize=2.5, elinewidth=1, **style)


def _closed_axis(axes: Axes) -> None:
    axes.set_ylabel("gap closed")
    percent_axis(axes.yaxis)
    axes.set_ylim(min(0, axes.get_ylim()[0]), None)


def _log_axis(axes: Axes, ticks: Sequence[float]) -> None:
    """A logarithmic axis that names these values, where they are inside."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def multi_sae(experiment: Experiment) -> Figure:
    """CE clean, spliced and adapted, and gap closed, by the number of SAEs."""
    figure, (losses, shares) = sheet(experiment, 1, 2, (11.5, 5.2))
    numbers = sorted(experiment.values("saes"))
    handles = []
    for role in ("lora", "e2e"):
        by_number = {n: experiment.of(role, saes=n) for n in numbers if experiment.of(role, saes=n)}
        if by_number:
            groups = list(by_number.values())
            means = [_mean(ends(by_seed(entries))) for entries in groups]
            losses.plot(list(by_number), means, **look(role))
            _shares(shares, list(by_number), groups, look(role))
            handles.append(handle(role, **look(role)))
    every = {n: experiment.of(saes=n) for n in numbers}
    style: Style = {"color": REFERENCE, "linewidth": 1.4, "markersize": 4, "marker": "."}
    for field, name, line in (("spliced", "spliced", ":"), ("clean", "clean model", "--")):
        means = [_mean({e.seed: e.header[f"ce_full_{field}"] for e in every[n]}) for n in every]
        losses.plot(list(every), means, linestyle=line, **style)
        handles.append(handle(name, linestyle=line, **style))
    losses.set_ylabel("CE, nats per scored token")
    losses.set_title("at the end, on the validation set")
    shares.set_title(spread(experiment))
    _closed_axis(shares)
    for axes in (losses, shares):
        axes.set_xlabel("SAEs at once")
        axes.set_xticks(numbers)
    legend(figure, handles)
    return figure


def _mean(by_seed_and_document: dict[int, list[float]]) -> float:
    """Mean over documents and seeds."""
    return fmean(fmean(losses) for losses in by_seed_and_document.values())
