"""Curves with known answers in, the same answers out."""

import math
import random

import pytest
from scipy import stats

from analysis.stats.gap import ce_difference, closed_at_end, difference
from analysis.stats.speedup import (
    cost,
    cost_to_reach,
    curve,
    largest_share,
    median_cost,
    speedup,
    speedups_by_seed,
    targets,
)
from tests.helpers.records import CLEAN, SPLICED, make

SPACINGS = {
    "doubling": [0, *(2**i for i in range(9))],
    "root": sorted({0, *(round(2 ** (i / 2)) for i in range(17))}),
    "even": list(range(0, 257, 8)),
}


def test_closed_share():
    spliced, clean, above = curve(make(losses=[SPLICED, CLEAN, 4.1]), "tokens")[1]
    assert spliced == 0 and clean == 1 and above < 0
    assert math.isnan(curve(make(losses=[3.5], ce_clean=3.6, ce_spliced=3.6), "tokens")[1][0])


def test_interpolation_is_exact_on_straight_lines():
    costs, shares = [0, 1, 3, 10], [0, 0.1, 0.3, 1.0]
    for share in (0.0, 0.05, 0.1, 0.2, 0.77, 1.0):
        assert cost_to_reach(costs, shares, share) == pytest.approx(10 * share)
    assert cost_to_reach(costs, shares, 1.01) == math.inf
    assert cost_to_reach([], [], 0.1) == math.inf


def test_first_crossing_counts():
    assert cost_to_reach([0, 1, 2, 3], [0, 0.2, 0.1, 0.3], 0.15) == pytest.approx(0.75)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("true", [1.3, 3.0])
def test_known_speedup_comes_back(spacing, true):
    """The rival needs `true` times the seconds for the same path."""
    steps = SPACINGS[spacing]
    shares = [0.3 * (1 - math.exp(-step / 40)) for step in steps]
    runs = [make("lora", seed, shares, steps, step_seconds=1.0) for seed in range(3)]
    rival = [make("e2e", seed, shares, steps, step_seconds=true) for seed in range(3)]
    for share in targets({"lora": runs, "e2e": rival}):
        assert speedup(rival, runs, share, "seconds") == pytest.approx(true, rel=0.05)
        assert speedup(rival, runs, share, "backwards") == pytest.approx(1)


@pytest.mark.parametrize("spacing", ["root", "even"])
def test_known_speedup_in_steps_comes_back(spacing):
    """The rival learns at a third of the pace, so its curve is sampled elsewhere on its path."""
    steps = SPACINGS[spacing]
    runs = [make("lora", 0, [0.3 * (1 - math.exp(-step / 60)) for step in steps], steps)]
    rival = [make("e2e", 0, [0.3 * (1 - math.exp(-step / 180)) for step in steps], steps)]
    for share in targets({"lora": runs, "e2e": rival}):
        assert speedup(rival, runs, share, "backwards") == pytest.approx(3, rel=0.05)


def test_direction_and_total():
    fast = [make("lora", step_seconds=1.0)]
    slow = [make("e2e", step_seconds=4.0)]
    assert speedup(slow, fast, 0.1, "seconds") == pytest.approx(4)
    assert speedup(fast, slow, 0.1, "seconds") == pytest.approx(0.25)
    assert speedup(slow, fast, 0.1, "seconds", total=True) == pytest.approx(104 / 101)
    assert speedup(slow, fast, 0.1, "tokens", total=True) == pytest.approx(1)
    assert cost(fast[0], 0.1, "tokens", total=True) == pytest.approx(5120 + 512)


def test_miss_is_not_a_speedup():
    reaches, misses = [make("lora")], [make("e2e", shares=(0, 0.01, 0.02))]
    assert median_cost(misses, 0.1, "seconds") == math.inf
    assert speedup(misses, reaches, 0.1, "seconds") is None
    assert speedup(reaches, misses, 0.1, "seconds") is None
    assert speedups_by_seed(misses, reaches, 0.1, "seconds") == []


def test_speedup_is_the_median_of_the_seeds_ratios():
    """Seconds 1, 2, 9 against 2, 8, 3: the ratios are 2, 4 and a third, the medians 2 and 3."""
    ours = [make("lora", seed, step_seconds=each) for seed, each in enumerate((1, 2, 9))]
    theirs = [make("e2e", seed, step_seconds=each) for seed, each in enumerate((2, 8, 3))]
    assert speedup(theirs, ours, 0.1, "seconds") == pytest.approx(2)
    assert speedups_by_seed(theirs, ours, 0.1, "seconds") == pytest.approx([2, 4, 1 / 3])
    # a seed in which the rival alone misses is above every ratio, one in which ours does below
    theirs[0] = make("e2e", 0, (0, 0.01, 0.02))
    assert speedup(theirs, ours, 0.1, "seconds") == pytest.approx(4)
    ours[1] = make("lora", 1, (0, 0.01, 0.02))
    assert speedup(theirs, ours, 0.1, "seconds") == pytest.approx(1 / 3)
    elsewhere = [make("lora", seed) for seed in (7, 8, 9)]
    assert speedup(theirs, elsewhere, 0.1, "seconds") is None


