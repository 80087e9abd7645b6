"""Methods, disks and clocks that fail cost nothing that was done, and are told in one line."""

import json
import resource
import shutil
import signal
import socket

import pytest

import methods
from bench.harness import checkpoint
from bench.io import clock
from tests.cli.test_cli import PLANTED
from tests.helpers.killed import check_goes_on, deterministic, runs_of, stopped_after

STEP = ("--checkpoint-every", 0)


@pytest.fixture
def planted(monkeypatch):
    """The planted methods are methods like any other."""
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, PLANTED])


def test_a_process_that_dies_costs_no_other_run(bench, planted, in_processes, tmp_path):
    labels = "lora,aborts,aborts:how=leave,raises,e2e"
    code, out, err = bench("--methods", labels, "--out", tmp_path)
    assert code == 5 and "3 of the runs did not finish" in err
    ends = {run.label: run.end for run in runs_of(tmp_path, "*")}
    assert ends["lora"]["end"] == ends["e2e"]["end"] == ends["none"]["end"] == "finished"
    assert ends["aborts"]["reason"] == "its process was ended by SIGABRT"
    assert ends["aborts:how=leave"]["reason"] == "its process left with exit code 7"
    assert "planted failure" in ends["raises"]["reason"]
    (raised,) = runs_of(tmp_path, "raises")
    assert "planted failure" in (tmp_path / raised.name / "traceback.txt").read_text()

    code, out, err = bench("--methods", labels, "--out", tmp_path)
    assert code == 5 and "[3/3]" in out and "3 of 6 runs were already done" in out


def test_a_gradient_that_does_not_arrive(bench, planted, tmp_path):
    code, out, _ = bench("--methods", "detached", "--out", tmp_path)
    assert code == 5 and "no gradient reaches shift.weight, shift.bias" in out


def test_a_run_that_diverged_is_a_result(bench, tmp_path):
    labels = "lora:lr=1e30"
    code, _, err = bench("--methods", labels, "--out", tmp_path, *STEP)
    (run,) = runs_of(tmp_path, "lora")
    assert code == 5 and run.status == "diverged" and "(diverged)" in err
    for line in run.path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert checkpoint.latest(tmp_path / run.name, run.name)["step"] < 4
    before = run.path.stat().st_mtime_ns
    code, out, err = bench("--methods", labels, "--out", tmp_path, *STEP)
    assert code == 5 and "nothing to do" in out and "(diverged)" in err
    assert run.path.stat().st_mtime_ns == before


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(start, reference, tmp_path):
    assert start(plant=stopped_after(7)).wait() == 143
    (run,) = runs_of(tmp_path / "out", "lora")
    latest, before = checkpoint.found(tmp_path / "out" / run.name)
    whole = latest.read_bytes()
    flipped = whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]
    for damage in (b"", whole[:-100], flipped, before.read_bytes()):
        latest.write_bytes(damage)
        taken = checkpoint.latest(latest.parent, run.name)
        assert taken["step"] == int(before.name.split("-")[1])
    again = check_goes_on(start, tmp_path / "out", reference)
    assert f"{latest}: damaged" in again.out and "going on from the one before" in again.out


def test_checkpoints_that_are_all_damaged_end_the_run(start, tmp_path):
    assert start(plant=stopped_after(7)).wait() == 143
    (run,) = runs_of(tmp_path / "out", "lora")
    for path in checkpoint.found(tmp_path / "out" / run.name):
        path.write_bytes(b"")
    again = start()
    assert again.wait() == 3
    assert f"no sound checkpoint of {run.name}" in again.out and "--fresh begins again" in again.out
    assert runs_of(tmp_path / "out", "e2e")[0].status == "finished"
    assert start("--fresh").wait() == 0


def test_a_checkpoint_of_another_run_is_not_taken(start, tmp_path):
    assert start("--methods", "lora", plant=stopped_after(3)).wait() == 143
    assert start("--methods", "lora:rank=2", plant=stopped_after(3)).wait() == 143
    one, two = (tmp_path / "out" / run.name for run in runs_of(tmp_path / "out", "lora"))
    for path in checkpoint.found(one):
        path.unlink()
    for path in checkpoint.found(two):
        shutil.copy(path, one)
    with pytest.raises(checkpoint.Rejected, match=f"of another run, {two.name}"):
        checkpoint.latest(one, one.name)


def test_a_torn_record_is_made_whole(start, reference, tmp_path):
    assert start(plant=stopped_after(9)).wait() == 143
    (run,) = runs_of(tmp_path / "out", "lora")
    whole = run.path.read_bytes()
    for length in (len(whole) - 40, len(whole) - 500, 0):
        shutil.copytree(tmp_path / "out", tmp_path / f"{length}")
        (tmp_path / f"{length}" / run.path.name).write_bytes(whole[:length])
        again = start("--out", tmp_path / f"{length}")
        assert again.wait() == 0, again.err
        assert deterministic(tmp_path / f"{length}") == deterministic(reference)


def test_a_full_disk_costs_nothing(start, reference, tmp_path):
    def full():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))

    command = start(plant=full)
    assert command.wait() == 4, command.err
    said = command.out + command.err
    assert "cannot write" in said and "File too large" in said
    assert "bytes free" in said and "Traceback" not in said
    assert not list((tmp_path / "out").glob("*/.step*"))
    check_goes_on(start, tmp_path / "out", reference)


def test_room_is_looked_for_before_a_run(bench, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9, 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    code, out, _ = bench("--methods", "lora", "--out", tmp_path)
    assert code == 4 and "its checkpoints need" in out and "10,000 are free" in out


def test_an_unstable_clock_is_told(start, tmp_path):
    original, now = clock.read, [0.0]

    def jumping():
        now[0] += 1.0 if int(now[0]) % 5 else 3.0
        return original()._replace(seconds=now[0], boot=now[0] * 2, wall=now[0] * 2)

    command = start("--methods", "lora", plant=lambda: setattr(clock, "read", jumping))
    assert command.wait() == 0, command.err
    assert "suspended" in command.out
    (run,) = runs_of(tmp_path / "out", "lora")
    assert run.rows[-1]["suspended_seconds"] > 0


def test_nothing_asks_the_network(bench, tmp_path, monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo", "socketpair"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    code, out, err = bench("--methods", "lora,e2e", "--out", tmp_path / "out")
    assert code == 0, err
    assert "training the SAE" in out
