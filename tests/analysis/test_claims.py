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
    adapted_for_long,
    additivity,
    distance,
    multi,
    on,
    one_layer,
    rank,
    rivals,
    size,
    timing,
)


def verdicts(folder):
    """Claim -> its `Verdict`."""
    return {verdict.claim.id: verdict for verdict in claims.judge(evidence.read(folder))}


def word(folder, claim):
    return verdicts(folder)[claim].word


K, WIDTH, LAYER = (8, 32, 128), (1152, 2304, 4608, 9216), (5, 15, 25)
NEVER, LATER, LOWER = {"e2e_end": 3.8}, {"e2e_end": 4.2}, {"e2e": 0.2, 0.1: 0.09, 0.5: 0.1, 1: 0.11}

WORLDS = [
    ("C1", lambda f: rivals(f, 0.17, spec={"steps": 1}), "not measured"),
    ("C1", lambda f: adapted_for_long(f, 0.17), "holds"),
    ("C1", lambda f: adapted_for_long(f, 0.05), "does not hold"),
    ("C2", on("sparsity", "k", K, (0.2, 0.1, 0.05)), "holds"),
    ("C2", on("sparsity", "k", K, (0.05, 0.1, 0.2)), "does not hold"),
    ("C2", on("sparsity", "k", K, (0.05, None, 0.2)), "not measured"),
    ("C3", on("width", "width", WIDTH, (0.2, 0.15, 0.1, 0.095)), "holds"),
    ("C3", on("width", "width", WIDTH, (0.2, 0.15, 0.1, 0.02)), "does not hold"),
    ("C4", on("layer", "layer", LAYER, (0.1, 0.12, 0.11)), "does not hold"),
    ("C5", rank, "holds"),
    ("C5", lambda f: rank(f, (0.02, 0.05, 0.09, 0.1, 0.1)), "does not hold"),
    ("C5", lambda f: rank(f, (0.06, 0.061, 0.062, 0.08, 0.1)), "does not hold"),
    ("C5", lambda f: rank(f, (0.1, 0.1, 0.09, 0.08, 0.05)), "does not hold"),
    ("C5", lambda f: rank(f, (0.06, 0.08, None, 0.095, 0.1)), "not measured"),
    ("C6", size, "holds"),
    ("C6", lambda f: size(f, (0.1, 0.08, 0.01)), "does not hold"),
    ("C7", timing, "holds"),
    ("C7", lambda f: timing(f, gains=LOWER), "does not hold"),
    ("C7", lambda f: timing(f, missing=("e2e",)), "not measured"),
    ("C8", timing, "holds"),
    ("C8", lambda f: timing(f, e2e_step=0.5), "does not hold"),
    ("C8", lambda f: timing(f, **NEVER), "holds"),
    ("C8", lambda f: timing(f, e2e_step=1.0, **NEVER), "does not hold"),
    ("C8", lambda f: timing(f, missing=("lora",)), "not measured"),
    ("C8", lambda f: timing(f, segments=2), "not measured"),
    ("C9", timing, "not measured"),
    ("C10", lambda f: timing(f, passes=10), "holds"),
    ("C10", timing, "does not hold"),
    ("C11", timing, "holds"),
    ("C11", lambda f: timing(f, gains={"e2e": 0, 0.1: 0.01, 0.5: 0.1, 1.0: 0.2}), "does not hold"),
    ("C11", lambda f: timing(f, missing=("lora",)), "not measured"),
    ("C12", timing, "holds"),
    ("C12", lambda f: timing(f, pace=20.0), "does not hold"),
    ("C13", timing, "holds"),
    ("C13", lambda f: timing(f, **LATER), "does not hold"),
    ("C13", lambda f: timing(f, e2e_step=0.05), "does not hold"),
    ("C13", lambda f: timing(f, missing=("mse",)), "not measured"),
    ("C14", one_layer, "holds"),
    ("C14", lambda f: one_layer(f, (0.04, 0.03, 0.02, 0.01, 0.0, 0.1)), "does not hold"),
    ("C14", lambda f: one_layer(f, (0.06, 0.03, 0.09, 0.08, 0.07, 0.1)), "does not hold"),
    ("C14", lambda f: one_layer(f, (0.08, 0.06, 0.05, 0.03, 0.02, None)), "not measured"),
    ("C15", multi, "holds"),
    ("C15", lambda f: multi(f, (0.1, 0.05, 0.3)), "does not hold"),
    ("C18", distance, "holds"),
    ("C18", lambda f: distance(f, difference=-0.15), "does not hold"),
    ("C18", lambda f: distance(f, difference=0.5), "does not hold"),
    ("C18", lambda f: distance(f, run=False), "not measured"),
    ("K2", rivals, "holds"),
    ("K2", lambda f: rivals(f, 0.1, 0.08), "does not hold"),
    ("K2", lambda f: rivals(f, missing=("e2e",)), "not measured"),
    ("K2", lambda f: rivals(f, weights="random"), "not measured"),
    ("K2", lambda f: rivals(f, 0.1, 0.09, config={"layers": "all"}), "does not hold"),
    ("K2", lambda f: rivals(f, 0.1, 0.1, config={"layers": "all"}), "holds"),
    ("K2", timing, "does not hold"),
    ("K3", additivity, "holds"),
    ("K3", lambda f: additivity(f, second=0.08), "does not hold"),
    ("K3", lambda f: additivity(f, stages=(1,)), "not measured"),
    ("B1", timing, "not measured"),
    ("B2", lambda f: timing(f, e2e_step=1.5), "holds"),
    ("B2", timing, "does not hold"),
]


