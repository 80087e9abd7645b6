"""What the last lines of the table say: who is better, who is not told apart, who took longer."""

import random

import pytest

from analysis.records.comparison import Comparison
from analysis.tables.comparison import results, table
from analysis.tables.conclusions import conclusions
from tests.helpers.records import make

SPLICED = [0.5] * 8


def runs(label, ce=0.0, kl=None, seeds=3, seconds=16.0, steps=16, noise=0.02):
    """Runs of a label that end at `ce` above the clean model, and at a KL of `kl`, give or take."""
    drawn, found = random.Random(label), []
    for seed in range(seeds):
        losses = {"ce_full_clean": [3.0] * 8, "ce_full_spliced": [3.5] * 8}
        made = make(
            label.partition(":")[0],
            seed,
            [0.0, 0.1],
            [0, steps],
            seconds / steps,
            label=label,
            gains=[0.5 - ce + drawn.gauss(0, noise) for _ in SPLICED],
            **losses,
        )
        if kl is not None:
            made.header["kl_full_spliced"] = SPLICED
            made.end["kl_full"] = [kl + drawn.gauss(0, noise) for _ in SPLICED]
        found.append(made)
    return found


def said(*sides):
    """The conclusions on these labels' runs, unwrapped."""
    text = conclusions(Comparison({side[0].label: side for side in sides}))
    assert all(len(line) <= 80 for line in text.splitlines())
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        ({"ce": 0.1, "kl": 0.1}, {"ce": 0.3, "kl": 0.3}, "lora is better (difference -0.2"),
        ({"ce": 0.3}, {"ce": 0.1}, "e2e is better (difference +0.2"),
        ({"ce": 0.1, "kl": 0.1}, {"ce": 0.3, "kl": 0.3}, "documents). KL says the same (-0."),
        ({"ce": 0.1, "kl": 0.3}, {"ce": 0.3, "kl": 0.1}, "documents). KL says the opposite (+0."),
        ({"ce": 0.1}, {"ce": 0.101}, "lora and e2e: not told apart (difference "),
        ({"ce": 0.1, "kl": 0.1}, {"ce": 0.101, "kl": 0.101}, "documents). KL says the same ("),
        ({"ce": 0.1, "kl": 0.1}, {"ce": 0.3, "kl": 0.101}, "KL does not tell them apart ("),
        (
            {"ce": 0.1, "kl": 0.3},
            {"ce": 0.101, "kl": 0.1},
            "KL does tell them apart, e2e is better (+0.",
        ),
    ],
)
def test_who_is_better(ours, theirs, told):
    text = said(runs("lora", **ours), runs("e2e", **theirs))
    assert told in text and "nats CE; 3 seeds, 8 documents)" in text
    assert ("KL" in text) == ("kl" in ours)


def test_one_seed_decides_nothing():
    text = said(runs("lora", 0.1, seeds=1), runs("e2e", 0.3, seeds=1))
    assert text.endswith("one seed: nothing may be concluded about which is better.")
    apart = [[run for run in runs(label, seeds=2) if run.header["seed"] == n] for label, n in BOTH]
    assert "no common seed: nothing may be concluded" in said(*apart)


BOTH = (("lora", 0), ("e2e", 1))


def test_one_sae_for_all_seeds_says_nothing_of_another():
    sides = runs("lora", 0.1), runs("e2e", 0.3)
    caveat = "All seeds are around one SAE: nothing is said of another."
    assert caveat in said(*sides)
    for run in [run for side in sides for run in side]:
        run.header["sae"] = {**run.header["sae"], "sha256": f"of seed {run.header['seed']}"}
    assert caveat not in said(*sides)
    assert caveat not in said(*(runs(label, seeds=1) for label in ("lora", "e2e")))


def test_a_diverged_label_decides_nothing():
    ended = runs("e2e")
    for run in ended:
        run.end.pop("ce_full")
    assert "no CE per document, nothing may be concluded" in said(runs("lora"), ended)


def test_pairs_of_three_labels_and_the_rival_s_of_more():
    three = [runs("lora"), runs("e2e"), runs("mse")]
    text = said(*three)
    for pair in ("lora and e2e:", "lora and mse:", "e2e and mse:"):
        assert text.count(pair) == 1
    assert "in 5% of cases; here are 3 pairs." in text
    four = said(*three, runs("affine"))
    assert "lora and mse:" not in four and "affine and e2e:" in four
    assert said(runs("lora")) == ""


@pytest.mark.parametrize(
    ("label", "seconds", "steps", "told"),
    [
        ("mse", 16.0, 16, ""),
        ("mse", 12.9, 16, ""),
        ("mse", 4.0, 16, "(lora 16, mse 4): this says nothing about equal cost. With mse:steps=4x"),
        (
            "mse",
            40.0,
            16,
            "(mse 40, lora 16): this says nothing about equal cost. With mse:steps=0.",
        ),
        ("mse:steps=2x", 8.0, 32, "With mse:steps=4x they would be about equal."),
        ("mse:lr=0.1:steps=2x", 8.0, 32, "With mse:lr=0.1:steps=4x they would"),
        ("e2e", 4.0, 16, "(lora 16, e2e 4): this says nothing about equal cost."),
    ],
)
def test_unequal_seconds(label, seconds, steps, told):
    sides = runs("lora"), runs(label, seconds=seconds, steps=steps)
    for side in sides:
        for run in side:
            run.header["spec"] = {"steps": 16}
    text = said(*sides)
    assert told in text and ("seconds are not equal" in text) == bool(told)
    assert ("With" in text) == ("With" in told)


def test_two_of_mse_get_no_advice():
    text = said(runs("mse"), runs("mse:steps=4x", seconds=64.0, steps=64))
    assert "seconds are not equal" in text and "With" not in text


def test_seconds_of_several_clocks_are_not_compared():
    other = runs("mse", seconds=4.0)
    for run in other:
        run.header["threads"] = 8
    assert "seconds" not in said(runs("lora"), other)


def test_the_table_has_kl_where_it_was_measured_and_stays_narrow():
    sides = runs("lora:steps=64", 0.4, 0.4), runs("e2e", 0.45, 0.45)
    comparison = Comparison({side[0].label: side for side in sides})
    heads, lora, e2e = (line.split() for line in results(comparison).splitlines()[1:4])
    assert " ".join(heads) == "method CE KL CE gap closed KL gap closed"
    assert lora[1][:4] == "3.40" or lora[1][:4] == "3.39"
    assert float(lora[2]) == pytest.approx(0.4, abs=0.02)
    assert float(lora[6].strip("%")) == pytest.approx(20, abs=4) and lora[7].startswith("[")
    assert max(map(len, table(comparison).splitlines())) <= 80


def test_runs_that_are_not_finished_are_counted_by_name():
    sides = runs("lora"), runs("e2e")
    sides[1][2].end["end"] = "diverged"
    text = results(Comparison({side[0].label: side for side in sides}))
    assert text.splitlines()[-2].endswith(" 3")
    assert text.splitlines()[-1].endswith("2 finished, 1 diverged")
