"""A step never waits for the accelerator; it is a pretended one, so that a CPU can tell."""

from contextlib import contextmanager
from importlib.metadata import version

import pytest
import torch
from packaging.version import Version

from bench.config import method
from bench.config.method_files import names
from bench.harness.drive import drive
from bench.harness.meter import Meter
from bench.problem.batches import Batches
from bench.problem.problem import Problem
from tests.helpers import tiny
from tests.helpers.accelerator import DEVICE, OnDisk, pretended

LABELS = [*names(), "e2e:loss=kl+mse", "linear:loss=kl+mse", "lora:dropout=0.2"]


@pytest.fixture(scope="module")
def accelerator():
    with pytest.MonkeyPatch.context() as patch, pretended(patch) as accelerator:
        yield accelerator


@pytest.fixture(scope="module")
def bridge(accelerator):
    if Version(version("transformers")) < Version("5.23"):
        pytest.skip("its masks are made of tensors that the pretended device cannot hold")
    return tiny.bridge("llama").to(DEVICE)


def problem_of(bridge, kind="topk", **settings):
    saes = tiny.sae_of_kind(kind).to(DEVICE)
    train = OnDisk(tiny.windows(12))
    return Problem(bridge, saes, [tiny.SITE], train, batch_size=2, **settings)


def waits(accelerator, problem, label):
    """(operation, products before it) of all that is waited for in the second step."""

    class Watching(Meter):
        @contextmanager
        def running(self, a_step=True):
            accelerator.forget()
            with super().running(a_step):
                yield
            found.append([*accelerator.waited])

    entry, found = method.entry(label), []
    batches = Batches(problem.train, 2, 2, seed=0)
    for _ in drive(entry.module, problem, batches, entry.config, Watching(problem.bridge)):
        pass
    return found[-1]


@pytest.mark.parametrize("label", LABELS)
def test_a_step_waits_for_nothing(accelerator, bridge, label):
    assert waits(accelerator, problem_of(bridge), label) == []


@pytest.mark.parametrize("kind", [kind for kind in tiny.KINDS if kind != "topk"])
def test_nor_with_another_sae(accelerator, bridge, kind):
    assert waits(accelerator, problem_of(bridge, kind), "e2e") == []


def test_special_tokens_are_found_before_there_is_anything_to_do(accelerator, bridge):
    where = {"spliced": "not-special", "scored": "not-special", "special": [5, 6]}
    found = waits(accelerator, problem_of(bridge, micro_batch=1, **where), "lora")
    assert found and {products for _, products in found} == {0}


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: torch.ones(3).to(x.device),
    ],
)
def test_what_waits_is_seen(accelerator, wait):
    x = torch.arange(3.0).to(DEVICE)
    accelerator.forget()
    wait(x)
    assert len(accelerator.waited) == 1
    with pytest.raises(RuntimeError, match="two devices"):
        x + torch.ones(3)