def test_method_without_backward_passes_has_no_speedup_in_them():
    free, paid = [make("mse", backwards=0)], [make("e2e")]
    assert speedup(paid, free, 0.1, "backwards") is None
    assert speedup(free, paid, 0.1, "backwards") is None
    assert speedup(paid, free, 0.1, "seconds") == pytest.approx(1)


def test_miss_counts_as_infinite_in_the_median():
    runs = [make("lora", seed, step_seconds=1 + seed) for seed in range(3)]
    runs[2] = make("lora", 2, (0, 0.01, 0.02))
    assert median_cost(runs, 0.1, "seconds") == pytest.approx(2)
    runs[1] = make("lora", 1, (0, 0.01, None), end="diverged")
    assert median_cost(runs, 0.1, "seconds") == math.inf


@pytest.mark.parametrize("end", ["interrupted", "error", None])
def test_run_cut_short_is_not_ranked(end):
    assert median_cost([make("lora", end=end)], 0.1, "seconds") is None
    assert median_cost([make("lora", end=end), make("lora", 1)], 0.1, "seconds") == pytest.approx(1)


@pytest.mark.parametrize("where", ["header", "timing", "end"])
def test_resumed_run_is_not_ranked_on_seconds(where):
    marks = {"header": {"segments": 2}, "timing": {"timing": "resumed"}}
    run = make("lora", **marks.get(where, {}))
    if where == "end":
        run.end["segments"] = 2
    assert cost(run, 0.1, "seconds") is None
    assert cost(run, 0.1, "backwards") == pytest.approx(1)


def test_seconds_of_two_clocks_are_not_compared():
    here, there = [make("lora")], [make("e2e", machine="other")]
    assert speedup(there, here, 0.1, "seconds") is None
    assert speedup(there, here, 0.1, "tokens") == pytest.approx(1)


def test_seconds_of_an_sae_from_another_clock_are_not_added():
    cost_elsewhere = {"seconds": 9.0, "tokens": 5, "device": "cuda", "threads": 2}
    run = make("lora", sae_cost=cost_elsewhere)
    assert cost(run, 0.1, "seconds", total=True) is None
    assert cost(run, 0.1, "tokens", total=True) == pytest.approx(517)
    assert cost(make("lora", sae_cost=None), 0.1, "tokens", total=True) is None
    fresh = make("lora", sae_cost=None, sae={"source": "fresh", "sha256": "f"})
    assert cost(fresh, 0.1, "seconds", total=True) == pytest.approx(1)


def test_curve_ends_before_a_loss_that_is_not_finite():
    assert curve(make(shares=(0.0, 0.1, None)), "tokens")[0] == [0, 512]


def test_targets_are_even_shares_of_what_two_labels_reach():
    best = make("lora", shares=(0, 0.9))
    second = make("e2e", shares=(0, 0.2))
    third = make("mse", shares=(0, 0.1))
    runs = {"lora": [best], "e2e": [second], "mse": [third]}
    assert targets(runs) == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert targets(runs, count=2) == pytest.approx([0.1, 0.2])
    assert all(median_cost([second], share, "tokens") < math.inf for share in targets(runs))
    assert targets({"lora": [best]}) == pytest.approx([0.225, 0.45, 0.675, 0.9])
    assert targets({"none": [make("none", shares=[0.0])]}) == []
    assert targets({"lora": [make(shares=(0, -0.1))], "e2e": [second]}) == []


def test_targets_use_what_most_seeds_reach():
    lora = [make("lora", seed, (0, best)) for seed, best in enumerate((0.4, 0.2, 0.1))]
    assert largest_share({"lora": lora, "e2e": [make("e2e", shares=(0, 0.9))]}) == pytest.approx(
        0.2
    )
    two = {"lora": lora[:2], "e2e": [make("e2e", shares=(0, 0.9))]}
    assert median_cost(lora[:2], largest_share(two) - 1e-9, "tokens") < math.inf


def test_standard_error_of_the_closed_share_agrees_with_a_bootstrap():
    drawn = random.Random(0)
    clean = [drawn.gauss(3.5, 0.4) for _ in range(60)]
    gaps = [abs(drawn.gauss(0.3, 0.1)) for _ in clean]
    gains = [0.2 * gap + drawn.gauss(0, 0.02) for gap in gaps]
    spliced = [c + gap for c, gap in zip(clean, gaps, strict=True)]
    closed = closed_at_end(
        [make(gains=gains, ce_full_clean=clean, ce_full_spliced=spliced)],
    )
    shares = []
    for _ in range(4000):
        at = drawn.choices(range(60), k=60)
        shares.append(sum(gains[i] for i in at) / sum(gaps[i] for i in at))
    mean = sum(shares) / len(shares)
    spread = math.sqrt(sum((share - mean) ** 2 for share in shares) / len(shares))
    assert closed.value == pytest.approx(sum(gains) / sum(gaps))
    assert closed.error == pytest.approx(spread, rel=0.1)


