"""Worlds in which a claim is true, false or not measured; the verdict has to say which."""

import json
import math

import pytest

from analysis.__main__ import main
from analysis.claims import claims, evidence
from bench.errors import Rejected
from bench.io.record import read
from tests.helpers.records import experiment, make, write
from tests.helpers.worlds import (
    AROUND,
    adapted_for_long,
    additivity,
    distance,
    frontier,
    low_rank,
    multi,
    on,
    one_layer,
    rank,
    rivals,
    size,
    thresholds,
    timing,
    tuned,
    without_sae,
)


def verdicts(folder):
    """Claim -> its `Verdict`."""
    return {verdict.claim.id: verdict for verdict in claims.judge(evidence.read(folder))}


def word(folder, claim):
    return verdicts(folder)[claim].word


K, WIDTH, LAYER = (8, 32, 128), (1152, 2304, 4608, 9216), (5, 15, 25)
NEVER, LATER, LOWER = {"e2e_end": 3.8}, {"e2e_end": 4.2}, {"e2e": 0.2, 0.1: 0.09, 0.5: 0.1, 1: 0.11}
STRAW = {**LOWER, "e2e": -0.1}


def finetuned(folder, gain, step_tokens=6_000_000):
    """`frontier` with e2e on KL + MSE, over 12 million tokens; the gap is 0.425 nats."""
    return frontier(folder, arms=[("e2e-mse", {"sae": "own"}, gain)], step_tokens=step_tokens)


def thresholds_that_hold(folder, **changes):
    return thresholds(folder, **{"moved": 40.0, **changes})


def tuned_beside(folder):
    """As `bench tune` has it: labels with a schedule, a rate that diverged, in a folder beside."""
    rates = {"lora:warmup=0.03:decay=1": 2.5e-3, "full:warmup=0.03:decay=1": 1.5e-4}
    (folder / "frontier").mkdir()
    tuned(folder / "frontier", rates)
    beside = (folder / "frontier" / "tuning").rename(folder / "frontier-tuning")
    write(beside, make("full", label="t1", end="diverged"))
    return folder / "frontier"


