"""What the figures of the experiments share: the sheet, bars and curves with their seeds."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.figures.style import PAPER, REFERENCE, Style, line_look, method_look
from analysis.records.manifest import Experiment
from analysis.stats.usable import units_of
from analysis.tables.notes import title

METHOD_OF = {"e2e-finetune": "e2e"}
"""Role -> method, where the role has another name; of `lora+e2e` the second one."""

INK = "#222222"
"""Colour of error bars and of the seeds on a bar."""


def spread(experiment: Experiment) -> str:
    """What the error bars of an experiment's figure are."""
    return f"± one standard error over {units_of(experiment)}"


def sheet(
    experiment: Experiment, rows: int, columns: int, size: tuple[float, float], **subplots: Any
) -> tuple[Figure, list[Axes]]:
    """(figure, its panels as a flat list); the figure's title says what it is of."""
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    figure.suptitle(title(experiment), fontsize=11)
    panels = figure.subplots(rows, columns, squeeze=False, **subplots)
    return figure, list(panels.flat)


def legend(figure: Figure, handles: list[Line2D], columns: int = 4) -> None:
    """One legend under all panels, read row by row."""
    columns = min(columns, len(handles))
    by_row = [handle for i in range(columns) for handle in handles[i::columns]]
    figure.legend(handles=by_row, loc="outside lower center", ncols=columns)


def look(role: str) -> Style:
    """Keywords of a line: colour and marker of the role's method; started from a trained SAE,
    `e2e` is dashed where it also ran from scratch."""
    method = METHOD_OF.get(role, role.rpartition("+")[2])
    return line_look(method_look(method), "--" if role == "e2e-finetune" else "-")


def handle(label: str, **style: Any) -> Line2D:
    """A line for the legend."""
    return Line2D([], [], **{"label": label, **style})


def paper_handle(label: str, **style: Any) -> Line2D:
    """The papers' own, for the legend."""
    return handle(label, **{"color": PAPER, "linewidth": 1.6, "markersize": 5, **style})


def over_seeds(values: Iterable[Sequence[float]]) -> list[list[float]]:
    """[seed][place] -> [median, smallest, largest][place], up to the end of the shortest."""
    places = list(zip(*values, strict=False))
    return [[statistic(at) for at in places] for statistic in (median, min, max)]


def seeds_curve(
    axes: Axes, costs: Sequence[list[float]], losses: Sequence[list[float]], style: Style
) -> None:
    """Costs and CE, each [seed][step] with equal steps -> the median a line, the range shaded."""
    at, (middle, low, high) = over_seeds(costs)[0], over_seeds(losses)
    if len(losses) > 1:
        axes.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.plot(at, middle, **style)


def bar(
    axes: Axes,
    at: float,
    height: float,
    error: float | None,
    dots: Sequence[float] = (),
    width: float = 0.8,
    bottom: float = 0,
    **style: Any,
) -> None:
    """A bar with its standard error, and a dot for each seed where there are several."""
    axes.bar(at, height, width, bottom=bottom, linewidth=0, **style)
    if error:
        axes.errorbar(at, bottom + height, error, capsize=2.5, linewidth=1, color=INK)
    seed_dots(axes, at, dots, width)


def seed_dots(axes: Axes, at: float, dots: Sequence[float], width: float) -> None:
    """A dot for each seed, beside one another so that none is lost under another."""
    if len(dots) > 1:
        spread = [at + width * 0.4 * (i / (len(dots) - 1) - 0.5) for i in range(len(dots))]
        axes.plot(spread, dots, "o", ms=3.2, mfc="white", linewidth=0, color=INK)


def percent_axis(axis: Axis) -> None:
    """Ticks of shares as percent."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))


def log_ticks(axis: Axis, unit: str = "") -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 of each decade, none between them named."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    axis.set_minor_formatter(NullFormatter())


def line_across(axes: Axes, height: float, text: str, color: str = REFERENCE, **style: Any) -> None:
    """A level line with its name at the left end."""
    axes.axhline(height, color=color, **{"linestyle": "--", "linewidth": 1.2, **style})
    place = axes.get_yaxis_transform()
    axes.text(0.01, height, text, color=color, transform=place, va="bottom", fontsize=8.5)


def say(axes: Axes, text: str) -> None:
    """A panel that has nothing to draw says why."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=REFERENCE)
    axes.set(xticks=[], yticks=[])
