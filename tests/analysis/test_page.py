"""report.html: what it says, and what a browser makes of it."""

import json
import re
import shutil
import subprocess
from statistics import median

import pytest

from analysis.figures.comparison import draw
from analysis.page import curves, page
from analysis.records.comparison import Comparison, load
from analysis.report import report
from analysis.tables.conclusions import sentences
from tests.helpers.records import CLEAN, SPLICED, make, rivals, write

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


def test_one_file_says_what_the_table_says(tmp_path):
    runs = rivals(command="bench compare --methods lora", commit="c0ffee", dirty=True)
    write(tmp_path, *runs)
    text, paths = report(tmp_path)
    whole = (tmp_path / "report.html").read_text()
    assert tmp_path / "report.html" in paths
    [comparison] = load(tmp_path)
    for said in sentences(comparison):
        assert said in whole and said[:40] in text
    for cell in ("e2e", "20.0% [", "bench compare --methods lora", "c0ffee  # and changes"):
        assert cell in whole
    assert not re.findall(r"(?:src|href)=|url\((?!#)|@import|fetch\(", whole)
    assert len(whole) < 100_000


def test_what_a_record_says_is_text_and_no_part_of_the_page():
    bad = "</script><script>alert(1)</script>"
    spec = {"model": bad, "site": bad}
    runs = rivals((0,), spec=spec, command=bad)
    for run in runs:
        run.header["label"] += bad
    whole = page([Comparison({run.label: [run] for run in runs})])
    assert "alert" in whole and "<script>alert" not in whole


def test_the_thick_line_counts_seeds_as_the_figure_does():
    """One that diverged is the worst, one that was interrupted says nothing."""
    runs = [make(seed=seed, shares=(0, 0.1 + seed / 100, 0.2 + seed / 100)) for seed in range(2)]
    runs += [make(seed=2, shares=(0, 0.3, None), end="diverged")]
    runs += [make(seed=3, shares=(0, 0.9), end=None)]
    comparison = Comparison({"lora": runs})
    [line] = curves(comparison)["lines"]
    closed = [height for _, height, _ in line["medians"]["closed"]["seconds"]]
    assert closed == pytest.approx([0, 0.11, 0.20])
    assert len(line["runs"]) == 4
    panel = draw(comparison).axes[0]
    thick = max(panel.lines, key=lambda each: (each.get_linewidth(), len(each.get_xdata())))
    assert [SPLICED - (SPLICED - CLEAN) * share for share in closed] == pytest.approx(
        list(thick.get_ydata())
    )
    for run in runs[:3]:
        run.end["end"] = "diverged"
    for run in runs[:2]:
        run.rows[-1]["ce"] = None
    [line] = curves(comparison)["lines"]
    assert [step for *_, step in line["medians"]["ce"]["tokens"]] == [0, 1]


def test_of_random_weights_nothing_is_drawn():
    whole = page([Comparison({"lora": [make(weights="random")]})])
    assert "a CE means nothing here" in whole and 'class="chart"' not in whole


PROBE = """
<script>
const all = what => [...document.querySelectorAll(what)];
const seen = { medians: all(".median").length, thin: all(".figure path").length };
const last = all("circle").findLast(point => point.getAttribute("fill") === "#0072B2");
const at = last.getBoundingClientRect();
last.closest("svg").dispatchEvent(new PointerEvent("pointermove",
  { clientX: at.x + at.width / 2, clientY: at.y + at.height / 2 }));
seen.tip = document.querySelector(".tip").innerText;
document.querySelector("button").click();
seen.without = all(".median").length;
const [heights, axes] = all("select");
heights.value = "ce"; heights.onchange();
axes.value = "tokens"; axes.onchange();
document.querySelector("input").click();
seen.named = document.querySelector(".figure svg").getAttribute("aria-label");
seen.drawn = all(".median").every(path => !path.getAttribute("d").includes("NaN"));
document.documentElement.style.width = "WIDTHpx";
const free = all("body *").filter(each => !each.parentElement.closest(".wide"));
seen.wide = Math.max(...free.map(each => each.getBoundingClientRect().right));
seen.back = getComputedStyle(document.body).backgroundColor;
document.title = JSON.stringify(seen);
</script>
"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_it_and_answers(width, dark, tmp_path):
    """Every curve is there, a point says its value, choices are followed, nothing runs over."""
    runs = rivals(spec={"model": "m" * 90, "site": "s" * 90})
    named = {"lora": "lora", "e2e": "e2e:" + "x" * 80}
    labels = {k: [r for r in runs if r.header["method"] == method] for method, k in named.items()}
    (tmp_path / "report.html").write_text(
        page([Comparison(labels)]) + PROBE.replace("WIDTH", str(width))
    )
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    command = [BROWSER, *options, *scheme, "--dump-dom", tmp_path / "report.html"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=120)
    seen = json.loads(re.search("<title>(.*)</title>", made.stdout)[1])
    best = median(0.2 * (1 + 0.01 * seed) for seed in range(3))
    assert seen["medians"] == 2 and seen["thin"] == 2 + 6
    assert seen["tip"].startswith("lora (median of 3 seeds)")
    assert f"{100 * best:.4g}% at 20 seconds of training, step 20" in seen["tip"]
    assert seen["without"] == 1 and seen["drawn"]
    assert seen["named"] == "CE, nats against tokens of training"
    assert seen["wide"] <= width
    assert (seen["back"] == "rgb(255, 255, 255)") != dark