WORLDS = [
    ("C1", lambda f: rivals(f, 0.17, step_tokens=512), "untestable here"),
    ("C1", lambda f: adapted_for_long(f, 0.17), "holds"),
    ("C1", lambda f: adapted_for_long(f, 0.05), "refuted"),
    ("C2", on("sparsity", "k", K, (0.2, 0.1, 0.05)), "holds"),
    ("C2", on("sparsity", "k", K, (0.05, 0.1, 0.2)), "refuted"),
    ("C2", on("sparsity", "k", K, (0.05, None, 0.2)), "not run"),
    ("C3", on("width", "width", WIDTH, (0.2, 0.15, 0.1, 0.095)), "holds"),
    ("C3", on("width", "width", WIDTH, (0.2, 0.15, 0.1, 0.02)), "refuted"),
    ("C4", on("layer", "layer", LAYER, (0.1, 0.12, 0.11)), "refuted"),
    ("C5", rank, "holds"),
    ("C5", lambda f: rank(f, (0.02, 0.05, 0.09, 0.1, 0.1)), "refuted"),
    ("C5", lambda f: rank(f, (0.06, 0.061, 0.062, 0.08, 0.1)), "refuted"),
    ("C5", lambda f: rank(f, (0.1, 0.1, 0.09, 0.08, 0.05)), "refuted"),
    ("C5", lambda f: rank(f, (0.06, 0.08, None, 0.095, 0.1)), "not run"),
    ("C6", size, "holds"),
    ("C6", lambda f: size(f, (0.1, 0.08, 0.01)), "refuted"),
    ("C7", timing, "holds"),
    ("C7", lambda f: timing(f, gains=LOWER), "refuted"),
    ("C7", lambda f: timing(f, missing=("e2e",)), "not run"),
    ("C8", timing, "holds"),
    ("C8", lambda f: timing(f, e2e_step=0.5), "refuted"),
    ("C8", lambda f: timing(f, **NEVER), "holds"),
    ("C8", lambda f: timing(f, e2e_step=1.0, **NEVER), "untestable here"),
    ("C8", lambda f: timing(f, missing=("lora",)), "not run"),
    ("C8", lambda f: timing(f, segments=2), "untestable here"),
    ("C9", timing, "not run"),
    ("C10", lambda f: timing(f, passes=10), "untestable here"),
    ("C10", timing, "untestable here"),
    ("C11", timing, "holds"),
    ("C11", lambda f: timing(f, gains={"e2e": 0, 0.1: 0.01, 0.5: 0.1, 1.0: 0.2}), "refuted"),
    ("C11", lambda f: timing(f, missing=("lora",)), "not run"),
    ("C12", timing, "holds"),
    ("C12", lambda f: timing(f, pace=20.0), "refuted"),
    ("C13", timing, "holds"),
    ("C13", lambda f: timing(f, **LATER), "untestable here"),
    ("C13", lambda f: timing(f, e2e_step=0.05), "refuted"),
    ("C13", lambda f: timing(f, missing=("mse",)), "not run"),
    ("C14", one_layer, "holds"),
    ("C14", lambda f: one_layer(f, (0.04, 0.03, 0.02, 0.01, 0.0, 0.1)), "refuted"),
    ("C14", lambda f: one_layer(f, (0.06, 0.03, 0.09, 0.08, 0.07, 0.1)), "refuted"),
    ("C14", lambda f: one_layer(f, (0.08, 0.06, 0.05, 0.03, 0.02, None)), "not run"),
    ("C15", multi, "holds"),
    ("C15", lambda f: multi(f, (0.1, 0.05, 0.3)), "refuted"),
    ("C18", distance, "holds"),
    ("C18", lambda f: distance(f, difference=-0.15), "untestable here"),
    ("C18", lambda f: distance(f, difference=0.5), "refuted"),
    ("C18", lambda f: distance(f, run=False), "not run"),
    ("K2", rivals, "holds"),
    ("K2", lambda f: rivals(f, 0.1, 0.08), "refuted"),
    ("K2", lambda f: rivals(f, missing=("e2e",)), "not run"),
    ("K2", lambda f: rivals(f, weights="random"), "not run"),
    ("K2", lambda f: rivals(f, 0.1, 0.09, config={"layers": "all"}), "refuted"),
    ("K2", lambda f: rivals(f, 0.1, 0.1, config={"layers": "all"}), "holds"),
    ("K2", timing, "untestable here"),
    ("K3", additivity, "holds"),
    ("K3", lambda f: additivity(f, second=0.08), "refuted"),
    ("K3", lambda f: additivity(f, stages=(1,)), "not run"),
    ("K3", lambda f: additivity(f, second=0.05), "untestable here"),
    ("K3", lambda f: additivity(f, noise=0.06), "untestable here"),
    ("B1", timing, "refuted"),
    ("B1", lambda f: timing(f, gains={**LOWER, "e2e": 0.3}), "holds"),
    ("B2", lambda f: timing(f, e2e_step=1.5), "holds"),
    ("B2", timing, "refuted"),
    ("K1", lambda f: finetuned(f, 0.1), "holds"),
    ("K1", lambda f: finetuned(f, 0.05), "refuted"),
    ("K1", lambda f: finetuned(f, 0.1, step_tokens=512), "untestable here"),
    ("K1", frontier, "not run"),
    ("RS1", frontier, "holds"),
    ("RS1", lambda f: frontier(f, lora={**AROUND, "frozen": 0.05}), "refuted"),
    ("RS1", lambda f: frontier(f, e2e={**AROUND, "frozen": 0.2}), "refuted"),
    ("RS1", lambda f: frontier(f, kl=0.05), "refuted"),
    ("RS1", lambda f: frontier(f, kl_full_spliced=None, kl=0.05), "holds"),
    ("RS1", lambda f: frontier(f, lora={**AROUND, "frozen": 0.091}), "untestable here"),
    ("RS1", lambda f: frontier(f, lora=dict.fromkeys(AROUND, 0.02)), "untestable here"),
    ("RS1", lambda f: frontier(f, lora={**AROUND, "frozen": None}), "not run"),
    ("RS1", lambda f: frontier(f, *[{**AROUND, "shuffled": None}] * 2), "holds"),
    ("RS1", lambda f: frontier(f, lora={**AROUND, "shuffled": None}), "holds"),
    ("RS1", lambda f: frontier(f, l0=40.0), "untestable here"),
    ("SL1", low_rank, "holds"),
    ("SL1", lambda f: low_rank(f, main=range(5)), "holds"),
    ("RS1", lambda f: frontier(f, main=range(5)), "holds"),
    ("SL1", lambda f: low_rank(f, two=0.03), "refuted"),
    ("SL1", lambda f: low_rank(f, two=0.048, noise=0.004), "untestable here"),
    ("SL1", lambda f: low_rank(f, whole=0.0), "untestable here"),
    ("SL1", lambda f: low_rank(f, ranks=(64,)), "not run"),
    ("TA1", without_sae, "holds"),
    ("TA1", lambda f: without_sae(f, keep=0.05), "refuted"),
    ("TA1", lambda f: without_sae(f, share=0.08), "refuted"),
    ("TA1", lambda f: without_sae(f, plain=0.0, keep=0.0), "untestable here"),
    ("TA1", frontier, "not run"),
    ("IA1", thresholds_that_hold, "holds"),
    ("IA1", lambda f: thresholds_that_hold(f, frozen=0.05), "refuted"),
    ("IA1", lambda f: thresholds(f, moved=32.5), "refuted"),
    ("IA1", lambda f: thresholds_that_hold(f, kind="topk"), "untestable here"),
    ("IA1", frontier, "not run"),
    ("TM1", lambda f: tuned(f, {"lora": 2.5e-3, "full": 1.5e-4}), "holds"),
    ("TM1", lambda f: tuned(f, {"lora": 2.5e-3, "full": 2.5e-3}), "refuted"),
    ("TM1", lambda f: tuned(f, {"lora": 2.5e-3, "full": 6e-5}), "untestable here"),
    ("TM1", lambda f: tuned(f, {"lora": 2.5e-3, "full": 1.5e-4}, seeds=(0,)), "untestable here"),
    ("TM1", lambda f: tuned(f, {"lora": 2.5e-3, "full": 1.5e-4}, inside=False), "untestable here"),
    ("TM1", lambda f: tuned(f, {"lora": 2.5e-3}), "not run"),
    ("TM1", frontier, "not run"),
    ("TM1", tuned_beside, "holds"),
    ("TM2", lambda f: tuned(f, {"lora": 2.5e-3, "lora:rank=256": 1e-3}), "holds"),
    ("TM2", lambda f: tuned(f, {"lora": 2.5e-3, "lora:rank=256": 4e-4}), "refuted"),
    ("TM2", lambda f: tuned(f, {"lora": 2.5e-3, "lora:rank=64": 1e-3}), "untestable here"),
    ("TM2", lambda f: tuned(f, {"lora": 1e-3, "lora:rank=256,alpha=256": 1e-3}), "not run"),
    ("TM2", frontier, "not run"),
]


