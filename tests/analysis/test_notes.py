"""What the table says beside its numbers: an SAE forced in, a sparsity that drifted."""

import pytest

from analysis.records.comparison import load
from analysis.tables.comparison import table
from analysis.tables.notes import notes
from tests.helpers.records import make, rivals, write


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


def run(label="lora", seed=0, last=None, **end):
    """A run with fields of its last row and of its end line."""
    made = make(label, seed)
    made.rows[-1].update(last or {})
    made.end.update(end)
    return made


def lines(folder, *runs):
    """The notes on these runs, one by one."""
    (comparison,) = load(write(folder, *runs))
    return notes(comparison)


SLOW, STEADY = {"p50": 1.0, "p95": 2.3}, {"p50": 1.0, "p95": 2.0}
HALVED = {"step": 3, "micro_batch": 2, "loss_changed": False}
OTHER_LOSS = {"step": 5, "micro_batch": 1, "loss_changed": True}


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (run(step_seconds=SLOW), "timing unstable: step time p95/p50 = 2.3 (lora seed 0)."),
        (
            run(last={"suspended_seconds": 612.4}),
            "machine suspended within timed steps for 612 s, not counted (lora seed 0).",
        ),
        (
            run(last={"clock_jump_seconds": -3600.2}),
            "wall clock set by -3,600 s, which no seconds here depend on (lora seed 0).",
        ),
        (run(memory=[HALVED]), "micro-batch halved to 2 for want of memory (lora seed 0)."),
        (
            run(memory=[HALVED, OTHER_LOSS]),
            "micro-batch halved to 1 for want of memory (lora seed 0); its loss depends on the "
            "whole batch: it is not quite the same.",
        ),
        (
            run(deterministic=False, why="another threads in between"),
            "not deterministic, run again the last digits may differ: another threads in between "
            "(lora seed 0).",
        ),
    ],
    ids=["unstable", "suspended", "set", "halved", "another loss", "not deterministic"],
)
def test_what_happened_to_a_run_is_told(tmp_path, made, told):
    assert told in lines(tmp_path, made)


def test_runs_that_it_is_true_of_are_joined(tmp_path):
    runs = [
        run("lora", 0, {"suspended_seconds": 2.0}, step_seconds=SLOW, memory=[HALVED]),
        run("lora", 1, step_seconds=SLOW, deterministic=False, why="another torch"),
        run("e2e", 0, {"suspended_seconds": 60.0}, step_seconds={"p50": 0.1, "p95": 0.4}),
        run("e2e", 1, step_seconds=STEADY, deterministic=False, why="another torch"),
        run("mse", 0, step_seconds={}, deterministic=False),
    ]
    found = lines(tmp_path, *runs)
    assert "timing unstable: step time p95/p50 = 2.3 to 4.0 (lora seeds 0, 1; e2e seed 0)." in found
    assert any("for 2 s to 60 s, not counted (lora seed 0; e2e seed 0)." in f for f in found)
    assert any(
        f.endswith("another torch (lora seed 1; e2e seed 1); its record says not why (mse seed 0).")
        for f in found
    )


def test_runs_that_nothing_happened_to_say_nothing(tmp_path):
    quiet = [run(step_seconds=STEADY, deterministic=True, segments=1, memory=[]), make("e2e")]
    text = " ".join(lines(tmp_path, *quiet))
    for sign in ("unstable", "suspended", "wall clock", "micro-batch", "deterministic"):
        assert sign not in text


def test_a_run_without_rows_or_end_says_nothing(tmp_path):
    assert "unstable" not in " ".join(lines(tmp_path, make(shares=(), end=None)))


FEW = "Fewer than 3 seeds: seconds are not to be ranked on."


@pytest.mark.parametrize(("seeds", "told"), [((0,), True), ((0, 1), True), ((0, 1, 2), False)])
def test_few_seeds_are_not_ranked_on_seconds(tmp_path, seeds, told):
    (comparison,) = load(write(tmp_path, *rivals(seeds)))
    assert (FEW in notes(comparison)) == told
    assert (FEW in table(comparison)) == told


def test_few_seeds_are_told_of_the_labels_that_have_them(tmp_path):
    runs = rivals()
    runs[-1].end.update(segments=2, timing="resumed")
    assert "Fewer than 3 seeds of e2e: seconds are not to be ranked on." in lines(tmp_path, *runs)


def test_few_seeds_are_nothing_to_say_where_no_seconds_are_compared(tmp_path):
    clocks = lines(tmp_path / "clocks", make("lora"), make("e2e", threads=8))
    alone = lines(tmp_path / "alone", make("lora"))
    flat = lines(tmp_path / "flat", make("lora", shares=(0, 0)), make("e2e", shares=(0, 0)))
    random = lines(tmp_path / "random", *rivals((0,), weights="random"))
    assert not any("Fewer than" in line for line in [*clocks, *alone, *flat, *random])


def test_the_title_names_the_model_that_ran(tmp_path):
    """Not the named spec that a command began with, when --model changed it."""
    spec = {**make().header["spec"], "name": "smollm2-135m", "model": "models/mine"}
    text = table(*load(write(tmp_path, make("lora", spec=spec))))
    assert text.startswith("mine, SAE at s\n") and "smollm2" not in text
