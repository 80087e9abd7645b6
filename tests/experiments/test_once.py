"""`make gpu-once`: what is run, within which time, and how much is trained in it."""

import json
import re
import shlex
import tarfile
from pathlib import Path

import pytest

from bench.cli.parser import parser
from bench.experiments import scales
from results.gpu import once
from tests.helpers import records

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scales, "__file__", str(tmp_path / "bench" / "experiments" / "scales.py"))
    monkeypatch.setattr(once, "SHORTEST", 0.1)
    monkeypatch.setattr(once, "GRACE", 1)
    monkeypatch.setattr(once, "CLOSING", 0)
    once.SIZES.parent.mkdir(parents=True)


def run(seconds, *pieces):
    code = once.run(Path("."), seconds, [once.Piece(*piece) for piece in pieces])
    return code, json.loads(once.STATE.read_text())["how"]


def test_a_piece_is_done_once_and_one_that_fails_stops_no_other():
    pieces = [("a", 5, "echo a >> calls"), ("b", 5, "exit 3"), ("c", 5, "exit 5", (0, 5))]
    assert run(60, *pieces) == (5, {"a": "done", "b": "failed (3)", "c": "done"})
    assert run(60, *pieces)[0] == 5 and Path("calls").read_text() == "a\n"
    with tarfile.open("results.tar.gz") as archive:
        assert {"runs/once/a.log", "runs/once/state.json"} <= {*archive.getnames()}


def test_a_piece_that_takes_too_long_goes_on_at_the_end():
    slow = "[ -f begun ] && exit 0; touch begun; exec sleep 20"
    assert run(60, ("slow", 1, slow), ("next", 9, "echo > there")) == (
        0,
        {"slow": "done", "next": "done"},
    )


def test_a_call_that_is_over_is_called_again():
    pieces = [("slow", 30, "[ -f begun ] && exit 0; touch begun; exec sleep 20"), ("b", 1, "true")]
    assert run(2, *pieces) == (75, {"slow": ""})
    assert run(60, *pieces) == (0, {"slow": "done", "b": "done"})


FAST = {"mse": 1e6, "lora": 5e5, "e2e": 3e5}


def test_the_largest_budget_that_fits_is_taken():
    seen = []
    for seconds in (1e6, 500, 300, 150, 1):
        budget = once.fitted(FAST, 5, seconds)
        assert budget["needs"] <= seconds or seconds == 1
        seen.append((len(budget["seeds"]), budget["scale"]["sae_tokens"], budget["scale"]["steps"]))
    assert seen == sorted(seen, reverse=True) and seen[0] == (2, 10_485_760, 128)
    assert seen[-1] == (1, 2_621_440, 16)


def test_the_scale_reads_the_budget():
    assert scales.SCALES["gpu-once"]().seeds == (0,)
    budget = once.fitted(FAST, 5, 1e6)
    once.BUDGET.write_text(json.dumps({**budget, "scale": {**budget["scale"], "seeds": [0]}}))
    for label in ("lora:lr=1e-3", "lora:lr=4e-4"):
        gain = 0.1 if "4e-4" in label else 0.2
        made = records.make("lora", 0, (0, gain), gains=[0.1] * 4, label=label)
        records.write(once.RECORDS, made)
    once.choose()
    scale = scales.SCALES["gpu-once"]()
    assert scale.seeds == (0, 1) and scale.shares == (0.1, 1.0) and scale.lora == "lr=1e-3"
    given = parser().parse_args(["compare", *shlex.split(once.words())])
    assert (given.sae, given.steps, given.sae_tokens) == (None, 128, 10_485_760)


def test_a_seed_that_is_not_whole_leaves_the_manifest():
    once.RECORDS.mkdir(parents=True)
    runs = [{"record": name, "seed": seed} for name, seed in (("a", 0), ("b", 1), (None, 1))]
    path = once.RECORDS / "timing.json"
    path.write_text(json.dumps({"experiment": "timing", "runs": runs}))
    once.settle()
    assert json.loads(path.read_text())["runs"] == runs[:1]


def test_the_races_can_be_typed():
    for piece in once.plan():
        if words := re.search(r"-m bench (speed .*?);", piece.command):
            told = re.sub(r"--plain-dtype \S+|--best-batch|--pairs \d", "", words[1])
            parser().parse_args(shlex.split(told))  # raises `Usage`


def test_the_docs_have_the_plans_seconds():
    """The table adds up, and its pieces are the plan's."""
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\| ([\d +]+) \| (\d+) \|$", page, re.M)
    each = [[int(part) for part in seconds.split("+")] for seconds, _ in rows]
    assert [s for row in each[1:] for s in row] == [piece.seconds for piece in once.plan()]
    assert [sum(map(sum, each[: n + 1])) for n in range(len(each))] == [int(at) for _, at in rows]
