"""The figure of the frontier: KL to the clean model against all seconds, the SAE's included."""

import re
import textwrap
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from analysis.figures import panels
from analysis.figures.style import REFERENCE, Style
from analysis.records.manifest import Entry, Experiment
from analysis.stats import frontier as stats
from analysis.stats.frontier import BASE, MARGIN, PRIMARY, Arm
from analysis.stats.speedup import sae_cost
from analysis.stats.usable import placed
from analysis.tables.frontier import NAMES
from analysis.tables.notes import model_name
from analysis.tables.notes import seeds as of_seeds

BLACK = "#000000"
LOOKS = {
    "mse": (BLACK, "^"),
    "lora": ("#0072B2", "o"),
    "e2e": ("#D55E00", "s"),
    "joint": ("#CC79A7", "X"),
    "e2e-mse": ("#E69F00", "D"),
    "lora-keep": ("#56B4E9", "p"),
    "mse-lora": ("#332288", "P"),
    "sae-lora": ("#882255", "h"),
    "sae-lora-2": ("#AA4499", "H"),
    "affine": ("#117733", "v"),
    "ridge": ("#999933", "<"),
    "mse-weighted": ("#777777", ">"),
    "e2e-scratch": ("#D55E00", "*"),
}
"""Role -> (colour, marker). Black is what all others are held against."""

WHOLE = ("mse", "lora", "e2e", "e2e-scratch")
"""The roles of the panel with the whole range, at every fork."""

HELD = "the SAE's training on reconstruction,\nits step size not yet lowered"
CLOSED = "share of the gap closed"
TRUNK: Style = {"color": BLACK, "linewidth": 0.8}
ZONE: Style = {"color": REFERENCE, "alpha": 0.18, "linewidth": 0}
BEHIND: Style = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}
POINTS: Style = {"textcoords": "offset points"}
NO_BASE = f"{NAMES[BASE]}:\nno run with a KL on the validation set, timed in one go"
CAPTION = (
    "Markers: the end, on {documents} held-out documents; bars: 95% over seeds and documents, of "
    "the difference from bold black (its own: from the fork)."
    "\nGrey: right, within {margin:.1%} of the gap; left, the range over seeds. Curves: on the "
    "way, on other documents, scaled to the held-out ones by one factor a seed;"
    "\nmedian over seeds. All end with the step size at 0, the thin line does not."
)


@dataclass(frozen=True)
class End:
    """Where an arm ends, on the validation set."""

    arm: Arm
    at: float
    """Seconds, all of them."""
    kl: float
    low: float
    """The interval's ends, both `kl` where there is none."""
    high: float
    share: float
    """Of the gap that it closes."""


