"""An accelerator against the CPU: losses, gradients, runs, a run that is stopped and goes on.

Skipped where there is none. TEST_DEVICE=cpu has the CPU stand in for one: a rehearsal of this file.
"""

import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from bench import devices
from bench.config.method import entry
from bench.config.spec import Spec
from bench.harness.drive import drive, seed_all
from bench.harness.meter import Meter
from bench.io.record import read
from bench.loading import models
from bench.problem.batches import Batches
from bench.problem.problem import Problem, trained_by
from bench.runs.preflight import check_model
from tests.conftest import SMALL
from tests.helpers import forked, tiny

DEVICE = os.environ.get("TEST_DEVICE") or devices.available()[0]
pytestmark = [
    pytest.mark.skipif(DEVICE == "cpu" and "TEST_DEVICE" not in os.environ, reason="only a CPU"),
    pytest.mark.runs,
]
ROOT = Path(__file__).parents[1]
LABELS = ["lora:layers=all", "e2e", "e2e:loss=kl+mse", "mse", "joint"]
CLOSE = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (0.05, 0.5)}
"""Number format -> how far losses and gradients may be apart, of their size: a rounding may decide
which latents a TopK takes. Bounds by judgement; no GPU has run this."""


@cache
def problem(family, device, dtype):
    """A tiny problem, or `smollm2` with a random SAE, on a device; the same numbers on each."""
    if family == "smollm2":
        spec = Spec(dtype=str(dtype).removeprefix("torch."))
        folder, _ = check_model(spec)
        bridge = models.load(folder, spec, models.load_tokenizer(folder))
        site, train = spec.site, torch.randint(3, 9_000, (4, 64), generator=torch.manual_seed(0))
    else:
        bridge, site, train = tiny.bridge(family, dtype=dtype), tiny.SITE, tiny.windows(4)
    saes = tiny.sae(width=bridge.cfg.d_model)
    devices.set_precision(device, str(dtype).removeprefix("torch."))
    return Problem(bridge.to(device), saes.to(device), [site], train.to(device), batch_size=2)


def trained(family, label, device, dtype):
    """Two steps on a device -> losses, and the gradients of each, on the CPU."""
    one, losses, gradients = entry(label), [], []

    def look(adapted):
        found = [p.grad for p in trained_by(adapted) if p.grad is not None]
        gradients.append(torch.cat([g.detach().float().cpu().flatten() for g in found]))

    whole = problem(family, device, dtype)
    whole = whole.of_run(whole.micro, look)
    seed_all(0)
    batches = Batches(whole.train, 2, 2, seed=0)
    for step, _ in drive(one.module, whole, batches, one.config, Meter(whole.bridge)):
        losses += [float(whole.last_loss)] if step else []
    return losses, gradients


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("family", [*tiny.FAMILIES, "smollm2"])
def test_losses_and_gradients_are_those_of_the_cpu(family, dtype):
    for label in LABELS:
        ours, cpu = (trained(family, label, device, dtype) for device in (DEVICE, "cpu"))
        for_loss, for_gradient = CLOSE[dtype]
        assert ours[0] == pytest.approx(cpu[0], rel=for_loss), label
        apart = (ours[1][0] - cpu[1][0]).norm() / cpu[1][0].norm()
        assert apart < for_gradient, (label, float(apart))


def command(folder, out, device, **changes):
    """The words that start a comparison as users start it, with processes of its own."""
    inputs = {"model": folder / "model", "text": folder / "text", "device": device}
    settings = {**inputs, **SMALL, "out": out, "checkpoint-every": 0, **changes}
    flags = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "bench", "compare", *flags]


def start(words):
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def losses(out):
    """Method -> CE of each row and of each document at the end."""
    runs = map(read, out.glob("*.jsonl"))
    return {
        run.header["label"]: [row["ce"] for row in run.rows] + run.end["ce_full"] for run in runs
    }


def test_a_comparison_is_that_of_the_cpu(folder, tmp_path):
    """Each run is in a process of its own, which uses the device."""
    outs = {name: tmp_path / name for name in ("device", "cpu")}
    methods = ",".join(LABELS)
    started = [
        start(command(folder, outs["device"], DEVICE, methods=methods)),
        start(command(folder, outs["cpu"], "cpu", methods=methods)),
    ]
    for process in started:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()
    ours, cpu = map(losses, outs.values())
    assert ours.keys() == cpu.keys() and len(ours) >= len(LABELS) + 1
    for label, found in ours.items():
        assert found == pytest.approx(cpu[label], rel=2e-3), label


def test_a_run_that_is_stopped_goes_on_as_if_nothing_had_been(folder, tmp_path):
    """Dropout draws the device's own random numbers, whose state the checkpoint has to hold."""
    changes = {"methods": "lora:dropout=0.2", "steps": 60, "dtype": "bfloat16"}
    whole = start(command(folder, tmp_path / "whole", DEVICE, **changes))
    words = command(folder, tmp_path / "out", DEVICE, **changes)
    first = start(words)
    forked.until(lambda: list((tmp_path / "out").glob("lora-*/step-*.pt")), 120)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 143, said.decode()
    again = start(words)
    for process in (again, whole):
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()
    (run,) = [run for run in map(read, (tmp_path / "out").glob("lora-*.jsonl"))]
    assert run.end["segments"] == 2
    label = run.header["label"]
    assert losses(tmp_path / "out")[label] == pytest.approx(
        losses(tmp_path / "whole")[label], rel=1e-3
    )
