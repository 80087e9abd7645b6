"""Two commands at once, and what has changed between two: one line and an exit code."""

import json
import shutil
import signal
import socket

import torch

from bench.harness import run as one_run
from bench.io import clock
from tests.helpers import forked, plants
from tests.helpers.killed import check_goes_on, deterministic, runs_of, stopped_after


def test_two_at_the_same_run(start, reference, tmp_path):
    first = start(plant=plants.slowly(one_run, "measure", seconds=60))
    forked.until(lambda: list((tmp_path / "out").glob("none-*.jsonl")))
    started = clock.read()
    second = start()
    assert second.wait() == 75
    assert clock.read().since(started).seconds < 30
    assert f"locked by pid {first.pid} on {socket.gethostname()} since 20" in second.err
    assert second.err.count("\n") == 1
    first.send(signal.SIGKILL)
    first.wait()
    check_goes_on(start, tmp_path / "out", reference)
    assert not list((tmp_path / "out").glob(".*.lock"))


def test_all_that_is_fresh_is_so_even_after_a_stop(start, tmp_path):
    """Set aside at once, so that the command without --fresh goes on with the new."""
    assert start().wait() == 0
    old = deterministic(tmp_path / "out")
    stopped = start("--fresh", plant=stopped_after(5))
    assert stopped.wait() == 143 and "--fresh" not in stopped.err
    assert not list((tmp_path / "out").glob("e2e-*.jsonl"))
    again = start()
    assert again.wait() == 0 and "goes on from step" in again.out
    assert deterministic(tmp_path / "out") == old
    assert len(list((tmp_path / "out").glob("*-*.jsonl.1"))) == 3


def test_a_run_of_another_command_is_locked_too(start, tmp_path):
    slow = plants.slowly(one_run, "measure", seconds=60)
    assert start("--methods", "none").wait() == 0
    first = start("--methods", "lora,e2e", plant=slow)
    forked.until(lambda: list((tmp_path / "out").glob("lora-*.jsonl")))
    second = start("--methods", "lora")
    assert second.wait() == 75 and "lora seed 0: locked by pid" in second.err
    first.send(signal.SIGKILL)
    first.wait()


def test_different_runs_in_one_folder_go_side_by_side(start, tmp_path):
    commands = [start("--methods", name) for name in ("lora", "e2e")]
    assert [command.wait() for command in commands] == [0, 0], commands[1].err


def test_another_text_is_another_run(bench, folder, tmp_path):
    shutil.copytree(folder / "text", tmp_path / "text")
    settings = {"text": tmp_path / "text", "sae": "fresh"}
    arguments = ("--methods", "lora", "--out", tmp_path / "out")
    assert bench(*arguments, **settings)[0] == 0
    (tmp_path / "text" / "03.txt").write_text("abc def " * 80)
    code, _, err = bench(*arguments, **settings)
    assert code == 2 and "made with another text; --fresh runs it again" in err


def test_a_run_that_has_begun_wants_its_torch_back(start, tmp_path):
    assert start(plant=stopped_after(7)).wait() == 143
    (run,) = runs_of(tmp_path / "out", "lora")
    text = run.path.read_text()
    run.path.write_text(text.replace(json.dumps(run.header["versions"]["torch"]), '"1.0"'))
    again = start()
    assert again.wait() == 2
    assert "made with another torch; --fresh runs it again" in again.err


def test_other_threads_are_told(start, tmp_path):
    assert start("--methods", "lora", plant=stopped_after(7)).wait() == 143
    again = start("--methods", "lora", plant=lambda: torch.set_num_threads(2))
    assert again.wait() == 0, again.err
    (run,) = runs_of(tmp_path / "out", "lora")
    assert run.end["deterministic"] is False and "threads" in run.end["why"]
    assert "threads" in again.out