@pytest.mark.parametrize("claim, world, expected", WORLDS)
def test_verdict(claim, world, expected, tmp_path):
    assert word(world(tmp_path), claim) == expected


def test_what_is_missing_is_said(tmp_path):
    timing(tmp_path, missing=("mse",))
    found = verdicts(tmp_path)
    assert found["C13"].finding.missing == "3 of 3 runs: mse of timing"
    assert found["C5"].finding.missing == "experiment rank"
    assert found["C7"].word == "holds", "what a claim does not need may be missing"


def test_empty_experiments_carry_no_claim(tmp_path):
    for name in ("timing", "timing-llama", "rank", "one-layer", "multi-sae", "size", "distance"):
        experiment(tmp_path, name, [])
    assert {verdict.word for verdict in verdicts(tmp_path).values()} == {"not measured"}


def test_run_that_is_not_finished_carries_no_claim(tmp_path):
    one_layer(tmp_path)
    path = next(tmp_path.glob("lora-one-layer-2-*.jsonl"))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    found = verdicts(tmp_path)["C14"]
    assert (
        found.word == "not measured"
        and f"{read(path).name}: it is not finished" in found.finding.missing
    )


def test_seconds_of_two_clocks_carry_no_claim(tmp_path):
    timing(tmp_path)
    path = tmp_path / "e2e-000003e8.jsonl"
    path.write_text(path.read_text().replace('"threads": 2', '"threads": 8'))
    found = verdicts(tmp_path)
    assert {found[claim].word for claim in ("C8", "C13", "B2")} == {"not measured"}
    assert found["C7"].word == "holds"


def test_speedups_are_told_by_both_definitions(tmp_path):
    found = verdicts(timing(tmp_path))["C8"]
    ours = 192 * 4 / (96 * 0.1 + 16)
    true = 4 * 40 * math.log(6 / (3.75 + 0.25 * math.exp(-8) - 3.7)) / (96 * 0.1 + 16)
    row = next(line for line in found.finding.details[1].splitlines() if line.startswith("| 10%"))
    cells = [float(cell.split()[0].strip("x>")) for cell in row.split("|")[2:-1]]
    assert cells[2] == pytest.approx(true, rel=0.05)
    assert cells[3] == pytest.approx(ours, rel=0.01)


def test_one_seed_is_said(tmp_path):
    text = claims.markdown({"laptop": claims.judge(evidence.read(rank(tmp_path)))})
    assert "**holds** (1 seed)" in text


def test_command_writes_every_claim(tmp_path, capsys):
    folder = tmp_path / "results" / "laptop"
    folder.mkdir(parents=True)
    timing(folder)
    assert main([str(tmp_path / "results"), "--claims"]) == 0
    text = (tmp_path / "results" / "CLAIMS.md").read_text(encoding="utf-8")
    for claim in claims.claims():
        assert f"\n| {claim.id} | " in text and f"\n### {claim.id}: " in text
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
