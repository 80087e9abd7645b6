"""A run that is killed at any instant ends, by the same command, as if nothing had been."""

import os
import signal
import time

import pytest

from bench.cli import show
from bench.harness import checkpoint
from bench.harness import run as one_run
from bench.io import ranks, record
from bench.io.clock import read as read_clock
from bench.io.record import read
from bench.problem.gradient_check import Reached
from tests.helpers import forked, plants
from tests.helpers.killed import check_goes_on, deterministic

SHORT = (
    "mid-row",
    "in an evaluation",
    "mid-checkpoint",
    "before a checkpoint is renamed",
    "after a checkpoint has its name",
    "after the end line",
)
INSTANTS = [
    pytest.param(name, marks=() if name in SHORT else pytest.mark.faults)
    for name in plants.instants(None)
]


@pytest.mark.parametrize("instant", INSTANTS)
def test_killed_with_all_its_processes(start, reference, tmp_path, instant):
    first = start(plant=plants.instants(forked.kill_all)[instant])
    assert first.wait() == -signal.SIGKILL, first.err
    check_goes_on(start, tmp_path / "out", reference)


@pytest.mark.parametrize("instant", ["mid-row", "mid-checkpoint", "in an evaluation"])
def test_the_process_of_a_run_alone_is_killed(start, reference, tmp_path, instant):
    first = start(plant=plants.instants(forked.kill_this)[instant])
    assert first.wait() == 5, first.err
    assert "ended by SIGKILL, as the system does when memory runs out" in first.out
    ends = {read(path).status for path in (tmp_path / "out").glob("*.jsonl")}
    assert ends == {"finished", "error"}  # nothing is torn
    again = check_goes_on(start, tmp_path / "out", reference)
    assert "goes on from step" in again.out
    resumed = [read(path).end for path in (tmp_path / "out").glob("*.jsonl")]
    assert any(end.get("timing") == "resumed" and end["segments"] == 2 for end in resumed)


def test_killed_again_and_again(start, reference, tmp_path):
    for at in (3, 6, 9, 12):
        plant = plants.before(checkpoint, "write", at, forked.kill_all)
        assert start(plant=plant).wait() == -signal.SIGKILL
    check_goes_on(start, tmp_path / "out", reference)


def test_the_training_of_the_sae_is_not_lost(start, tmp_path, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))
    kill = plants.before(checkpoint, "write", 9, forked.kill_all)
    assert start(plant=kill).wait() == -signal.SIGKILL
    last = plants.after(record.Writer, "end", 1, forked.kill_all)
    again = start(plant=last)
    assert again.wait() == -signal.SIGKILL
    assert "goes on from step 7" in again.out
    final = start()
    assert final.wait() == 0, final.err
    assert "goes on" not in final.out  # it was done, and only had to be given its place

    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "other"))
    whole = start("--out", tmp_path / "whole")
    assert whole.wait() == 0, whole.err
    assert deterministic(tmp_path / "whole") == deterministic(tmp_path / "out")


def test_steps_that_are_lost_are_made_again(start, tmp_path):
    """Checkpoints far apart: several steps and rows are run twice, and counted once."""
    rare = ("--checkpoint-every", 1000, "--methods", "lora:dropout=0.2")
    whole = start(*rare, "--out", tmp_path / "whole")
    assert whole.wait() == 0, whole.err
    plant = plants.together(
        plants.at_steps(one_run.Run, "_is_time", (2, 5)),
        plants.before(record.Writer, "write", 6, forked.kill_all, plants.is_row_of_lora),
    )
    assert start(*rare, plant=plant).wait() == -signal.SIGKILL
    again = start(*rare)
    assert again.wait() == 0 and "goes on from step 4" in again.out, again.err
    assert deterministic(tmp_path / "out") == deterministic(tmp_path / "whole")


