"""How a method looks: one colour and one marker, the same in every figure."""

import zlib

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

OTHERS = ("#332288", "#882255", "#117733", "#999933", "#6699CC", "#661100")
"""Colours for a method that is not named above; which one follows from its name."""

LINES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
"""Line styles that tell labels of one method apart."""

REFERENCE = "#595959"
"""Colour of what is not a method: the clean and the spliced model, and remarks."""

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


def line_styles(trained):
    """Label -> keywords of its line; `trained` is label -> runs.

    Colour and marker tell the method, the line style tells labels of one method apart.
    """
    styles, met = {}, {}
    for label, runs in trained.items():
        method = runs[0].header["method"]
        other = OTHERS[zlib.crc32(method.encode()) % len(OTHERS)]
        colour, marker = METHODS.get(method, (other, "h"))
        line = LINES[met.setdefault(method, 0) % len(LINES)]
        met[method] += 1
        styles[label] = {
            "color": colour,
            "marker": marker,
            "linestyle": line,
            "linewidth": 1.9,
            "markersize": 5,
        }
    return styles
