"""What the table says beside its numbers: an SAE forced in, a sparsity that drifted."""

import pytest

from analysis.load import load
from analysis.notes import notes
from tests.records import make, write


def noted(folder, after=48.0, **header):
    """The notes on a run of e2e whose L0 ended at 48."""
    run = make("e2e", **header)
    run.end["l0_full"] = after
    write(folder, run)
    (comparison,) = load(folder)
    return " ".join(notes(comparison))


SAE = {"source": "folder", "sha256": "a" * 64, "kind": "jumprelu"}


@pytest.mark.parametrize(("before", "told"), [(32.0, True), (47.0, False), (49.0, False)])
def test_a_drift_of_l0_is_told(tmp_path, before, told):
    text = noted(tmp_path, sae=SAE, l0_full=before)
    assert (f"L0 under e2e went from {before:.1f} to 48.0: nothing holds the" in text) == told
    assert ("of a jumprelu SAE" in text) == told


@pytest.mark.parametrize(
    ("before", "after", "told"), [(0.0, 9.0, True), (9.0, 0.0, True), (0.0, 0.0, False)]
)
def test_an_sae_in_which_nothing_fires_counts_too(tmp_path, before, after, told):
    text = noted(tmp_path, after, sae=SAE, l0_full=before)
    assert (f"L0 under e2e went from {before:.1f} to {after:.1f}" in text) == told


def test_records_without_l0_say_nothing(tmp_path):
    assert "L0 under" not in noted(tmp_path)


def test_a_forced_sae_is_told(tmp_path):
    text = noted(tmp_path, forced=["wrong layer: it was trained elsewhere"])
    assert "Run with --force although wrong layer: it was trained elsewhere." in text
