"""Several processes at one run: the curve of one process, a dead one, what cannot be shared.

Processes are forked with what torchrun sets; one test is of torchrun itself.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from safetensors.torch import load_file

from bench.distributed import group, shares
from bench.harness import drive
from bench.io.clock import read as now
from bench.io.record import read
from bench.loading import saes
from bench.runs import setup, torchrun
from tests.conftest import SMALL
from tests.helpers import forked, plants, tiny

SETTING = {**SMALL, "batch-size": 4}


def arguments(folder, out, *more, **changes):
    fields = {"model": folder / "model", "text": folder / "text", **SETTING}
    fields |= {name.replace("_", "-"): value for name, value in changes.items()}
    flags = [item for pair in fields.items() for item in (f"--{pair[0]}", pair[1])]
    return ["compare", *flags, "--out", out, *more]


def as_one_of_two(monkeypatch):
    for name, value in environment(2, 0, 29500).items():
        monkeypatch.setenv(name, value)


def environment(n, rank, port):
    """What torchrun sets."""
    numbers = {"WORLD_SIZE": n, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in numbers.items()}}


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def ranks(folder, monkeypatch, tmp_path):
    """Start a comparison in `n` processes -> their `Command`s; `plants` by rank come first."""
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(folder / "cache"))
    number = iter(range(100))

    def start(out, *more, n=2, plants=None, **changes):
        call, port = next(number), free_port()

        def as_rank(rank):
            def plant():
                os.environ |= environment(n, rank, port)
                (plants or {}).get(rank, lambda: None)()

            given = arguments(folder, out, *more, **changes)
            return forked.Command(given, tmp_path / f"log-{call}-{rank}", plant)

        return [as_rank(rank) for rank in range(n)]

    return start


def codes(commands, seconds=60):
    return [command.wait(seconds) for command in commands]


@pytest.fixture
def alone(bench, tmp_path):
    """The same comparison in one process -> its folder."""

    def run(*more, **changes):
        code, _, err = bench(*more, "--out", tmp_path / "one", batch_size=4, **changes)
        assert (code, err) == (0, "")
        return tmp_path / "one"

    return run


def check_same(one, several, n, names):
    """The records of `n` processes are those of one to 1e-5, passes and weights included."""
    for name in names:
        (path,) = one.glob(f"{name}-*.jsonl")
        whole, shared = read(path), read(several / path.name)
        assert (whole.header["world_size"], shared.header["world_size"]) == (1, n)
        assert shared.status == "finished"
        for a, b in zip(whole.rows, shared.rows, strict=True):
            assert (a["step"], a["tokens"]) == (b["step"], b["tokens"])
            assert b["ce"] == pytest.approx(a["ce"], rel=1e-5)
            assert b["kl"] == pytest.approx(a["kl"], rel=1e-5, abs=1e-7)
            assert b["l0"] == pytest.approx(a["l0"], rel=1e-9)
            assert a["backward_tokens"] == b["backward_tokens"]
            for field in ("forwards", "backwards", "block_backwards"):
                assert b[field] == n * a[field] == sum(rank[field] for rank in b["by_rank"])
        assert shared.end["ce_full"] == pytest.approx(whole.end["ce_full"], rel=1e-5)
        assert shared.rows[-1]["ce"] != shared.rows[0]["ce"]  # it has learned something
        weights = [load_file(f / path.stem / "state.safetensors") for f in (one, several)]
        for key, expected in weights[0].items():
            assert torch.allclose(weights[1][key], expected, rtol=1e-3, atol=1e-5)


def test_two_processes_give_the_curve_of_one(ranks, alone, tmp_path):
    one = alone("--methods", "lora,e2e")
    commands = ranks(tmp_path / "two", "--methods", "lora,e2e")
    assert codes(commands) == [0, 0], commands[0].err + commands[1].err
    assert commands[1].out == ""  # one speaks
    check_same(one, tmp_path / "two", 2, ("lora", "e2e"))
    again = ranks(tmp_path / "two", "--methods", "lora,e2e")
    assert codes(again) == [0, 0]
    assert "nothing to do: 3 of 3" in again[0].out


def test_shares_of_unequal_size_and_other_methods(ranks, alone, tmp_path):
    methods = "joint,linear,full"
    one = alone("--methods", methods)
    commands = ranks(tmp_path / "three", "--methods", methods, n=3)  # of 4 windows
    assert codes(commands) == [0, 0, 0], commands[0].err
    check_same(one, tmp_path / "three", 3, methods.split(","))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_a_sharded_model_gives_the_curve_of_a_whole_one(family, ranks, alone, tmp_path):
    tiny.write_model(tmp_path / "model", family)
    changes = {"model": tmp_path / "model", "sae": "fresh"}
    one = alone("--methods", "lora,e2e", **changes)
    commands = ranks(tmp_path / "two", "--methods", "lora,e2e", "--shard-model", **changes)
    assert codes(commands) == [0, 0], commands[0].err + commands[1].err
    check_same(one, tmp_path / "two", 2, ("lora", "e2e"))
    assert all(read(path).header["sharded"] for path in (tmp_path / "two").glob("lora-*.jsonl"))


@pytest.mark.parametrize(("dead", "sharded"), [(0, False), (1, False), (1, True)])
def test_a_dead_process_ends_the_others_and_the_run_goes_on(dead, sharded, ranks, tmp_path):
    given = ("--methods", "lora:dropout=0.2", "--checkpoint-every", 0)
    given += ("--sae", "fresh", "--shard-model") if sharded else ()
    whole = ranks(tmp_path / "whole", *given)
    assert codes(whole) == [0, 0], whole[0].err
    kill = plants.after(drive, "check_finite", 5, forked.kill_this)  # 2 steps of warm-up come first
    started = now()
    commands = ranks(tmp_path / "out", *given, plants={dead: kill})
    ended = codes(commands)
    assert now().since(started).seconds < 60
    assert (ended[dead], ended[1 - dead]) == (-signal.SIGKILL, 4)
    told = commands[1 - dead].err
    assert told.startswith(f"bench: rank {1 - dead}: another process of the run is gone (")
    assert told.count("\n") == 1 and "goes on from the last checkpoint" in told
    again = ranks(tmp_path / "out", *given)
    assert codes(again) == [0, 0], again[0].err
    assert "goes on from step" in again[0].out
    (one,), (other,) = ((tmp_path / f).glob("lora-*.jsonl") for f in ("whole", "out"))
    fields = ("step", "ce", "kl", "forwards", "backward_tokens")
    rows = [[[row[f] for f in fields] for row in read(path).rows] for path in (one, other)]
    assert rows[0] == rows[1]
    states = [path.with_suffix("") / "state.safetensors" for path in (one, other)]
    assert states[0].read_bytes() == states[1].read_bytes()


def test_another_number_of_processes_goes_on_and_says_so(ranks, alone, bench, tmp_path):
    given = ("--methods", "lora")
    ask = plants.after(drive, "check_finite", 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    out, one = tmp_path / "out", alone(*given)
    assert codes(ranks(out, *given, plants={0: ask}))[0] == 143
    assert bench(*given, "--out", out, batch_size=4)[0] == 0
    (whole,), (resumed,) = (list(map(read, f.glob("lora-*.jsonl"))) for f in (one, out))
    assert resumed.end["deterministic"] is False and "world_size" in resumed.end["why"]
    last, expected = resumed.rows[-1], whole.rows[-1]
    assert last["backward_tokens"] == expected["backward_tokens"]
    assert last["ce"] == pytest.approx(expected["ce"], rel=1e-5)


def test_the_cost_of_a_trained_sae_is_that_of_all_processes(ranks, tmp_path):
    assert codes(ranks(tmp_path, "--methods", "e2e")) == [0, 0]
    (run,) = map(read, tmp_path.glob("e2e-*.jsonl"))
    (folder,) = tmp_path.glob("e2e-*/sae-100")
    cost = saes.cost_of(folder)["cost"]
    spent = run.rows[-1]["backward_tokens"]
    assert cost["backward_tokens"] == spent + run.header["sae_cost"]["backward_tokens"]
    assert cost["world_size"] == 2


def test_signals_outside_a_run_end_all_alike(ranks, tmp_path):
    def ask():
        os.kill(os.getpid(), signal.SIGTERM)

    # In the first while it prepares, in the other while it waits for that.
    asked = {0: plants.after(setup, "bench", 1, ask), 1: plants.after(group, "start", 1, ask)}
    commands = ranks(tmp_path, "--methods", "lora", plants=asked)
    assert codes(commands) == [143, 0]
    assert commands[1].err == ""


def test_a_silent_process_is_noticed(ranks, tmp_path):
    def hurry():
        torchrun.PATIENCE, torchrun.GRACE = timedelta(seconds=2), 0.2

    stop = plants.after(drive, "check_finite", 5, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    plant = {0: hurry, 1: plants.together(hurry, stop)}
    commands = ranks(tmp_path, "--methods", "lora", plants=plant)
    assert commands[0].wait(60) == 4
    commands[1].send(signal.SIGKILL)
    assert commands[1].wait(60) == -signal.SIGKILL
    assert commands[0].err.startswith("bench: rank 0: another process of the run is gone, or has ")


def test_all_stop_at_one_step(ranks, tmp_path):
    ask = plants.after(drive, "check_finite", 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    commands = ranks(tmp_path, "--methods", "lora", plants={1: ask})  # one of them is asked
    assert codes(commands)[0] == 143
    assert "SIGTERM: stopped; to go on: torchrun" in commands[0].err
    (run,) = map(read, tmp_path.glob("lora-*.jsonl"))
    assert run.status == "interrupted"
    again = ranks(tmp_path, "--methods", "lora")
    assert codes(again) == [0, 0], again[0].err


def test_what_has_no_shares_is_refused_and_the_rest_is_run(ranks, tmp_path):
    commands = ranks(tmp_path, "--methods", "ridge,mse,e2e:loss=kl+mse,lora")
    assert codes(commands)[0] == 2
    ends = {run.header["label"]: run.end for run in map(read, tmp_path.glob("*.jsonl"))}
    assert ends.pop("lora")["end"] == ends.pop("none")["end"] == "finished"
    assert "takes no gradients" in ends["ridge"]["reason"]
    assert "expected a mean over tokens" in ends["mse"]["reason"]
    assert "expected a mean over tokens" in ends["e2e:loss=kl+mse"]["reason"]


@pytest.mark.parametrize(
    ("changes", "more", "told"),
    [
        ({"batch_size": 1}, (), "--batch-size 1: 2 processes need a window each"),
        ({}, ("--shard-model",), "--shard-model: an own SAE is trained by one process; expected"),
        ({"sae": "fresh", "batch_size": 3}, ("--shard-model",), "is not 2 equal shares"),
        ({"sae": "fresh", "scored": "not-special"}, ("--shard-model",), "not with not-special"),
        ({}, ("--cache-clean",), "--cache-clean: for one process"),
        ({}, ("--micro-batch", 0), "--micro-batch must be at least 1, got 0"),
    ],
)
def test_orders_that_cannot_be_shared(changes, more, told, bench, tmp_path, monkeypatch):
    as_one_of_two(monkeypatch)
    code, _, err = bench("--methods", "lora", *more, "--out", tmp_path, **changes)
    assert code == 2 and told in err and err.startswith("bench: rank 0: ")


def test_only_compare_is_for_torchrun(command, monkeypatch):
    as_one_of_two(monkeypatch)
    assert command("methods")[::2] == (
        2,
        "bench: rank 0: torchrun: only for compare, not for methods\n",
    )


def test_one_process_has_nothing_to_spread(bench, tmp_path):
    code, _, err = bench("--methods", "lora", "--shard-model", "--out", tmp_path)
    assert code == 2 and "start several by torchrun" in err


def test_micro_batch_is_the_same_step_in_more_passes(bench, tmp_path):
    for number in (1, 2):
        more = ("--methods", "lora", "--micro-batch", number, "--out", tmp_path / str(number))
        assert bench(*more)[0] == 0
    first, second = (read(next((tmp_path / str(n)).glob("lora-*.jsonl"))).rows[-1] for n in (1, 2))
    assert first["ce"] == pytest.approx(second["ce"], rel=1e-5)
    assert (first["micro_batch"], first["backwards"]) == (1, 2 * second["backwards"])


def test_gradients_that_are_there_are_nobody_s_share(monkeypatch):
    monkeypatch.setattr(shares, "world", lambda: 2)
    monkeypatch.setattr(shares, "sum_in_place", lambda tensor: tensor.mul_(2))  # two alike
    monkeypatch.setattr(shares, "any_of", lambda *facts: facts)
    weight, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    weight.grad = torch.full((3,), 5.0)
    before = shares.gradients_before([weight, other])
    weight.sum().backward()
    loss = shares.add_up(torch.tensor(1.5), [weight, other], before)
    assert (loss.item(), weight.grad.tolist(), other.grad) == (3.0, [7.0] * 3, None)


def test_each_process_draws_its_own_numbers_and_all_go_on_with_the_same(monkeypatch):
    monkeypatch.setattr(shares, "world", lambda: 2)
    inside, after = [], []
    for rank in (0, 1):
        monkeypatch.setattr(shares, "rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        for _ in range(2):
            with shares.own_random_numbers():
                inside.append(float(torch.rand(1)))
        after.append(float(torch.rand(1)))
    assert len(set(inside)) == 4  # by rank and by step
    assert after[0] == after[1]


def test_torchrun(folder, bench, tmp_path, monkeypatch):
    bench("--methods", "none", "--out", tmp_path / "first")  # the SAE is there
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(folder / "cache"))
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = arguments(folder, tmp_path / "two", "--methods", "lora")
    done = subprocess.run([*run, "-m", "bench", *map(str, given)], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    (run,) = map(read, (tmp_path / "two").glob("lora-*.jsonl"))
    assert run.status == "finished" and run.header["world_size"] == 2
    assert json.loads(run.path.read_text().splitlines()[-1])["end"] == "finished"