@pytest.mark.parametrize("claim, world, expected", WORLDS)
def test_verdict(claim, world, expected, tmp_path):
    assert word(world(tmp_path), claim) == expected


def test_what_is_missing_is_said(tmp_path):
    timing(tmp_path, missing=("mse",))
    found = verdicts(tmp_path)
    assert found["C13"].finding.missing == "3 of 3 runs: mse of timing"
    assert found["C5"].finding.missing == "experiment rank"
    assert found["C11"].word == "holds", "what a claim does not need may be missing"


def test_empty_experiments_carry_no_claim(tmp_path):
    for name in ("timing", "timing-llama", "rank", "one-layer", "multi-sae", "size", "distance"):
        experiment(tmp_path, name, [])
    assert {verdict.word for verdict in verdicts(tmp_path).values()} == {"not run"}


GUARDED = [
    ("C7", lambda f: timing(f, step_tokens=512), "98,304 tokens of the SAE, needs 10M"),
    ("B2", lambda f: timing(f, step_tokens=512), "98,304 tokens of the SAE, needs 10M"),
    ("C12", lambda f: timing(f, step_tokens=512), "8,192 tokens of adaptation, needs 1M"),
    ("C7", lambda f: timing(f, gains=STRAW), "e2e ends 0.100 nats above local training, needs 0"),
    ("C11", lambda f: timing(f, early=0.2), "the SAEs alone are 47% of the gap apart, needs 25%"),
    ("K2", lambda f: rivals(f, step_tokens=512), "1,024 tokens of adaptation, needs 10M"),
    ("C5", lambda f: rank(f, seeds=(0,)), "1 seed, needs 2"),
    ("K3", lambda f: additivity(f, seeds=(0,)), "1 seed, needs 2"),
    ("C10", timing, "a ratio of two budgets"),
    ("TA1", lambda f: without_sae(f, plain=0.0), "LoRA harms by +0.0000 nats"),
    ("C8", lambda f: timing(f, e2e_step=1.0, **NEVER), "e2e from scratch ends too early"),
    ("C13", lambda f: timing(f, **LATER), "no crossing by the end of e2e, 768 s"),
]


