"""The best batch of a side: where the climb ends, what a probe takes, and what is printed."""

import pytest
import torch

from bench import devices
from bench.errors import OutOfMemory
from bench.problem.problem import Problem
from bench.speed import sides, speed
from bench.speed.ours import Ours
from bench.speed.report import describe_best
from bench.speed.speed import climb
from tests.speed.test_speed import SETS, spec_on

pytestmark = pytest.mark.runs


def at(rates):
    """A probe that finds these tokens a second at 1, 2, 4, ... windows; None: no memory."""

    def find(batch):
        rate = rates[batch.bit_length() - 1]
        return rate and {"batch": batch, "tokens_per_second": rate}

    return find


@pytest.mark.parametrize(
    ("rates", "best", "tried"),
    [
        ([100, 190, 195], 4, 3),  # 3% better: tried no further, but the best
        ([100, 190, 150], 2, 3),
        ([100, 106, 112, None], 4, 4),
        ([100, None], 1, 2),
        ([None], None, 1),
    ],
)
def test_where_the_climb_ends(rates, best, tried):
    found = climb(at(rates))
    assert found["batch"] == best and len(found["tried"]) == tried
    assert found["tokens_per_second"] == (best and rates[best.bit_length() - 1])


def test_what_is_printed(capsys):
    ours, plain = climb(at([100, 300, 310])), climb(at([100, None]))
    ours["tried"][2]["micro_batch"] = 2
    describe_best({"ours": ours, "plain": plain, "ratio": 3.1})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["1", "100", "100"],
        ["2", "300", "no", "memory"],
    ]
    assert lines[3].split(maxsplit=3) == ["4", "310", "-", "(ours in parts of 2)"]
    assert lines[4] == "best: 3.10x (batch 4 against 1)"
    describe_best({"ours": ours, "plain": climb(at([None])), "ratio": None})
    assert "best:" not in capsys.readouterr().out


def test_the_clock_waits_for_the_device_at_both_ends(monkeypatch):
    said = []
    monkeypatch.setattr(devices, "synchronize", lambda device: said.append("wait"))
    monkeypatch.setattr(devices, "forget_peak", lambda device: said.append("forget"))
    monkeypatch.setattr(sides, "timed", lambda f: (said.append("on"), f(), said.append("off"))[1:])
    monkeypatch.setattr(devices, "peak_bytes", lambda device: 7)
    _, measures = sides.measured(torch.device("cuda"), said.append, "step")
    assert said == ["wait", "forget", "on", "step", "wait", "off"]
    assert measures["device_peak_bytes"] == 7


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_probe_without_memory(error):
    def steps(number):
        raise error

    assert sides.rate(steps, torch.device("cpu"), 1) is None


def test_a_probe_that_fails_otherwise():
    with pytest.raises(RuntimeError, match="a bug"):
        sides.rate(lambda number: 1 / 0 if number == 0 else fail, torch.device("cpu"), 1)


def fail():
    raise RuntimeError("a bug")


def test_a_batch_in_smaller_parts_is_told(folder, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(folder / "cache"))
    spec = spec_on(folder)
    ours, whole = Ours(spec, spec.model, "lora:rank=4", SETS, steps=1), Problem._pass

    def small_memory(self, tokens, adapted, loss):
        if self.micro.size > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, tokens, adapted, loss)

    monkeypatch.setattr(Problem, "_pass", small_memory)
    most = 2
    fits, parts = ours.probe(2), ours.probe(4)
    assert (fits["micro_batch"], parts["micro_batch"], parts["batch"]) == (2, 2, 4)
    assert parts["tokens_per_second"] > 0 and len(parts["seconds"]) == 3
    most = 0
    assert ours.probe(1) is None
    monkeypatch.setattr(speed, "WORTH_IT", 0)
    assert climb(ours.probe)["batch"] is None
    with pytest.raises(OutOfMemory):
        ours.start()
        ours.step()


def test_a_probe_leaves_the_race_as_it_was(folder, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(folder / "cache"))
    spec = spec_on(folder)
    ours = Ours(spec, spec.model, "lora:rank=4", SETS, steps=1)
    before = ours.setting()
    ours.problem.last_loss = torch.tensor(float("nan"))  # of a run before, which a fresh one is not
    assert ours.probe(4)["micro_batch"] == 4
    assert ours.setting() == before and ours.problem.batch_size == spec.batch_size
    assert ours.problem.last_loss.isnan() and not ours.problem.micro.halvings
