"""Errors over seeds and documents: simulated experiments, limits and numbers worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.stats.crossed import Estimate, bootstrap, crossed, equivalence, holm, of_seeds, ratio

TIMES = 1_000
"""Simulated experiments; chance moves a coverage of 95% by 0.7%."""

SEED, DOCUMENT, BOTH, WEAK, NEITHER = (2, 0), (0, 2), (1, 2), (0.2, 0.2), (0, 0)
"""Standard deviations of the effects of a seed and of a document; that of the rest is 1."""


def experiments(shape, effects, mean=0.0, times=TIMES):
    """Simulated values of [seed][document], `times` of them."""
    drawn, (seeds, documents) = np.random.default_rng(7), shape
    for _ in range(times):
        of_seeds = drawn.normal(0, effects[0], (seeds, 1))
        of_documents = drawn.normal(0, effects[1], (1, documents))
        yield mean + of_seeds + of_documents + drawn.normal(0, 1, shape)


@pytest.mark.parametrize(
    ("shape", "effects", "least", "most"),
    [
        ((5, 32), SEED, 93, 97),
        ((5, 32), DOCUMENT, 93, 97),
        ((5, 32), BOTH, 93, 97),
        ((5, 32), WEAK, 94, 98),
        ((5, 32), NEITHER, 97, 99.5),
        ((3, 32), SEED, 93, 97),
        ((3, 32), DOCUMENT, 93, 97),
        ((3, 32), BOTH, 91.5, 95),
        ((3, 32), WEAK, 94, 98),
        ((3, 32), NEITHER, 97, 99.5),
        ((5, 8), SEED, 93, 97),
        ((5, 8), DOCUMENT, 93, 97),
        ((5, 8), BOTH, 93, 97),
        ((5, 8), WEAK, 97, 99.5),
        ((5, 8), NEITHER, 98, 100),
        ((2, 32), BOTH, 87, 92),
    ],
)
def test_intervals_cover_as_often_as_they_say(shape, effects, least, most):
    found = [crossed(values) for values in experiments(shape, effects)]
    covered = sum(each.low <= 0 <= each.high for each in found)
    assert least <= 100 * covered / TIMES <= most


def test_the_variance_is_without_bias():
    drawn = [crossed(values) for values in experiments((5, 32), (1, 2))]
    true = 1 / 5 + 4 / 32 + 1 / 160
    assert np.mean([each.error**2 for each in drawn]) == pytest.approx(true, rel=0.06)
    assert np.std([each.value for each in drawn]) == pytest.approx(math.sqrt(true), rel=0.06)


@pytest.mark.parametrize("axis", [0, 1])
def test_where_one_of_the_two_says_nothing_it_is_a_one_sample_t_test(axis):
    means = [0.3, -0.1, 0.9, 0.4, 0.2]
    found = crossed(np.repeat(np.expand_dims(means, 1 - axis), 9, 1 - axis))
    known = stats.ttest_1samp(means, 0.1)
    assert found.df == pytest.approx(known.df)
    assert found.p(0.1) == pytest.approx(known.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval()))
    assert found.over == "seeds and documents"


def test_over_seeds_alone_it_is_a_one_sample_t_test():
    found, known = of_seeds([0.3, -0.1, 0.9]), stats.ttest_1samp([0.3, -0.1, 0.9], 0)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval()))
    assert of_seeds([0.3]).value == 0.3 and of_seeds([0.3]).low is None


def test_a_layout_worked_out_by_hand():
    # means 2, 4 by seed; 1, 3, 5 by document; the rest is 0.5 either way, once 0 twice
    found = crossed([[0.5, 1.5, 4.0], [1.5, 4.5, 6.0]])
    # MS_seed 6 (1), MS_document 8 (2), MS_rest 0.5 (2): (6 + 8 - 0.5) / 6
    assert found.value == 3
    assert found.error == pytest.approx(math.sqrt(13.5 / 6))
    assert found.df == pytest.approx(13.5**2 / (36 + 64 / 2 + 0.25 / 2))


def test_a_difference_below_zero_is_bounded_by_the_rest():
    # the same mean for all seeds and all documents: only the rest differs
    found = crossed([[1.0, -1.0], [-1.0, 1.0]])
    assert (found.error, found.df) == (math.sqrt(4 / 4), 1)


def test_the_degrees_of_freedom_are_no_fewer_than_the_smaller_sample_has():
    # all three mean squares are 4, so that Satterthwaite's are a third
    found = crossed([[3.0, -1.0], [-1.0, -1.0]])
    assert (found.error, found.df) == (math.sqrt(4 / 4), 1)


def test_one_seed_or_one_document_has_no_interval():
    seed, document, single = crossed([[1.0, 3.0]]), crossed([[1.0], [3.0]]), crossed([[2.0]])
    for found, over in ((seed, "documents"), (document, "seeds")):
        assert (found.value, found.error, found.over) == (2, 1, over)
    assert single.error is None and single.over == ""
    for found in (seed, document, single):
        assert found.low is found.high is found.df is None
        assert found.p() is found.p(2.0) is equivalence(found, 1.0) is None
    with pytest.raises(ValueError, match="expected"):
        crossed([])


def test_values_that_are_all_alike():
    found = crossed([[2.0, 2.0], [2.0, 2.0]])
    assert (found.error, found.low, found.high) == (0, 2, 2)
    assert (found.p(), found.p(2.0)) == (0, 1)
    assert (equivalence(found, 2.5), equivalence(found, 1.5)) == (0, 1)


def test_a_share_has_the_error_that_a_simulation_has():
    shares, errors, covered = [], [], 0
    noise = experiments((5, 32), (0.5, 1)), experiments((5, 32), (0.2, 2), mean=10.0)
    for rest, gap in zip(*noise, strict=True):
        found = ratio(0.2 * gap + 0.3 * rest, gap)
        shares.append(found.value)
        errors.append(found.error)
        covered += found.low <= 0.2 <= found.high
    assert np.mean(shares) == pytest.approx(0.2, abs=0.001)
    assert np.mean(errors) == pytest.approx(np.std(shares), rel=0.06)
    assert 0.93 <= covered / TIMES <= 0.97


def test_a_share_that_is_the_same_everywhere_has_no_error():
    gaps = np.array([[0.5, 0.4, 0.3], [0.6, 0.4, 0.2]])
    found = ratio(0.2 * gaps, gaps)
    assert (found.value, found.error) == pytest.approx((0.2, 0), abs=1e-12)
    assert ratio([[0.1]], [[0.5]]).error is None


@pytest.mark.parametrize(
    ("shape", "effects", "least", "most"),
    [
        ((24, 40), BOTH, 0.93, 0.97),
        ((3, 32), SEED, 0.6, 0.85),  # too narrow
        ((24, 40), NEITHER, 0.99, 1),  # too wide
    ],
)
def test_the_bootstrap_covers_with_many_seeds_alone(shape, effects, least, most):
    tries, covered = 400, 0
    for values in experiments(shape, effects, times=tries):
        low, high = bootstrap(values, 400, 1)
        covered += low <= 0 <= high
    assert least <= covered / tries <= most


def test_the_bootstrap_agrees_with_the_interval_and_with_itself():
    (values,) = experiments((30, 60), BOTH, times=1)
    found = crossed(values)
    assert bootstrap(values) == pytest.approx((found.low, found.high), abs=0.4 * found.error)
    assert bootstrap(values) == bootstrap(values)


def test_holm_worked_out_by_hand():
    # 4 * 0.005; 3 * 0.01; 2 * 0.03; 0.04, raised to the one before
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"]
    assert holm({"a": 0.7, "b": 0.6}) == {"a": 1, "b": 1} and holm({}) == {}


def test_equivalence_worked_out_by_hand():
    # t = (0.5 - 0.1) / 0.2 = 2 with 4 degrees of freedom, whose upper tail is 0.0581
    found = Estimate(0.1, 0.2, 4, None, None, 5, 5)
    assert equivalence(found, 0.5) == pytest.approx(0.0581, abs=1e-4)
    assert equivalence(Estimate(-0.1, 0.2, 4, None, None, 5, 5), 0.5) == equivalence(found, 0.5)
    assert equivalence(found, 0.1) == 0.5 and equivalence(found, 0.05) > 0.5


@pytest.mark.parametrize(("mean", "least", "most"), [(2.0, 0.03, 0.07), (0.0, 0.8, 1)])
def test_equivalence_is_claimed_wrongly_in_one_of_twenty(mean, least, most):
    """At the margin itself at most 5%; where nothing differs mostly."""
    found = [crossed(values) for values in experiments((5, 32), (1, 2), mean)]
    claimed = sum(equivalence(each, 2.0) < 0.05 for each in found)
    assert least <= claimed / TIMES <= most