def draw(experiment: Experiment) -> Figure:
    """Two panels: from the first seconds on, and the part that the arms of the main fork get."""
    figure = Figure((13, 6.2), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    timed, why = placed(stats.on_one_clock(experiment))
    found = {arm: _end(experiment, timed, arm) for arm in stats.arms(experiment)}
    reached = {arm: end for arm, end in found.items() if end}
    figure.suptitle(_title(experiment, timed, list(reached)), fontsize=12)
    if why or Arm(BASE) not in reached:
        for axes in (left, right):
            panels.say(axes, why or NO_BASE)
        return figure
    factors = _factors(experiment)
    _whole(left, timed, reached, factors)
    _last_part(right, timed, reached, factors, stats.gap(experiment, Arm(BASE), "KL") or 0.0)
    _stamp(left, experiment)
    figure.supxlabel(_caption(experiment, found), fontsize=9, color=REFERENCE)
    return figure


def _title(experiment: Experiment, timed: Experiment, drawn: list[Arm]) -> str:
    """The question, and what it was asked of."""
    header = (timed.entries or experiment.entries)[0].header
    model, site = model_name(header["spec"]["model"]), header["spec"]["site"]
    site = re.sub(r"^blocks\.(\d+)\.hook_resid_post$", r"after block \1", site)
    asked = "Which training makes good what splicing in an SAE breaks, at equal seconds?"
    counted, machine = _seeds(experiment, drawn), header["machine"]
    return f"{asked}\n{model}, SAE {site} · {counted} · {machine}"


def _seeds(experiment: Experiment, drawn: list[Arm]) -> str:
    """`5 seeds`, or `3 to 5 seeds` where the arms that are drawn differ."""
    counts = [len(arm.of(experiment)) for arm in drawn] or [len(experiment.seeds)]
    return (f"{min(counts)} to " if min(counts) < max(counts) else "") + of_seeds(max(counts))


def _caption(experiment: Experiment, found: dict[Arm, End | None]) -> str:
    """How to read it, and which arms are missing."""
    documents = len(experiment.runs(fork=PRIMARY)[0].header["ce_full_clean"])
    text = CAPTION.format(documents=documents, margin=MARGIN)
    lost = [f"{NAMES.get(a.role, a.role)} ({a.fork:.0%})" for a, end in found.items() if not end]
    missing = f"Not drawn, as not timed in one go here: {', '.join(lost)}."
    return "\n".join([text, *(textwrap.wrap(missing, 160) if lost else [])])


def _end(experiment: Experiment, timed: Experiment, arm: Arm) -> End | None:
    """Its interval is of the difference from `mse`, for `mse` from the SAE at the fork."""
    kl, nats = stats.left(experiment, arm, "KL"), stats.gap(experiment, arm, "KL")
    than = None if arm.role == BASE else arm.base
    share, more = (
        stats.closed(experiment, arm, "KL"),
        stats.closed(experiment, arm, "KL", than=than),
    )
    at = stats.seconds(timed, arm)
    if kl is None or not (nats and share and more) or at is None:
        return None
    if more.low is None or more.high is None:
        return End(arm, at, kl, kl, kl, share.value)
    below, above = nats * (more.high - more.value), nats * (more.value - more.low)
    return End(arm, at, kl, kl - below, kl + above, share.value)


def _factors(experiment: Experiment) -> dict[int, float]:
    """Seed -> KL on the validation set over that on the curve set, both of the SAE at the fork."""
    factors: dict[int, float] = {}
    for entry in sorted(experiment.of(None, fork=PRIMARY, sae="own"), key=lambda e: e.role != BASE):
        full, rows = entry.header.get("kl_full_spliced"), entry.run.rows if entry.run else []
        if full and rows and rows[0].get("kl"):
            factors.setdefault(entry.seed, fmean(full) / rows[0]["kl"])
    return factors


def _curve(
    axes: Axes, entries: list[Entry], factors: dict[int, float], style: Style, shaded: bool = False
) -> list[tuple[float, float]]:
    """KL on the curve set, scaled to the validation set, against all seconds: the median over
    seeds, as it was drawn."""
    costs, losses = [], []
    for entry in entries:
        before = sae_cost(entry.run, "seconds") if entry.run else None
        if entry.run and before is not None and entry.seed in factors:
            rows = [row for row in entry.run.rows if row.get("kl") and before + row["seconds"] > 0]
            costs.append([before + row["seconds"] for row in rows])
            losses.append([factors[entry.seed] * row["kl"] for row in rows])
    if not costs:
        return []
    at, (middle, low, high) = panels.over_seeds(costs)[0], panels.over_seeds(losses)
    if shaded and len(costs) > 1:
        axes.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.plot(at, middle, **style)
    return list(zip(at, middle, strict=True))


def _look(arm: Arm) -> tuple[str, str]:
    return LOOKS.get(arm.role, (REFERENCE, "."))


def _line(arm: Arm) -> Style:
    dashed, width = arm.role == "e2e-scratch", 2.2 if arm.role == BASE else 1.3
    return {"color": _look(arm)[0], "linestyle": "--" if dashed else "-", "linewidth": width}


def _point(axes: Axes, end: End, size: float = 7) -> None:
    """An arm's end with its interval."""
    colour, marker = _look(end.arm)
    style: Style = {"color": colour, "marker": marker, "ms": size, "mec": "white", "mew": 0.5}
    bars = [[end.kl - end.low], [end.high - end.kl]]
    front = 4 + (end.arm.role == BASE)
    axes.errorbar(end.at, end.kl, bars, capsize=3, elinewidth=1.3, zorder=front, **style)


def _whole(
    axes: Axes, timed: Experiment, reached: dict[Arm, End], factors: dict[int, float]
) -> None:
    """The trunk and the arms of `WHOLE` at all forks, over nine tenths of the seconds."""
    trunk = _curve(axes, timed.of("trunk", sae="own"), factors, TRUNK, shaded=True)
    shown = {arm: end for arm, end in reached.items() if arm.role in WHOLE}
    first = max(end.at for end in shown.values()) / 10
    inside = [kl for at, kl in trunk if at >= first] + [end.kl for end in shown.values()]
    for arm, end in shown.items():
        curve = _curve(axes, arm.of(timed), factors, _line(arm))
        _point(axes, end, size=6)
        if arm.role == BASE and curve:
            place: Style = {"rotation": 90, "ha": "center", "va": "bottom", "color": REFERENCE}
            above = (curve[0][0], max(kl for _, kl in curve))
            axes.annotate(f"last {arm.fork:.0%}", above, (0, 8), **POINTS, **place)
        if arm.fork == 1:
            place = {"ha": "right", "va": "bottom", "color": _look(arm)[0], "fontsize": 9}
            axes.annotate("end to end\nfrom scratch", (end.at, end.kl), (-8, 4), **POINTS, **place)
    for point in [point for point in trunk if point[0] > 1.3 * first][:1]:
        axes.annotate(HELD, point, (6, 4), fontsize=9, va="bottom", bbox=BEHIND, **POINTS)
    _scales(axes, (first, 11 * first), (0.94 * min(inside), 1.06 * max(inside)))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.set_xlabel("seconds of training in all: the SAE's, then the arm's")
    axes.set_ylabel("KL(clean model || model with SAE), nats per token")


def _last_part(
    axes: Axes,
    timed: Experiment,
    reached: dict[Arm, End],
    factors: dict[int, float],
    nats: float,
) -> None:
    """The arms of the main fork, each named at its end; grey is what counts as the same."""
    base = reached[Arm(BASE)]
    shown = {arm: end for arm, end in reached.items() if arm.fork == PRIMARY}
    start = base.kl + nats * base.share
    axes.axhspan(base.kl - MARGIN * nats, base.kl + MARGIN * nats, **ZONE)
    _curve(axes, timed.of("trunk", sae="own"), factors, TRUNK)
    for arm, end in shown.items():
        _curve(axes, arm.of(timed), factors, _line(arm))
        _point(axes, end)
    # An interval of two seeds may reach below 0, where a logarithmic axis has no place.
    lowest = max(min(e.low for e in shown.values()), 0.5 * min(e.kl for e in shown.values()))
    highest = max(e.high for e in shown.values())
    wide = ((1 - 1.04 * PRIMARY) * base.at, 1.01 * base.at)
    _scales(axes, wide, (0.97 * lowest, 1.03 * max(start, highest)))
    axes.set_xlabel(f"the last {PRIMARY:.0%} of the seconds")
    _names(axes, list(shown.values()))


def _scales(axes: Axes, wide: tuple[float, float], high: tuple[float, float]) -> None:
    """Both axes logarithmic, with plain numbers at even steps."""
    axes.set(xscale="log", yscale="log", xlim=wide, ylim=high)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_locator(NullLocator())


def _names(axes: Axes, shown: list[End]) -> None:
    """Each arm's name and closed share right of the panel, apart from one another."""
    shown = sorted(shown, key=lambda end: -end.kl)
    to_axes = axes.transData + axes.transAxes.inverted()
    points = [tuple(to_axes.transform((end.at, end.kl))) for end in shown]
    places = _apart([height for _, height in points])
    for end, point, place in zip(shown, points, places, strict=True):
        colour = _look(end.arm)[0]
        style: Style = {"color": colour, "va": "center", "annotation_clip": False}
        style |= {"fontweight": "bold" if end.arm.role == BASE else "normal"}
        style |= {"xycoords": "axes fraction", "textcoords": "axes fraction"}
        style["arrowprops"] = {"arrowstyle": "-", "color": colour, "lw": 0.7, "relpos": (0, 0.5)}
        name = f"{NAMES.get(end.arm.role, end.arm.role)}, {end.share:.0%}"
        axes.annotate(name, point, (1.05, place), **style)
    above = max(places) + 0.05
    axes.text(1.05, above, CLOSED, transform=axes.transAxes, color=REFERENCE)


def _apart(heights: list[float], least: float = 0.052) -> list[float]:
    """Falling heights -> the same moved apart, all within 0 and 0.93 where they fit."""
    places: list[float] = []
    for height in heights:
        places.append(min(height, places[-1] - least if places else 0.93))
    floor = 0.0
    for n in reversed(range(len(places))):
        places[n] = max(places[n], floor)
        floor = places[n] + least
    return places


def _stamp(axes: Axes, experiment: Experiment) -> None:
    """Whether the SAE at the fork is mature."""
    found = stats.maturity(experiment)
    if found:
        text = f"{'mature' if found.mature else 'immature'} SAE: the last doubling\n"
        text += f"of its tokens moved the gap by {found.change:.0%}"
        box = {"facecolor": "white", "edgecolor": REFERENCE if found.mature else "#C8102E"}
        axes.text(0.04, 0.05, text, transform=axes.transAxes, va="bottom", bbox=box)
