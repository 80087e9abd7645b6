"""How a method looks: one colour and one marker, the same in every figure."""

import zlib
from collections.abc import Iterable
from typing import Any

from bench.io.record import Run

Style = dict[str, Any]
"""Keywords of a line, by matplotlib's names."""

# Okabe and Ito's colours, which stay apart for colour-blind readers, and markers for print.
METHODS = {
    "lora": ("#0072B2", "o"),
    "e2e": ("#D55E00", "s"),
    "mse": ("#009E73", "^"),
    "linear": ("#56B4E9", "D"),
    "affine": ("#E69F00", "v"),
    "full": ("#CC79A7", "P"),
    "joint": ("#000000", "X"),
    "ridge": ("#B8A800", "<"),
}
"""Method -> (colour, marker). `ridge` is a darker yellow: the palette's own is lost on white."""

COLOURS = ("#332288", "#882255", "#117733", "#999933", "#6699CC", "#661100")
OTHERS = list(zip(COLOURS, "hd>p*8", strict=True))
"""(colour, marker) of a method that is not named above; which one follows from its name."""

LINES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
"""Line styles that tell labels of one method apart."""

REFERENCE = "#595959"
"""Colour of what is not a method: the clean and the spliced model, and remarks."""

PAPER = "#9a9a9a"
"""Colour of the papers' own numbers."""

IMPROVED, DEGRADED = "#0072B2", "#C8102E"
"""Tokens that get better and worse: blue and red, as in the papers."""

LOOK = {
    "font.size": 10,
    "axes.titlesize": 9.5,
    "axes.titlecolor": REFERENCE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # real text in the PDF, searchable
}
"""Settings of matplotlib under which every figure is drawn and saved."""

COLUMN = {**LOOK, "font.size": 7.5, "axes.titlesize": 6, "axes.linewidth": 0.6}
"""The same for a figure as wide as the column of a paper, beside text of 9 or 10 points."""


def looks(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Method -> (colour, marker), no two the same as long as there are enough."""
    found: dict[str, tuple[str, str]] = {}
    for name in dict.fromkeys(methods):
        left = [look for look in OTHERS if look not in found.values()] or OTHERS
        found[name] = METHODS.get(name) or left[zlib.crc32(name.encode()) % len(left)]
    return found


def method_look(method: str) -> tuple[str, str]:
    """(colour, marker) of a method that is drawn beside none of one's own."""
    return looks([method])[method]


def line_look(look: tuple[str, str], line: Any = "-", width: float = 1.8) -> Style:
    """Keywords of the line of a method that looks so."""
    style = {"color": look[0], "marker": look[1], "markersize": 5}
    return {**style, "linestyle": line, "linewidth": width}


def shades(colour: str, number: int) -> list[str]:
    """`number` mixes of a colour with white, from light to the colour itself."""
    whole = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    shares = [1 - 0.65 * i / max(number - 1, 1) for i in reversed(range(number))]
    mixes = [[round(255 + share * (part - 255)) for part in whole] for share in shares]
    return ["#" + "".join(f"{part:02x}" for part in mix) for mix in mixes]


def line_styles(trained: dict[str, list[Run]]) -> dict[str, Style]:
    """Label -> keywords of its line; `trained` is label -> runs.

    Colour and marker tell the method, the line style tells labels of one method apart.
    """
    styles = {}
    labels_of: dict[str, int] = {}
    of_method = looks(runs[0].header["method"] for runs in trained.values())
    for label, runs in trained.items():
        method = runs[0].header["method"]
        line = LINES[labels_of.setdefault(method, 0) % len(LINES)]
        labels_of[method] += 1
        styles[label] = line_look(of_method[method], line, 1.9)
    return styles