@pytest.mark.parametrize("claim, world, guard", GUARDED)
def test_the_guard_that_failed_is_said_with_its_number(claim, world, guard, tmp_path):
    found = verdicts(world(tmp_path))[claim]
    assert found.said.startswith("untestable here: ") and guard in found.said


def test_seeds_that_one_side_lacks_are_not_counted(tmp_path):
    """The main arms of the frontier have five, the others three."""
    found = verdicts(low_rank(tmp_path, main=range(5)))
    assert found["SL1"].case.seeds == found["RS1"].case.seeds == 3


def test_a_claim_without_any_of_its_runs_gives_no_number(tmp_path):
    low_rank(tmp_path, ranks=())
    found = verdicts(tmp_path)["SL1"]
    assert found.said.startswith("not run: sae_lora") and not found.finding.ours


def test_a_gap_within_two_errors_of_0_carries_no_claim(tmp_path):
    bare = [3.5, 3.4, 3.5, 3.3]
    rivals(tmp_path, ce_full_spliced=bare)
    assert "a gap of 0.175 ± 0.125 nats in" in verdicts(tmp_path)["K2"].said


def test_tokens_that_differ_carry_no_claim(tmp_path):
    rivals(tmp_path)
    path = next(tmp_path.glob("e2e-*.jsonl"))
    path.write_text(path.read_text().replace('"tokens": 12000000', '"tokens": 13000000'))
    assert "12,000,000 to 13,000,000 tokens" in verdicts(tmp_path)["K2"].said


def test_a_run_of_two_experiments_counts_once(tmp_path):
    """The rank that is both fixed and scaled is one run, planned twice."""
    rank(tmp_path)
    path = tmp_path / "rank.json"
    told = json.loads(path.read_text())
    twice = [{**run, "at": {**run["at"], "alpha": "scaled"}} for run in told["runs"][:2]]
    path.write_text(json.dumps({**told, "runs": told["runs"] + twice}))
    assert "over 10 runs" in verdicts(tmp_path)["C1"].finding.ours


