"""A search for step sizes: what is one, its figure and its table."""

from dataclasses import replace

import pytest

from analysis.figures import rates
from analysis.records.comparison import load
from analysis.report import report
from tests.helpers.records import SPLICED, make, write


def tried(method, field, ends, end="finished", **more):
    """Runs of a method at several values of a field: value -> CE on the curve set at the end."""
    runs = []
    for value, ce in ends.items():
        tied = {"sae_lr": value / 4} if method == "joint" else {}
        also = "".join(f":{name}={v}" for name, v in tied.items())
        config = {**more, field: value, **tied}
        label = (
            ":".join([method, *(f"{n}={v}" for n, v in more.items()), f"{field}={value}"]) + also
        )
        runs.append(make(method, losses=[SPLICED, ce], label=label, config=config, end=end))
    return runs


def searched(folder, *runs):
    (comparison,) = load(write(folder, *runs))
    return comparison


LORA = {4e-4: 3.95, 1e-3: 3.90, 2.5e-3: 3.92}
JOINT = {1e-3: 3.91, 2.5e-3: 3.89, 6e-3: 9.9}
RIDGE = {0.1: 4.01, 1.0: 3.99, 10.0: 3.98}


def test_a_line_for_each_method_over_what_was_tried(tmp_path):
    runs = [*tried("lora", "lr", LORA), *tried("joint", "lr", JOINT)]
    comparison = searched(tmp_path, *runs, *tried("ridge", "shrink", RIDGE))
    assert list(comparison.search) == ["lora", "joint", "ridge"]
    figure = rates.draw(comparison)
    steps, shrinkage = figure.axes
    assert steps.get_xlabel() == "step size" and "shrinkage" in shrinkage.get_xlabel()
    lines = [line for line in steps.lines if len(line.get_xdata()) == 3]
    assert [dict(zip(*line.get_data(), strict=True)) for line in lines] == [LORA, JOINT]
    rings = [line.get_data() for line in (*steps.lines, *shrinkage.lines) if line.get_ms() == 11]
    assert [(*x, *y) for x, y in rings] == [(1e-3, 3.90), (2.5e-3, 3.89), (10.0, 3.98)]
    assert 3.95 < steps.get_ylim()[1] < 5, "one rate that is far off does not take the panel"
    assert "CE on the curve set" in steps.get_ylabel()


def test_a_rate_that_diverged_is_not_the_best(tmp_path):
    lost = {6e-3: 3.5}
    runs = [*tried("lora", "lr", LORA), *tried("lora", "lr", lost, end="diverged")]
    (axes,) = rates.draw(searched(tmp_path, *runs)).axes
    assert next(line for line in axes.lines if line.get_ms() == 11).get_xdata() == [1e-3]


def test_a_search_in_which_all_diverged_says_so(tmp_path):
    (axes,) = rates.draw(searched(tmp_path, *tried("lora", "lr", LORA, end="diverged"))).axes
    assert [text.get_text() for text in axes.texts] == ["no run finished"]


def test_other_settings_are_another_line(tmp_path):
    decayed = {rate: ce - 0.05 for rate, ce in LORA.items()}
    runs = [*tried("lora", "lr", LORA), *tried("lora", "lr", decayed, decay=1)]
    comparison = searched(tmp_path, *runs)
    assert list(comparison.search) == ["lora", "lora:decay=1"]
    (axes,) = rates.draw(comparison).axes
    assert len({line.get_linestyle() for line in axes.lines if len(line.get_xdata()) == 3}) == 2


def test_the_loss_is_that_which_tune_chooses_by(tmp_path):
    kls = iter((0.3, 0.2, 0.1))
    runs = [
        replace(run, end={**run.end, "kl_full": [next(kls)] * 4})
        for run in tried("lora", "lr", LORA)
    ]
    (axes,) = rates.draw(searched(tmp_path, *runs)).axes
    assert list(axes.lines[0].get_ydata()) == pytest.approx([0.3, 0.2, 0.1])
    assert "KL(clean || adapted)" in axes.get_ylabel()


def test_its_table_compares_no_methods(tmp_path):
    text, paths = report(write(tmp_path, *tried("lora", "lr", LORA), *tried("e2e", "lr", LORA)))
    assert [path.name for path in paths] == ["rates.png", "rates.pdf", "table.txt", "report.html"]
    assert "A search: it chooses step sizes" in text
    assert "peedup" not in text and "concluded" not in text and "lora:lr=0.001" in text


@pytest.mark.parametrize("other", [tried("e2e", "lr", {1e-3: 3.9}), [make("mine")]])
def test_two_rates_or_another_method_make_no_search(tmp_path, other):
    text, paths = report(write(tmp_path, *tried("lora", "lr", LORA), *other))
    assert paths[0].name == "curves.png" and "A search" not in text