def test_closed_share_counts_seeds_as_well_as_documents():
    """Seeds that err in opposite directions on a document leave an error over seeds alone."""
    up = make(seed=0, gains=[0.15, 0.10, 0.08, 0.14])
    down = make(seed=1, gains=[0.05, 0.06, 0.04, 0.06])
    closed = closed_at_end([up, down])
    # spliced - clean is 0.5, 0.4, 0.3, 0.5; the mean gain is a fifth of each
    assert closed.value == pytest.approx(0.2)
    shares = [0.47 / 1.7, 0.21 / 1.7]
    assert closed.error == pytest.approx(stats.sem(shares), rel=0.05)
    assert closed.df == pytest.approx(1, abs=0.1)
    assert closed.low < 0 < 0.4 < closed.high
    assert (closed.seeds, closed.documents, closed.over) == (2, 4, "seeds and documents")
    alone = closed_at_end([up])
    assert (alone.low, alone.high, alone.over) == (None, None, "documents")


def test_closed_share_in_kl():
    """KL of the spliced model is the gap, as the clean model's own is 0."""
    runs = [make(seed=seed, kl_full_spliced=[0.5, 0.6, 0.4, 0.5]) for seed in (0, 1)]
    assert closed_at_end(runs, "kl") is None, "records without KL at the end"
    for run, kept in zip(runs, (0.7, 0.8), strict=True):
        run.end["kl_full"] = [kept * kl for kl in run.header["kl_full_spliced"]]
    closed = closed_at_end(runs, "kl")
    assert closed.value == pytest.approx(0.25) and closed.seeds == 2
    assert closed_at_end(runs) is None, "no CE at the end"
    found = ce_difference(runs[:1], runs[1:], "kl")
    assert (found.value, found.seeds) == (pytest.approx(-0.05), 0)
    assert ce_difference(runs, runs) is None


@pytest.mark.parametrize(("wide", "told"), [(0.12, True), (0.125, False)])
def test_a_share_takes_a_gap_two_errors_above_0(wide, told):
    """Gaps of mean 0.1 with the error wide / sqrt(6), the same for either seed."""
    spliced = [3.1, 3.1 + wide, 3.1, 3.1 - wide]
    losses = {"ce_full_clean": [3.0] * 4, "ce_full_spliced": spliced}
    runs = [make(seed=seed, gains=[0.01] * 4, **losses) for seed in (0, 1)]
    assert (closed_at_end(runs) is not None) == told


def test_closed_share_without_its_measurements():
    assert closed_at_end([make(end="diverged")]) is None
    assert closed_at_end([make(gains=[0.1] * 4, ce_full_spliced=[3.0, 3.5, 3.4, 3.1])]) is None
    one = make(gains=[0.1], ce_full_clean=[3.0], ce_full_spliced=[3.5])
    assert closed_at_end([one]).error is None


def test_difference_is_paired_by_document():
    ours = [make("lora", gains=[0.10, 0.08, 0.06, 0.10])]
    theirs = [make("e2e", gains=[0.08, 0.06, 0.04, 0.08])]
    found = ce_difference(ours, theirs)
    assert found.value == pytest.approx(-0.02)
    assert found.error == pytest.approx(0, abs=1e-12)
    assert found.seeds == 1
    assert found.low is None and not found.distinguishable, "one seed alone"
    noisy = ce_difference(ours, [make("e2e", gains=[0.0, 0.2, 0.0, 0.12])])
    # differences -0.1, 0.12, -0.06, 0.02: mean -0.005, sd 0.0971, standard error 0.0486
    assert noisy.error == pytest.approx(0.0486, abs=1e-4)
    assert noisy.over == "documents"
    assert ce_difference(ours, [make("e2e", end="error")]) is None


def test_difference_by_seeds_of_one_s_own():
    found = difference({0: [3.0, 4.0], 1: [3.2, 4.2]}, {0: [3.1, 4.3], 1: [3.0, 4.2]})
    assert found.value == pytest.approx(-0.05)
    assert found.seeds == 2
    assert not found.distinguishable
    theirs = {seed: [3.0 + 0.1 * seed, 4.0, 5.0] for seed in (0, 1)}
    lower = {
        seed: [loss - 0.2 - 0.01 * i for i, loss in enumerate(theirs[seed])] for seed in theirs
    }
    assert difference(lower, theirs).distinguishable and difference(theirs, lower).distinguishable


def test_two_seeds_do_not_tell_apart_what_is_four_errors_below_0():
    theirs = {0: [3.0, 4.0, 5.0], 1: [3.2, 4.2, 5.1]}
    ours = {s: [loss - (0.15, 0.25)[s] for loss in losses] for s, losses in theirs.items()}
    found = difference(ours, theirs)
    assert (found.value, found.error) == pytest.approx((-0.2, 0.05))
    assert found.low < 0 < found.high and not found.distinguishable


def test_difference_of_runs_that_share_no_seed_has_no_interval():
    found = difference({0: [3.0, 4.0], 1: [3.2, 4.2]}, {5: [3.1, 4.3]})
    assert found.value == pytest.approx(-0.1)
    assert (found.seeds, found.low) == (0, None)
