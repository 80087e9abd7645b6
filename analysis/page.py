"""Comparisons -> one HTML file without network: words, tables, and curves to look into."""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from analysis.figures.comparison import LABELS, median_curve
from analysis.figures.style import line_styles
from analysis.records.comparison import Comparison
from analysis.stats.speedup import curve, finite_rows, resumed
from analysis.tables.comparison import cells, costs_to_targets, losses_of
from analysis.tables.conclusions import HOW_TO_READ, sentences
from analysis.tables.notes import heading, notes, setting
from bench.io.record import Run

TEMPLATE = Path(__file__).with_name("page.html")
"""Its looks, and the script that draws `curves`."""
HEIGHTS = {"closed": "CE gap closed", "ce": "CE, nats", "kl": "KL to the clean model, nats"}
"""What a curve may be of: field of a point -> its name. Of shares the larger one is the better."""


def page(comparisons: Sequence[Comparison]) -> str:
    """The answer in words, what each method reached and took, curves, the setting, how to make it
    again; a chapter for each comparison."""
    title = escape("; ".join(dict.fromkeys(map(setting, comparisons))))
    body = "\n".join(map(_chapter, comparisons))
    text = TEMPLATE.read_text(encoding="utf-8")
    return text.replace("<!--TITLE-->", title).replace("<!--BODY-->", body)


def _chapter(comparison: Comparison) -> str:
    judged = not comparison.random and not comparison.search
    first, *below = heading(comparison).splitlines()
    parts = [f"<h1>{escape(first)}</h1>", _paragraphs(below, "quiet")]
    if judged and (said := sentences(comparison)):
        how_to_read = _paragraphs([f"{HOW_TO_READ}.".capitalize()], "quiet")
        parts += ["<h2>What may be concluded</h2>", _paragraphs(said), how_to_read]
    parts += ["<h2>What each method reached, and took</h2>", _reached(comparison)]
    if not comparison.random:
        parts += ["<h2>Curves</h2>", _drawn(comparison)]
    if judged:
        parts += ["<h2>What a share of the gap cost</h2>", _text(costs_to_targets(comparison))]
    if told := notes(comparison):
        parts += ["<h2>To know</h2>", f"<ul>{''.join(f'<li>{escape(n)}</li>' for n in told)}</ul>"]
    parts += ["<h2>Made by</h2>", _text("\n".join(_commands(comparison)))]
    fields = _table([[name, str(value)] for name, value in comparison.spec.items()], left=2)
    parts += [f"<details><summary>Setting</summary>{fields}</details>"]
    return f"<section>{''.join(parts)}</section>"


def _reached(comparison: Comparison) -> str:
    heads, *rows = cells(comparison, losses_of([comparison]))
    return _table(rows, left=1, heads=heads)


def curves(comparison: Comparison) -> dict[str, Any]:
    """What the page draws: names of costs and heights, lines of reference, each label's look and
    the points of its runs on the curve set."""
    axes = {k: name for k, name in LABELS.items() if comparison.one_clock or k != "seconds"}
    styles = line_styles(comparison.trained)
    lines = [
        {
            "label": label,
            "colour": styles[label]["color"],
            "dashes": _dashes(styles[label]["linestyle"]),
            "runs": [_points(run) for run in runs],
            "medians": {y: {x: _median(runs, x, y) for x in axes} for y in HEIGHTS},
        }
        for label, runs in comparison.trained.items()
    ]
    ce = {"clean": comparison.ce_clean, "spliced": comparison.ce_spliced}
    measured = {name for line in lines for run in line["runs"] for point in run for name in point}
    heights = {k: name for k, name in HEIGHTS.items() if k in measured}
    marks = {"ce": ce, "closed": {"spliced": 0, "clean": 1}, "kl": {"clean": 0}}
    return {"axes": axes, "heights": heights, "marks": marks, "lines": lines}


def _dashes(line: Any) -> str:
    """matplotlib's line style -> SVG's: lengths of dashes and of what is between them."""
    return "none" if line == "-" else " ".join(str(1.6 * length) for length in line[1])


def _points(run: Run) -> list[dict[str, float]]:
    """A run's evaluations up to the first that is not finite, without what was not measured."""
    _, shares = curve(run, "step")
    points = []
    for row, share in zip(finite_rows(run), shares, strict=True):
        values = {name: row.get(name) for name in ("step", *LABELS, "ce", "kl")}
        values["closed"] = share if share == share else None
        if resumed(run):  # it is on no clock
            values["seconds"] = None
        points.append({name: value for name, value in values.items() if value is not None})
    return points


def _median(runs: list[Run], axis: str, height: str) -> list[tuple[float, float, int]]:
    """(cost, height, step) as `curves.png` has its thick line, for any height."""
    if height == "closed":
        return median_curve(runs, axis, lambda run: curve(run, axis)[1], worst=-math.inf)

    def heights(run: Run) -> list[float]:
        found = [row.get(height) for row in finite_rows(run)]
        return [math.nan if value is None else value for value in found]

    return median_curve(runs, axis, heights)


def _drawn(comparison: Comparison) -> str:
    """The script of the page turns this into a figure."""
    inside = json.dumps(curves(comparison), separators=(",", ":")).replace("<", "\\u003c")
    beside = "Without JavaScript this page draws nothing: see curves.png beside it."
    return (
        f'<div class="chart"><noscript>{beside}</noscript>'
        f'<script type="application/json">{inside}</script></div>'
    )


def _commands(comparison: Comparison) -> list[str]:
    """What was typed, at which commit, by which versions."""
    headers = [run.header for run in comparison.all]
    dirty = any(header.get("dirty") for header in headers)
    commits = dict.fromkeys(str(header["commit"]) for header in headers if header.get("commit"))
    lines = [f"git checkout {commit}{'  # and changes' if dirty else ''}" for commit in commits]
    lines += dict.fromkeys(header["command"] for header in headers if header.get("command"))
    versions = headers[0].get("versions") or {}
    return [*lines, *(f"# {name} {version}" for name, version in versions.items())]


def _table(rows: list[list[str]], left: int, heads: Sequence[str] = ()) -> str:
    """So many columns are set flush left."""
    kinds = ["" if i < left else ' class="number"' for i in range(len(rows[0]))]

    def line(cells: Sequence[str], tag: str) -> str:
        each = zip(cells, kinds, strict=True)
        return f"<tr>{''.join(f'<{tag}{kind}>{escape(c)}</{tag}>' for c, kind in each)}</tr>"

    head = f"<thead>{line(heads, 'th')}</thead>" if heads else ""
    body = "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def _paragraphs(lines: Sequence[str], kind: str = "") -> str:
    opened = f'<p class="{kind}">' if kind else "<p>"
    return "".join(f"{opened}{escape(line)}</p>" for line in lines)


def _text(text: str) -> str:
    return f'<div class="wide"><pre>{escape(text)}</pre></div>'
