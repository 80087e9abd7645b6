"""Intervals that the pages state stand in what the analysis has printed of the records."""

import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/limits.md", "docs/experiments.md", "results/frontier/README.md")
PRINTED = [*ROOT.glob("results/**/*.txt"), *ROOT.glob("results/**/*.md")]
PRINTED = [path for path in PRINTED if path.name != "README.md"]
NUMBER = r"[+-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
STATED = re.compile(rf"\(({NUMBER})(?: to |-)({NUMBER})[^-\w]")
"""`(3.8 to 9.6`, `(3.8-9.6`: the value is a number shortly before it."""
INTERVAL = re.compile(rf"({NUMBER})\s*[\[(](?:95: )?({NUMBER})(?:,| to)\s*({NUMBER})[\])]")
"""`+6.7 [+3.8, +9.6]`, `-51.0% (95%: -59.0% to -43.1%)`."""
BEFORE = 90
"""Characters before an interval that may have its value."""


def plain(text):
    return text.replace("−", "-").replace("%", "").replace("*", "")


def number(text):
    """(its value, its digits after the point)."""
    return float(text.replace(",", "")), len(text.partition(".")[2])


def printed():
    texts = (plain(path.read_text(encoding="utf-8")) for path in PRINTED)
    found = (match.groups() for text in texts for match in INTERVAL.finditer(text))
    return [tuple(map(number, parts)) for parts in found]


def stated(text):
    """(numbers before an interval, its ends) of each interval of a page."""
    text = plain(text)
    for found in STATED.finditer(text):
        before = re.findall(NUMBER, text[max(0, found.start() - BEFORE) : found.start()])
        yield [number(one) for one in before], number(found[1]), number(found[2])


def same(one, printed, times):
    """Whether both may be roundings of one number, of `printed` as so many times that."""
    (value, digits), (other, more) = one, printed
    near = (10**-digits + abs(times) * 10**-more) / 2
    return abs(value - times * other) < 1.001 * near


def stands_in(known, values, low, high):
    """Whether a printed interval is the stated one: also as a share in percent, and of the
    difference the other way round, where the text says which is larger."""
    for times, (value, *ends) in product((1, 100, -1, -100), known):
        first, last = ends if times > 0 else reversed(ends)
        ends_are = same(low, first, times) and same(high, last, times)
        if ends_are and any(same(v, value, t) for v, t in product(values, (times, -times))):
            return True
    return False


@pytest.mark.parametrize("page", PAGES)
def test_an_interval_of_a_page_was_printed(page):
    known = printed()
    assert len(known) > 100
    missing = [
        f"({low[0]} to {high[0]}) after {[value for value, _ in values][-4:]}"
        for values, low, high in stated((ROOT / page).read_text(encoding="utf-8"))
        if not stands_in(known, values, low, high)
    ]
    assert missing == []


def test_another_number_is_found():
    known = [((0.0388, 4), (0.0334, 4), (0.0442, 4))]
    assert stands_in(known, [(0.6, 1), (3.9, 1)], (3.3, 1), (4.4, 1))
    for values, low, high in (
        ([(3.8, 1)], (3.3, 1), (4.4, 1)),
        ([(3.9, 1)], (3.4, 1), (4.4, 1)),
        ([(3.9, 1)], (3.3, 1), (4.5, 1)),
    ):
        assert not stands_in(known, values, low, high)


@pytest.mark.parametrize("folder", ["frontier", "laptop"])
def test_what_was_printed_is_printed_again(folder):
    place = ROOT / "results" / folder
    again = subprocess.run([sys.executable, place / "more.py"], capture_output=True, cwd=ROOT)
    assert again.stdout.decode() == (place / "more.txt").read_text(encoding="utf-8")
