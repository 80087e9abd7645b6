"""Whatever goes wrong costs nothing that was done, and is told in one line with an exit code."""

import json
import resource
import shutil
import signal
import socket
from functools import partial

import pytest
import torch

import methods
from bench import attempt, checkpoint, clock, method, one_run
from bench.record import read
from tests import forked, plants, tiny
from tests.killed import check_goes_on, deterministic
from tests.test_cli import PLANTED
from tests.test_methods import curve, hold_out

STEP = ("--checkpoint-every", 0)


@pytest.fixture
def bench(small):
    """`python -m bench compare` on the small setting."""
    return partial(small, "compare")


@pytest.fixture
def planted(monkeypatch):
    """The planted methods are methods like any other."""
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, PLANTED])


def stopped_after(n_checkpoints):
    """A plant: the run is asked to stop when it has written so many checkpoints."""

    def ask():
        forked.os.kill(forked.os.getpid(), signal.SIGTERM)

    return plants.after(checkpoint, "write", n_checkpoints, ask)


def runs_of(out, method):
    return [read(path) for path in sorted(out.glob(f"{method}-*.jsonl"))]


# What is out of memory


def tight(problem, most):
    """The model has no room for more than `most` windows with a gradient."""

    def refuse(module, positional, keywords):
        hidden = positional[0] if positional else keywords["hidden_states"]
        if torch.is_grad_enabled() and len(hidden) > most:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    for block in problem.bridge.blocks:
        block.register_forward_pre_hook(refuse, with_kwargs=True)


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("label", ["lora", "e2e", "joint", "mse"])
def test_smaller_micro_batches_give_the_same_numbers(label, most):
    problem, entry = tiny.problem(batch_size=6), method.entry(label)
    whole, _ = curve(problem, hold_out(problem), entry)
    other = tiny.problem(batch_size=6)
    tight(other, most)
    parts, _ = curve(other, hold_out(other), entry)
    for one, two in zip(whole, parts, strict=True):
        assert two["ce"] == pytest.approx(one["ce"], abs=1e-6)
        assert two["tokens"] == one["tokens"]
    if label == "mse":  # no block after the site is run with a gradient: there was room
        assert other.halvings == []
        return
    sizes = {3: [3], 1: [3, 1]}[most]
    assert other.halvings == [{"micro_batch": n, "loss_changed": False} for n in sizes]
    assert parts[-1]["backwards"] == whole[-1]["backwards"] * 6 // most


def test_a_loss_of_the_whole_batch_says_that_it_changed():
    problem, entry = tiny.problem(batch_size=6), method.entry("e2e:loss=kl+mse")
    tight(problem, 3)
    curve(problem, hold_out(problem), entry)
    assert problem.halvings == [{"micro_batch": 3, "loss_changed": True}]


def test_gradients_that_were_there_before_stay():
    problem = tiny.problem(batch_size=4)
    adapted = next(method.entry("e2e").module.train(problem, [], method.entry("e2e").config))
    weight, tokens, calls = adapted.saes[0].W_dec, tiny.windows(4), []

    def loss(seen):
        calls.append(len(seen.tokens))
        if len(seen.tokens) > 1 and len(calls) > 1 and calls[-2] != 4:
            raise MemoryError
        return seen.kl

    problem.backward(tokens, adapted)
    once = weight.grad.clone()
    problem.micro_batch = 2
    problem.backward(tokens, adapted, loss)
    torch.testing.assert_close(weight.grad, 2 * once)


def test_what_a_pass_did_before_memory_ran_out_is_taken_back():
    problem = tiny.problem(batch_size=4)
    adapted = next(method.entry("lora:dropout=0.5").module.train(problem, [], lora(0.5)))
    problem.micro_batch = 2
    tokens, calls = tiny.windows(4), []

    def loss(seen):
        calls.append(len(seen.tokens))
        if len(calls) == 2:
            raise MemoryError
        return seen.kl

    torch.manual_seed(3)
    problem.backward(tokens, adapted, loss)
    once = [p.grad.clone() for p in adapted.state["adapters"].parameters()]
    assert calls == [2, 2, 1, 1, 1, 1]
    adapted.state["adapters"].zero_grad()
    torch.manual_seed(3)
    problem.backward(tokens, adapted)
    for before, parameter in zip(once, adapted.state["adapters"].parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, before)


def lora(dropout):
    return method.entry(f"lora:dropout={dropout}").config


def test_a_run_says_that_memory_ran_out(bench, tmp_path, monkeypatch):
    plant_memory(monkeypatch, most=1)
    code, out, err = bench("--methods", "e2e:loss=kl+mse", "--out", tmp_path)
    assert code == 0, err
    (run,) = runs_of(tmp_path, "e2e")
    assert run.end["memory"] == [{"micro_batch": 1, "loss_changed": True, "step": 0}]
    assert [row["micro_batch"] for row in run.rows] == [1, 1, 1, 1]
    assert run.rows[-1]["backwards"] == 2 * 4  # what ran out did so in the warm-up, off the clock
    assert "micro-batch" in out


def test_one_window_that_is_too_much_ends_that_run_alone(bench, tmp_path, monkeypatch):
    plant_memory(monkeypatch, most=0)
    code, out, err = bench("--methods", "lora,ridge", "--out", tmp_path)
    assert code == 4 and "1 of the runs did not finish" in err and err.count("\n") == 1
    assert "out of memory with one window of 12 tokens at a time: lower --seq-len" in out
    assert runs_of(tmp_path, "ridge")[0].status == "finished"
    monkeypatch.undo()


def plant_memory(monkeypatch, most):
    load = one_run.load

    def planted(*arguments, **settings):
        loaded = load(*arguments, **settings)
        tight(loaded, most)
        return loaded

    monkeypatch.setattr(one_run, "load", planted)


# Methods that fail


def test_a_process_that_dies_costs_no_other_run(bench, planted, tmp_path):
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


# What lies on the disk


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


# Two at once


def test_two_at_the_same_run(start, reference, tmp_path):
    first = start(plant=plants.slowly(attempt, "measure", seconds=30))
    forked.until(lambda: list((tmp_path / "out").glob("none-*.jsonl")))
    started = clock.read()
    second = start()
    assert second.wait() == 75
    assert clock.read().since(started).seconds < 2
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
    slow = plants.slowly(attempt, "measure", seconds=30)
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


# What has changed in between


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


# The clock, the network


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
