"""`make gpu`, with a stand-in for Python: what is run, in which order, within which time; and the
sweeps that it chooses step sizes by."""

import json
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from bench.cli.parser import parser
from bench.config.specs import SPECS, flags_of
from bench.experiments import scales, sweep
from bench.experiments.scales import SCALES
from bench.io.clock import read as read_clock
from tests.helpers import forked, records

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = """#!/bin/sh
for last; do :; done
echo "$*" >> calls
case "$*" in
{planted}
"-m bench.experiments.sweep words "*) echo --out "runs/sweep-$5-$4";;
"-m bench.experiments.sweep tiny "*) mkdir -p "$last"; echo > "$last/config.json";;
"-m bench speed "*) mkdir -p "$last"; echo > "$last/speed-12345678.json";;
"-m bench compare "*) mkdir -p "$last"; echo > "$last/table.txt";;
esac
"""
ON_TERM = "kill $!; sleep 0.3; echo > wrote; exit 143"
SLOW = f"echo > begun; trap '{ON_TERM}' TERM; sleep 15 & wait; exit 143"
DEAF = "echo > begun; trap '' TERM; sleep 60"


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Start `make gpu` in a checkout of its own; `planted` is what Python does for some words."""
    monkeypatch.chdir(tmp_path)
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        monkeypatch.delenv(name, raising=False)
    Path("results/gpu").mkdir(parents=True)
    shutil.copy(ROOT / "results" / "gpu" / "Makefile", "results/gpu")
    shutil.copy(ROOT / "Makefile", ".")

    def start(*arguments, planted="", **variables):
        Path("python").write_text(STAND_IN.replace("{planted}", planted))
        Path("python").chmod(0o755)
        Path("calls").unlink(missing_ok=True)
        given = {"BIN": tmp_path, "PIP": "true", **variables}
        words = [f"{name}={value}" for name, value in given.items()]
        command = ["make", "-o", ".venv/ready", *(arguments or ["gpu"]), *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(*arguments, **settings):
        process = start(*arguments, **settings)
        out, err = process.communicate(timeout=60)
        code = re.search(r"results/gpu/Makefile:\d+: gpu\] Error (\d+)", err)
        return int(code[1]) if code else process.returncode, out

    run.start = start
    return run


def calls():
    """What Python was called with, in order."""
    path = Path("calls")
    return path.read_text().splitlines() if path.exists() else []


def calls_of(*words):
    return [call for call in calls() if all(word in call for word in words)]


def test_what_is_done_is_skipped(make):
    code, out = make()
    assert code == 0 and out.endswith("make gpu: all is there\n")
    assert len(calls_of("bench speed")) == 36 and len(calls_of("bench compare")) == 5
    code, out = make()
    assert code == 0 and not calls_of("bench speed") and not calls_of("--steps 4")
    # These say themselves that there is nothing to do.
    assert len(calls_of("bench compare")) == 4 and len(calls_of("bench experiment")) == 2


def test_one_that_fails_does_not_stop_the_others(make):
    planted = '*"words gpu-smollm2 sae") exit 3;; *lora-3*|*"speed"*"--pairs 5"*) exit 5;;'
    code, out = make(planted=planted)
    assert code == 5 and "make gpu: failed" in out and "3 sweep-sae-gpu-smollm2" in out
    assert not calls_of("bench experiment", "smollm2") and calls_of("bench experiment", "gemma3")
    assert not calls_of("compare", "smollm2-sae"), "without its words"
    assert out.count("best-batch") and "1 results/gpu/speed/smollm2-best-batch-lora.json" in out
    assert make()[0] == 0


@pytest.mark.parametrize("code", [75, 137, 143])
def test_what_another_process_is_at_or_what_is_stopped_is_called_again(make, code):
    ended, out = make(planted=f'*"--scale gpu-smollm2 "*) exit {code};;')
    assert ended == 75 and out.endswith("make gpu: something is left: type it again\n")
    assert calls_of("bench experiment", "gpu-gemma3")
    assert make(planted='*"--scale gpu-smollm2 "*) exit 75;; *"--scale gpu-ge"*) exit 4;;')[0] == 5


def test_a_difference_of_losses_is_in_the_file_and_no_failure(make):
    """`bench speed` ends with 5, after it has written what it measured."""
    planted = '*"bench speed"*) mkdir -p "$last"; echo > "$last/speed-1.json"; exit 5;;'
    assert make(planted=planted)[0] == 0
    assert len(list(Path("results/gpu/speed").iterdir())) == 36


def test_at_the_limit_a_command_is_asked_to_stop_and_has_the_time_to_write(make):
    started = read_clock()
    code, out = make(planted=f'*"bench speed"*) {SLOW};;', MINUTES=2 / 60)
    assert 1.9 < read_clock().since(started).seconds < 20
    assert code == 75 and out.endswith("make gpu: something is left: type it again\n")
    assert Path("wrote").exists() and len(calls()) == 1


def test_the_limit_is_one_for_the_whole_call(make):
    code, out = make(planted='*"bench speed"*) sleep 0.7;;', MINUTES=2 / 60)
    assert code == 75 and 2 <= len(calls()) <= 3


def test_one_that_hears_nothing_is_killed(make):
    started = read_clock()
    code, _ = make(planted=f'*"bench speed"*) {DEAF};;', MINUTES=1 / 60, GRACE=0.5)
    assert code == 75 and read_clock().since(started).seconds < 20


def test_a_signal_is_handed_on(make):
    process = make.start(planted=f'*"bench speed"*) {SLOW};;')
    forked.until(Path("begun").exists)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode in (2, -signal.SIGTERM)
    assert Path("wrote").exists() and len(calls()) == 1


@pytest.fixture(params=["", "1"], ids=["on a GPU", "rehearsal"])
def listed(request, make):
    """What is called where nothing was run, and whether that is a rehearsal."""
    assert make(REHEARSE=request.param)[0] == 0
    return bool(request.param), calls()


def test_every_command_is_one_that_can_be_typed(listed):
    for call in listed[1]:
        words = shlex.split(call)
        if words[1] == "bench" and "runs/sweep-" not in call:
            told = re.sub(r"--plain-dtype \S+|--best-batch", "", shlex.join(words[2:]))
            parser().parse_args(shlex.split(told))  # raises `Usage`
        else:
            assert words[1] in ("analysis", "bench", "bench.experiments.sweep")
            assert words[1] != "bench" or words[2] == "compare"


def test_the_list_is_complete(listed):
    rehearsed, made = listed
    for model in ("smollm2", "gemma3"):
        scale = f"{'rehearsal' if rehearsed else 'gpu'}-{model}"
        order = [f"words {scale} sae", f"sweep-sae-{scale}", f"choose {scale} sae"]
        order += [f"words {scale} methods", f"sweep-methods-{scale}", f"choose {scale} methods"]
        order += [f"experiment timing rivals --scale {scale}"]
        found = [[n for n, call in enumerate(made) if part in call] for part in order]
        assert all(len(numbers) == 1 for numbers in found) and found == sorted(found)
        assert any(f"runs/speed/{model}" in call for call in made)
    assert made[-1].startswith("-m analysis") and any("/shapes" in call for call in made)
    assert any("--best-batch" in call for call in made)
    assert rehearsed != any("cuda" in call for call in made)
    here = Path("runs/rehearsal" if rehearsed else "results/gpu")
    names = {path.name for path in (here / "speed").iterdir()}
    models = "smollm2 gemma3 " + ("tiny-shape" if rehearsed else "gemma-2-2b llama-3.2-1b")
    for model in models.split():
        assert {f"{model}-float32-e2e.json", f"{model}-best-batch-lora.json"} <= names
    assert len(names) == (18 if rehearsed else 36)


@pytest.mark.parametrize("scale", ["gpu-smollm2", "gpu-gemma3", "rehearsal-smollm2"])
@pytest.mark.parametrize("kind", ["sae", "methods"])
def test_the_words_of_a_sweep_can_be_typed(scale, kind, capsys):
    assert sweep.main(["words", scale, kind]) == 0
    given = parser().parse_args(["compare", *shlex.split(capsys.readouterr().out)])
    here = "runs/rehearsal" if scale.startswith("rehearsal") else "results/gpu"
    assert given.out == f"{here}/sweep-{kind}-{scale}"
    assert given.sae == ("fresh" if kind == "sae" else None)
    assert len(given.methods.split(",")) == sum(map(len, sweep.Sweep(scale, kind).grid.values()))
    assert scale.startswith("rehearsal") == (given.steps < 10)


def test_a_sweep_chooses_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scales, "__file__", str(tmp_path / "bench" / "experiments" / "scales.py"))
    grid = {"lora": ["lora:lr=1e-3", "lora:lr=4e-4"], "ridge": ["ridge:shrink=1"]}
    monkeypatch.setattr(sweep, "GRID", grid)
    path = tmp_path / "results" / "gpu" / "sizes-gpu-smollm2.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"sae": "lr=2e-3"}))
    choose = ["choose", "gpu-smollm2", "methods"]
    out = path.with_name("sweep-methods-gpu-smollm2")
    out.mkdir()
    assert sweep.main(choose) == 5  # stopped early: nothing is chosen
    assert "no run of lora:lr=1e-3, lora:lr=4e-4 has ended" in capsys.readouterr().err
    assert json.loads(path.read_text()) == {"sae": "lr=2e-3"}
    for number, (label, gain) in enumerate(
        [("lora:lr=1e-3", 0.1), ("lora:lr=4e-4", 0.2), ("ridge:shrink=1", 0.01)]
    ):
        made = records.make(
            label.partition(":")[0], number, (0, gain), gains=[0.1] * 4, label=label
        )
        records.write(out, made)
    assert sweep.main(choose) == 0
    best = {"sae": "lr=2e-3", "lora": "lr=4e-4", "ridge": "shrink=1"}
    assert json.loads(path.read_text()) == best
    path.write_text(json.dumps(best | {"lora": "lr=5e-4"}))  # by hand: that stays
    assert sweep.main(choose) == 0 and json.loads(path.read_text())["lora"] == "lr=5e-4"
    assert sweep.Sweep("gpu-smollm2", "methods").changes["sae_lr"] == "2e-3"
    assert sweep.Sweep("gpu-smollm2", "sae").changes["sae_lr"] == "1e-3"  # before and after


def test_a_tiny_shape_is_a_config(tmp_path):
    assert sweep.main(["tiny", str(tmp_path / "tiny")]) == 0
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["hidden_size"] == 64
    assert sweep.main(["tinny"]) == 2


def test_flags_make_the_spec_that_was_meant():
    spec = SCALES["gpu-gemma3"]().spec
    words = flags_of(spec, {"steps": 160})
    given = vars(parser().parse_args(["compare", *words]))
    for field, value in vars(spec).items():
        if field != "name":
            told = given[field] if given[field] is not None else getattr(SPECS[spec.name], field)
            assert told == (160 if field == "steps" else value)
