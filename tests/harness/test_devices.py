"""Devices and number formats: bfloat16 for the LM alone, no float64 where there is none."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import devices
from bench.config.method import entry
from bench.harness import evaluate
from bench.harness.drive import drive, seed_all
from bench.harness.evaluate import clean_side, measure
from bench.harness.meter import Meter
from bench.io.record import read
from bench.loading.text import Windows
from bench.problem import losses
from bench.problem.batches import Batches
from tests.helpers import tiny


def test_auto_is_what_is_here(bench, tmp_path):
    code, _, err = bench("--methods", "none", "--out", tmp_path, device="auto")
    (run,) = map(read, tmp_path.glob("none-*.jsonl"))
    assert (code, err) == (0, "")
    assert run.header["device"] == run.header["spec"]["device"] == devices.available()[0]


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_here(device, bench, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "available", lambda: ["cpu"])
    code, _, err = bench("--methods", "none", "--out", tmp_path, device=device)
    assert (code, err) == (4, f"bench: --device {device}: not available here; expected cpu\n")


def test_bfloat16_is_for_the_lm_alone(bench, tmp_path):
    found = {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        code, _, err = bench("--methods", "lora,e2e,joint", "--out", out, dtype=dtype)
        assert (code, err) == (0, "")
        found[dtype] = {run.header["method"]: run for run in map(read, out.glob("*.jsonl"))}
    for name, run in found["bfloat16"].items():
        exact = found["float32"][name]
        assert run.header["spec"]["dtype"] == "bfloat16" and run.header["tf32"] is False
        for one, other in zip(run.rows, exact.rows, strict=True):
            assert one["ce"] == pytest.approx(other["ce"], rel=0.02)
            assert one["peak_bytes"] > 0
    assert found["bfloat16"]["lora"].rows[-1]["kl"] < found["bfloat16"]["lora"].rows[0]["kl"]


@pytest.mark.parametrize("name", ["lora", "e2e", "joint", "linear", "affine"])
def test_what_is_trained_is_float32(name):
    problem, one = tiny.problem(dtype=torch.bfloat16), entry(name)
    batches = Batches(problem.train, 2, 2, seed=0)
    *_, (_, adapted) = drive(one.module, problem, batches, one.config, Meter(problem.bridge))
    assert problem.last_loss.dtype == torch.float32
    assert problem.head.weight.dtype == torch.bfloat16
    modules = [part for part in adapted.state.values() if isinstance(part, torch.nn.Module)]
    assert {p.dtype for module in modules for p in module.parameters()} == {torch.float32}
    averages = [t for s in adapted.state["adam"].state.values() for t in s.values()]
    assert {average.dtype for average in averages} == {torch.float32}


class NoFloat64(TorchDispatchMode):
    """As on Apple's GPUs: a tensor of float64 cannot be made."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor) and value.dtype == torch.float64:
                raise TypeError("no float64 on this device")
        return result


def test_no_float64_where_there_is_none(monkeypatch, tmp_path):
    wide = scores(tmp_path / "wide")
    with pytest.raises(TypeError, match="no float64"), NoFloat64():
        scores(tmp_path / "refused")
    for module in (losses, evaluate):
        monkeypatch.setattr(module, "wide", lambda device: torch.float32)
    with NoFloat64():
        narrow = scores(tmp_path / "narrow")
    for one, other in zip(narrow, wide, strict=True):
        for field in ("ce", "kl", "l0", "fvu"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-4, abs=1e-6)


def scores(path):
    """The scores of a short run of lora, clean side included."""
    problem, one = tiny.problem(), entry("lora")
    seed_all(0)
    windows = Windows(tiny.windows(4, seed=5), list("aabb"))
    held_out = clean_side(problem, windows, path)
    batches = Batches(problem.train, 2, 3, seed=0)
    run = drive(one.module, problem, batches, one.config, Meter(problem.bridge))
    return [measure(problem, held_out, adapted) for _, adapted in run]
