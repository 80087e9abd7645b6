"""Against an SAE trained from scratch, by both definitions: a known speedup in, the same out."""

import math

import pytest

from analysis.stats.speedup import Ratio, ce_at, over_seeds, to_same_ce, whole_runs
from tests.analysis.test_speedup import SPACINGS
from tests.helpers.records import make, scratch


def decaying(spacing="root", fresh=3.7, adapted=3.75, **header):
    """(e2e from scratch, LoRA on an SAE of 100 s and 5,120 tokens): CE falls exponentially."""
    steps = SPACINGS[spacing]
    e2e = [fresh + 6 * math.exp(-step / 50) for step in steps]
    lora = [adapted + 0.25 * math.exp(-step / 40) for step in steps]
    rival = scratch("e2e", e2e, steps, step_seconds=2.0, backwards=3)
    return rival, make("lora", losses=lora, steps=steps, step_seconds=1.5, **header)


TRUE_COSTS = {"seconds": (2.0, 100, 1.5), "backwards": (3, 0, 1), "tokens": (512, 5120, 512)}
"""Axis -> (a step of e2e, the SAE, a step of LoRA) in `decaying`."""


@pytest.mark.parametrize("axis", TRUE_COSTS)
@pytest.mark.parametrize("spacing", ["root", "even"])
@pytest.mark.parametrize("ce", [3.95, 3.9, None])
def test_known_speedup_to_the_same_ce_comes_back(axis, spacing, ce):
    scratch_step, sae, step = TRUE_COSTS[axis]
    rival, run = decaying(spacing)
    target = ce or run.rows[-1]["ce"]
    theirs = scratch_step * 50 * math.log(6 / (target - 3.7))
    steps = 40 * math.log(0.25 / (target - 3.75)) if ce else run.rows[-1]["step"]
    found = to_same_ce(rival, run, axis, ce)
    assert found.value == pytest.approx(theirs / (sae + step * steps), rel=0.05)
    assert not found.at_least


def test_few_evaluations_flatter_and_by_how_much():
    """The line between two evaluations lies above a curve that falls ever more slowly, so that
    what `scratch` needs reads too high: with twice the steps each time by up to a fifth."""
    even, doubling = (
        [to_same_ce(*decaying(spacing), "tokens", ce).value for ce in (4.0, 3.9, 3.8)]
        for spacing in ("even", "doubling")
    )
    for true, read in zip(even, doubling, strict=True):
        assert 0.95 * true < read < 1.2 * true


@pytest.mark.parametrize("axis", TRUE_COSTS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_known_speedup_by_whole_runs_comes_back(axis, spacing):
    scratch_step, sae, step = TRUE_COSTS[axis]
    rival, run = decaying(spacing)
    true = 256 * scratch_step / (sae + 256 * step)
    assert whole_runs(rival, run, axis).value == pytest.approx(true, rel=0.05)


def test_ce_that_training_from_scratch_never_reaches_gives_a_lower_bound():
    rival, run = decaying(fresh=3.8)
    assert to_same_ce(rival, run, "seconds") == Ratio(pytest.approx(512 / (100 + 384)), True)
    assert to_same_ce(rival, run, "seconds", 3.6) is None, "a CE that neither reaches"


def test_the_sae_is_charged_whole_for_a_ce_that_it_has():
    rival, run = decaying()
    theirs = 2 * 50 * math.log(6 / 0.5)
    assert to_same_ce(rival, run, "seconds", 4.2).value == pytest.approx(theirs / 100, rel=0.05)


@pytest.mark.parametrize(
    "header, axes",
    [
        ({"machine": "other"}, ["backwards", "tokens"]),
        ({"segments": 2}, ["backwards", "tokens"]),
        ({"sae_cost": None}, []),
        ({"sae_cost": {"seconds": 9.0, "tokens": 5, "device": "cuda"}}, ["tokens"]),
        ({"ce_clean": 3.0}, []),
        ({"end": "interrupted"}, []),
    ],
)
def test_what_is_not_comparable_has_no_speedup(header, axes):
    rival, run = decaying(**header)
    for axis in TRUE_COSTS:
        for found in (to_same_ce(rival, run, axis), whole_runs(rival, run, axis)):
            assert (found is not None) == (axis in axes)


def test_median_over_seeds_knows_of_lower_bounds():
    assert over_seeds([Ratio(2), Ratio(3, True)]) == Ratio(2.5, True)
    assert over_seeds([Ratio(2), Ratio(3), Ratio(4, True)]) == Ratio(3)
    assert over_seeds([Ratio(2), Ratio(3, True), Ratio(4)]) == Ratio(3, True)


def test_ce_at_a_cost():
    run = make(losses=[4.0, 3.8, 3.7])
    assert [ce_at(run, "tokens", at) for at in (0, 256, 512, 9999)] == pytest.approx(
        [4.0, 3.9, 3.8, 3.7]
    )
