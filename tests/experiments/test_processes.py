"""Several processes at one folder of experiments: who does what, and the records they leave."""

import json
import re
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.records import manifest
from analysis.tables.experiments import tables
from bench.config.spec import Spec
from bench.experiments import plans
from bench.experiments.scales import LAPTOP, SCALES
from bench.harness import checkpoint
from bench.harness import run as one_run
from bench.io import ranks
from bench.io.files import new_folder
from bench.io.record import read
from bench.io.verify import verify
from tests.experiments.test_experiment import SMALL
from tests.helpers import forked, plants
from tests.helpers.killed import deterministic

NAMES = ("timing", "additivity")
ALONE = {}
"""The records of one process, once they are made: what is the same for all tests is made once."""


@pytest.fixture
def begin(folder, tmp_path, monkeypatch):
    """Start two experiments at a tiny scale in a folder with a cache of its own."""
    spec = replace(Spec(), model=str(folder / "model"), text=str(folder / "text"), **SMALL)
    tiny = replace(LAPTOP, spec=spec, seeds=(0,), shares=(1.0,))
    monkeypatch.setitem(SCALES, "laptop", lambda: tiny)
    number = iter(range(100))

    def begin(name, *more, plant=lambda: None):
        here = tmp_path / name
        here.mkdir(exist_ok=True)
        monkeypatch.chdir(here)
        monkeypatch.setenv("SPLICEBENCH_CACHE", str(here / "cache"))
        given = ["experiment", *NAMES, "--out", "out", "--checkpoint-every", 0, *more]
        return forked.Command(given, tmp_path / f"log-{next(number)}", plant)

    return begin


@pytest.fixture
def alone(begin, tmp_path):
    """What one process makes: its folder of records, and what is in them."""
    if not ALONE:
        one = begin("one")
        assert one.wait() == 0, one.err
        assert "another process" not in one.out and "other processes" not in one.out
        ALONE.update(out=tmp_path / "one" / "out", made=deterministic(tmp_path / "one" / "out"))
    return ALONE


def jobs_of(*commands):
    """Job -> how often one of these processes did it, and not another one before it."""
    ended = re.compile(r"^\[\d+/\d+\] (\S+: .*?): (?:CE|its process)", re.MULTILINE)
    return Counter(job for command in commands for job in ended.findall(command.out))


def check_whole(out, alone):
    """Every run is there once, as one process makes it; manifests and lists are whole."""
    assert deterministic(out) == alone["made"]
    for name in NAMES:
        text = (out / f"{name}.json").read_text()
        assert (alone["out"] / f"{name}.json").read_text() == text
        assert all(run["record"] for run in json.loads(text)["runs"])
    assert not list(out.glob(".*")) and not list(out.glob("*.jsonl.*"))
    verify([out])


def test_two_processes_share_the_jobs(begin, alone, tmp_path):
    both = [begin("two"), begin("two")]
    for process in both:
        assert process.wait() == 0, process.err + process.out
    check_whole(tmp_path / "two" / "out", alone)
    done = jobs_of(*both)
    n_left = int(re.search(r"(\d+) runs to do: about", both[0].out)[1])
    assert len(done) == n_left and set(done.values()) == {1}
    assert all(jobs_of(process) for process in both)
    said = "".join(process.out for process in both)
    assert said.count("training the SAE") == 1  # though six runs want it
    text = (tmp_path / "two" / "out" / "experiments.txt").read_text()
    now = tables(manifest.load(tmp_path / "two" / "out"))
    assert sorted(text.split("\n\n")) == sorted(now.split("\n\n"))
    assert all(text in process.out for process in both)


def test_where_one_is_killed_the_other_does_all_that_is_left(begin, alone, tmp_path):
    first = begin("two", plant=plants.slowly(one_run, "measure", seconds=60))
    forked.until(lambda: list((tmp_path / "two").glob("cache/**/*.jsonl")))  # trains the SAE
    second = begin("two")
    forked.until((second._log / "out").exists)
    forked.until(lambda: jobs_of(second))  # what needs no SAE
    first.send(signal.SIGKILL)
    first.wait()
    assert second.wait() == 0, second.err + second.out
    assert set(jobs_of(second).values()) == {1}
    check_whole(tmp_path / "two" / "out", alone)


def test_what_another_process_is_at_is_waited_for_and_not_made_fresh(begin, alone, tmp_path):
    out = tmp_path / "two" / "out"
    slow = plants.slowly(one_run, "measure", seconds=0.5)
    first = begin("two", plant=slow)
    forked.until(lambda: list(out.glob(".*-job.lock")))
    fresh = begin("two", "--fresh")
    assert fresh.wait() == 75
    assert re.fullmatch(r"bench: timing: .* seed 0.*: locked by pid \d+ on .*\n", fresh.err)
    forked.until(lambda: len(list(out.glob("*.jsonl"))) >= 3)
    second = begin("two")
    assert [second.wait(), first.wait()] == [0, 0], first.err + second.err
    assert set(jobs_of(first, second).values()) == {1}
    assert second.out.count("which other processes are at or go on from: waiting") <= 1
    check_whole(out, alone)


def test_a_stopped_experiment_goes_on(begin, alone, tmp_path):
    first = begin("two", plant=plants.slowly(checkpoint, "write", 0.5))
    forked.until(lambda: len(list((tmp_path / "two" / "out").glob("*/step-*.pt"))) >= 1)
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    (line,) = first.err.strip().splitlines()
    start = ranks.start_as_typed()
    assert line.startswith(f"bench: SIGTERM: stopped; to go on: {start} experiment")
    again = begin("two")
    assert again.wait() == 0, again.err
    assert "goes on from step" in again.out
    check_whole(tmp_path / "two" / "out", alone)


def test_a_run_that_is_killed_costs_those_that_go_on_from_it(begin, alone, tmp_path):
    """In both processes: each tries it once, and none hangs."""

    def is_lora(folder, *_):
        return folder.name.startswith("lora")

    kill = plants.before(checkpoint, "write", 2, forked.kill_this, is_lora)
    both = [begin("two", plant=kill), begin("two", plant=kill)]
    for process in both:
        assert process.wait() == 5, process.err + process.out
        assert "lora seed 0 share=1.0: its process was ended by SIGKILL" in process.out
        assert "lora seed 0, which it goes on from, did not finish" in process.out
        assert set(jobs_of(process).values()) == {1}
    there = [read(path) for path in (tmp_path / "two" / "out").glob("*.jsonl")]
    ends = {(run.header["method"], run.status) for run in there}
    assert ends == {("mse", "finished"), ("e2e", "finished"), ("lora", "error")}
    again = begin("two")
    assert again.wait() == 0, again.err
    assert deterministic(tmp_path / "two" / "out") == alone["made"]


def test_a_job_comes_after_those_that_it_goes_on_from():
    (second,) = [
        job for job in plans.jobs("additivity", "laptop") if (job.role, job.seed) == ("lora+e2e", 1)
    ]
    first, itself = second.with_predecessors()
    assert (first.role, first.label, first.experiment) == ("lora", "lora", "additivity")
    assert itself == second and first.key == second.after.key


def test_a_folder_that_two_make_at_once_is_that_of_the_first(tmp_path, monkeypatch):
    made = tmp_path / "sae"
    with new_folder(made) as late:
        (late / "late").touch()
        made.mkdir()
        (made / "first").touch()
        monkeypatch.setattr(Path, "exists", lambda path: False)  # between the look and the name
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]
    assert [path.name for path in made.iterdir()] == ["first"]
