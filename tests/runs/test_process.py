"""Processes as users start them: never forked from one that computes, ended when they hang."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.config.method import MethodRequest
from bench.config.request import Request
from bench.config.spec import Spec
from bench.errors import Fault
from bench.evals import downstream, measures, saebench
from bench.experiments import runner
from bench.runs import compare, process
from tests.helpers.forked import until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hang(tmp_path):
    """Start `hanging` and wait until its process is there -> (command, that process' id)."""
    begun = []

    def start(how):
        words = [sys.executable, "-m", "tests.helpers.hanging", how, str(tmp_path)]
        command = subprocess.Popen(words, cwd=ROOT, stdout=-1, stderr=-1, text=True)
        begun.append(command)
        written = tmp_path / "pid"
        until(lambda: written.exists() and written.read_text())
        return command, int(written.read_text())

    yield start
    for command in begun:
        command.kill()


def is_there(pid):
    """Whether a process runs (one that has ended and was not waited for does not)."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_one_that_hangs_is_killed(hang):
    command, pid = hang("asleep")
    command.send_signal(signal.SIGTERM)
    out, err = command.communicate(timeout=60)
    assert command.returncode == 143 and err == "bench: SIGTERM\n"
    assert "did not answer" in out and "killed" in out
    assert not is_there(pid)


def test_one_that_computes_may_end_its_step(hang, tmp_path):
    command, _ = hang("busy")
    command.send_signal(signal.SIGTERM)
    out, _ = command.communicate(timeout=120)
    assert command.returncode == 143 and out == ""
    assert (tmp_path / "done").exists()


def test_it_ends_with_the_command_however_deaf_it_is(hang):
    command, pid = hang("asleep")
    command.kill()
    command.wait()
    until(lambda: not is_there(pid))


def test_a_command_forks_no_process_that_has_computed():
    code = "from bench.runs import process; print(process.CONTEXT.get_start_method())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() in ("forkserver", "spawn")


def test_the_commands_own_process_fetches_and_converts_nothing(folder, monkeypatch, tmp_path):
    """What is not in the cache is made by the process that is called, and by no other."""
    asked = []

    class Called(Fault):
        """What would run in a process of its own has been reached."""

    def call(function, *arguments):
        asked.append(function.__name__)
        raise Called

    def never(*arguments, **settings):
        raise AssertionError("in the command's own process")

    for name in (
        "bench.loading.models.locate",
        "bench.loading.sae_sources.locate",
        "bench.loading.documents.fetch",
    ):
        monkeypatch.setattr(name, never)
    spec = Spec(model=str(folder / "model"), text=str(folder / "text"))
    with pytest.raises(Called):
        compare.compare(Request(spec, tmp_path), [MethodRequest("lora")], call=call)
    assert asked == ["prepare"]


def test_what_is_called_can_be_sent_to_a_process():
    """Functions are found by name there: none is made inside another."""
    in_experiments = (runner.run, runner.train_own, runner.estimated, runner.write_adapter)
    for function in (*in_experiments, measures.measure, saebench.core, downstream.downstream):
        assert "<" not in function.__qualname__


def test_cpu_seconds_counts_all_of_a_process():
    before = process.cpu_seconds(os.getpid())
    sum(number * number for number in range(3_000_000))
    assert process.cpu_seconds(os.getpid()) > before
    assert process.cpu_seconds(2**22 + 1) == 0.0


def test_one_that_cannot_be_started_says_so_at_once(monkeypatch):
    monkeypatch.setattr(process, "CONTEXT", multiprocessing.get_context("spawn"))
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda|local object"):
        process.call(lambda: 1)