def test_saturation_is_called_by_its_name(tmp_path):
    (tmp_path / "own").mkdir()
    plain, own = additivity(tmp_path), additivity(tmp_path / "own", more=0.04)
    assert "plain saturation" in verdicts(plain)["K3"].finding.ours
    assert "plain saturation" not in verdicts(own)["K3"].finding.ours


def test_a_tuning_that_cannot_be_read_is_one_line(tmp_path):
    tuned(tmp_path, {"lora": 1e-3})
    (tmp_path / "tuning" / "tuned.json").write_text('{"methods": 7}')
    with pytest.raises(Rejected, match=r"tuned\.json"):
        claims.judge(evidence.read(tmp_path))


def test_run_that_is_not_finished_carries_no_claim(tmp_path):
    one_layer(tmp_path)
    path = next(tmp_path.glob("lora-one-layer-2-*.jsonl"))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    found = verdicts(tmp_path)["C14"]
    assert (
        found.word == "not run"
        and f"{read(path).name}: it is not finished" in found.finding.missing
    )


def test_seconds_of_two_clocks_carry_no_claim(tmp_path):
    timing(tmp_path)
    path = tmp_path / "e2e-000003e8.jsonl"
    path.write_text(path.read_text().replace('"threads": 2', '"threads": 8'))
    found = verdicts(tmp_path)
    assert {found[claim].word for claim in ("C8", "C13", "B2")} == {"untestable here"}
    assert "seconds of several clocks" in found["C8"].said
    assert found["C7"].word == "holds"


def test_speedups_are_told_by_both_definitions(tmp_path):
    found = verdicts(timing(tmp_path))["C8"]
    ours = 192 * 4 / (96 * 0.1 + 16)
    true = 4 * 40 * math.log(6 / (3.75 + 0.25 * math.exp(-8) - 3.7)) / (96 * 0.1 + 16)
    row = next(line for line in found.finding.details[1].splitlines() if line.startswith("| 10%"))
    cells = [float(cell.split()[0].strip("x>")) for cell in row.split("|")[2:-1]]
    assert cells[2] == pytest.approx(true, rel=0.05)
    assert cells[3] == pytest.approx(ours, rel=0.01)


def test_command_writes_every_claim(tmp_path, capsys):
    folder = tmp_path / "results" / "laptop"
    folder.mkdir(parents=True)
    timing(folder)
    assert main([str(tmp_path / "results"), "--claims"]) == 0
    text = (tmp_path / "results" / "CLAIMS.md").read_text(encoding="utf-8")
    for claim in claims.claims():
        assert f"\n| {claim.id} | " in text and f"\n### {claim.id}: " in text
    assert "| not run: experiment sparsity |" in text
    assert "### C7 in laptop" in text and "### C2 in laptop" not in text
    assert "## laptop" in text and str(tmp_path) not in text
    assert "laptop: " in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.png"))


def test_every_claim_has_a_rule_and_every_rule_a_claim():
    listed = claims.claims()
    assert [claim.id for claim in listed if not claim.missing] == list(claims.RULES)
    assert all(bool(claim.rule) == bool(claim.missing) for claim in listed)
    assert all(rule.__doc__ for rule in claims.RULES.values())
    assert len({id(rule) for rule in claims.RULES.values()}) == len(claims.RULES)


def test_records_without_a_manifest_are_refused(tmp_path, capsys):
    write(tmp_path, make())
    assert main([str(tmp_path), "--claims"]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "runs", [[{"record": None}], 7, [{"record": "x", "role": "lora", "seed": 0, "at": 7}]]
)
def test_bad_manifest_is_one_line(runs, tmp_path):
    write(tmp_path, make())
    told = {"experiment": "timing", "scale": "laptop", "command": "", "runs": runs}
    (tmp_path / "timing.json").write_text(json.dumps(told))
    with pytest.raises(Rejected, match=str(tmp_path)):
        claims.write(tmp_path)
