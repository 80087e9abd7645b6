"""The frontier's records in, its figure out."""

from statistics import fmean

import pytest

from analysis import figures
from analysis.figures.frontier import _apart
from tests.helpers.frontier import (
    STEPS,
    T,
    arm,
    by_document,
    changed,
    elsewhere,
    loaded,
    planned,
    trunk_kl,
)


def test_the_figure_is_to_scale_and_names_what_it_shows(tmp_path):
    entries = planned()
    whole = loaded(tmp_path, entries)
    figure = figures.draw(whole)
    left, right = figure.axes
    names = [text.get_text() for text in right.texts]
    assert "going on with reconstruction, 20%" in names and "LoRA and SAE together, 42%" in names
    assert not any("sae-lora" in name or "e2e" in name for name in names)
    assert "SmolLM2-135M-Instruct Q4_1, SAE after block 15 · 3 seeds" in figure.get_suptitle()
    start = fmean(by_document(trunk_kl(0.75 * T) * 1.03))
    lines = [line for line in right.lines if len(line.get_xdata()) == len(STEPS)]
    assert len(lines) == 11
    for line in lines:
        assert line.get_xdata()[0] == pytest.approx(0.75 * T) and line.get_xdata()[-1] == T
        assert line.get_ydata()[0] == pytest.approx(start), "not scaled to the validation set"
    runs = whole.runs("lora", fork=0.25, sae="own")
    end = fmean(fmean(run.end["kl_full"]) for run in runs)
    points = [line for line in right.lines if len(line.get_xdata()) == 1]
    assert any(p.get_ydata()[0] == pytest.approx(end) and p.get_xdata()[0] == T for p in points)
    bold = next(line for line in lines if line.get_color() == "#000000")
    assert bold.get_linewidth() > 2
    low, high = right.get_ylim()
    assert low < end < start < high
    assert left.get_xscale() == left.get_yscale() == "log"


def test_the_title_counts_the_seeds_of_arms_not_of_the_trunk(tmp_path):
    entries = planned(roles=("mse", "lora"), controls=())
    fewer = [e for e in entries if (e[0], e[1]) != ("lora", 2)]
    trunks = [e for e in entries if e[0] == "trunk" or e[1] != 2]
    for folder, part, said in (("a", fewer, "2 to 3 seeds"), ("b", trunks, "· 2 seeds")):
        assert said in figures.draw(loaded(tmp_path / folder, part)).get_suptitle()


def test_arms_that_are_not_drawn_are_named_within_the_page_and_not_counted(tmp_path):
    entries = planned(controls=())
    entries = [e for e in entries if e[1] == 0 or e[0] in ("trunk", "mse", "lora")]
    for role in {e[0] for e in entries} - {"trunk", "mse", "lora"}:
        entries = changed(entries, elsewhere, role)
    figure = figures.draw(loaded(tmp_path, entries))
    lines = figure.get_supxlabel().splitlines()
    assert sum("Not drawn" in line for line in lines) == 1 and max(map(len, lines)) <= 165
    assert " · 3 seeds · " in figure.get_suptitle()


def test_the_part_is_named_above_a_curve_that_first_rises(tmp_path):
    def rises(run):
        run.rows[1]["kl"] *= 1.3
        return run

    left = figures.draw(loaded(tmp_path, changed(planned(), rises, "mse"))).axes[0]
    bold = next(line for line in left.lines if line.get_linewidth() > 2)
    label = next(text for text in left.texts if text.get_text() == "last 25%")
    assert label.xy[1] == max(bold.get_ydata()) > bold.get_ydata()[0]


def test_the_whole_range_shows_every_end_however_wide_its_interval(tmp_path):
    entries = planned(seeds=(0, 1), roles=("mse", "lora"), forks=(), controls=())
    shares = iter((0.2, 0.5))
    wide = changed(entries, lambda run: arm("lora", run.header["seed"], share=next(shares)), "lora")
    for axes in figures.draw(loaded(tmp_path, wide)).axes:
        low, high = axes.get_ylim()
        assert low > 0.1, "an interval that reaches below 0 does not take the panel"
        ends = [line for line in axes.lines if line.get_marker() in ("^", "o")]
        curves = [line for line in axes.lines if len(line.get_xdata()) == len(STEPS)]
        assert len(ends) == len(curves) == 2
        assert all(low < line.get_ydata()[-1] < high for line in ends + curves)


def test_names_beside_a_panel_never_overlap():
    places = _apart([0.99, 0.98, 0.5, 0.5, 0.499, 0.03, 0.02, 0.0])
    steps = [above - below for above, below in zip(places, places[1:], strict=False)]
    assert min(steps) > 0.05 and places[-1] >= 0 and places[0] < 1