def test_a_cache_that_was_filled_twice_is_told(start, reference, tmp_path):
    cached = ("--cache-clean", "--methods", "lora")
    plant = plants.after(checkpoint, "write", 5, forked.kill_all)
    assert start(*cached, plant=plant).wait() == -signal.SIGKILL
    assert start(*cached).wait() == 0
    (run,) = map(read, (tmp_path / "out").glob("lora-*.jsonl"))
    assert run.end["deterministic"] is False and "in the cache" in run.end["why"]


def test_a_hangup_after_nohup_is_ignored(start, tmp_path):
    def nohup():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    command = start("--methods", "lora", plant=nohup, steps=60)
    forked.until(lambda: list((tmp_path / "out").glob("lora-*.jsonl")))
    os.killpg(command.pid, signal.SIGHUP)
    assert command.wait() == 0, command.err


def test_the_figure_is_drawn_after_a_kill_in_between(start, reference, tmp_path):
    plant = plants.before(show, "comparison", 1, forked.kill_this)
    assert start(plant=plant).wait() == -signal.SIGKILL
    assert not (tmp_path / "out" / "table.txt").exists()
    assert start(draws=True).wait() == 0
    assert deterministic(tmp_path / "out") == deterministic(reference)
    assert (tmp_path / "out" / "table.txt").exists()
    assert (tmp_path / "out" / "curves.png").exists()


def test_costs_are_not_counted_twice(start, reference, tmp_path):
    plant = plants.after(checkpoint, "write", 8, forked.kill_all)
    assert start(plant=plant).wait() == -signal.SIGKILL
    again = check_goes_on(start, tmp_path / "out", reference)
    (resumed,) = [run for run in map(read, (tmp_path / "out").glob("lora-*.jsonl"))]
    seconds = [row["seconds"] for row in resumed.rows]
    assert seconds == sorted(seconds)
    assert resumed.end["resumed"][0]["step"] == 7
    assert "was resumed: drawn, not ranked on seconds" in again.out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal(start, reference, tmp_path, number, code):
    one = ("--methods", "lora:dropout=0.2")
    first = start(*one, steps=60)
    forked.until(lambda: list((tmp_path / "out").glob("lora-*/step-*.pt")))
    first.send(number)
    assert first.wait() == code
    (line,) = first.err.strip().splitlines()
    start_again = ranks.start_as_typed()
    assert line.startswith(f"bench: {number.name}: stopped; to go on: {start_again} compare ")
    (run,) = [run for run in map(read, (tmp_path / "out").glob("lora-*.jsonl"))]
    assert run.status == "interrupted"
    assert len(list((tmp_path / "out" / run.name).glob("step-*.pt"))) in (1, 2)

    again = start(*one, steps=60)
    whole = start(*one, "--out", tmp_path / "whole", steps=60)
    assert again.wait() == whole.wait() == 0, again.err
    assert deterministic(tmp_path / "out") == deterministic(tmp_path / "whole")


def test_the_second_ctrl_c_leaves_at_once(start, reference, tmp_path):
    slow = plants.slowly(Reached, "__call__", seconds=60)  # a step, which the first one waits for
    first = start(plant=slow)
    forked.until(lambda: list((tmp_path / "out").glob("lora-*/step-00000000-*.pt")))
    started = read_clock()
    first.send(signal.SIGINT)
    time.sleep(1)
    assert os.waitpid(first.pid, os.WNOHANG) == (0, 0)
    first.send(signal.SIGINT)
    assert first.wait() == 130
    assert read_clock().since(started).seconds < 30
    check_goes_on(start, tmp_path / "out", reference)


def test_a_stop_does_not_wait_for_an_evaluation(start, reference, tmp_path):
    slow = plants.slowly(one_run, "measure", seconds=60)
    first = start(plant=slow)
    forked.until(lambda: list((tmp_path / "out").glob("none-*.jsonl")))
    started = read_clock()
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    assert read_clock().since(started).seconds < 30
    check_goes_on(start, tmp_path / "out", reference)
