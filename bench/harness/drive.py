"""Drives a method step by step: the clock around it, and all that its next step depends on."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy
import torch
from tqdm import tqdm

from bench.devices import random_state, set_random_state
from bench.harness.meter import Meter
from bench.problem.batches import Batches, noise
from bench.problem.problem import Adapted, Problem


class Diverged(Exception):
    """The loss is no longer finite."""


def drive(
    method: ModuleType,
    problem: Problem,
    batches: Batches,
    config: object,
    meter: Meter,
    resume: dict[str, Any] | None = None,
    bar: tqdm | None = None,
) -> Iterator[tuple[int, Adapted]]:
    """Yield (step, adapted) before the first step and after each one.

    The clock runs inside `next()` of the method and nowhere else. `resume` is a `snapshot` to
    set at the first yield: state, random numbers, data cursor, in this order; the first step
    that is yielded is then its own. A method that ends early (`none`) ends the run.
    """
    generator = method.train(problem, batches, config)
    with meter.running(a_step=False):
        adapted = next(generator)
    step = 0
    if resume:
        step = restore(resume, adapted, batches)
        meter.take_up(resume["meters"])
    while adapted is not None:
        check_finite(problem.last_loss, step)
        if bar is not None:
            show(bar, step, problem.last_loss)
        yield step, adapted
        if step == len(batches):  # a method that asks for more has none, and nothing to say
            generator.close()
            return
        with meter.running():
            adapted = next(generator, None)
        step += 1


def check_finite(loss: torch.Tensor | None, step: int) -> None:
    """Raise `Diverged` where the step's loss is NaN or infinite."""
    if loss is not None and not torch.isfinite(loss):
        raise Diverged(f"loss {float(loss)} at step {step}")


def show(bar: tqdm, step: int, loss: torch.Tensor | None) -> None:
    """Move the progress bar."""
    if loss is not None and not bar.disable:
        bar.set_postfix_str(f"loss {float(loss):.4f}", refresh=False)
    bar.update(step - bar.n)


def seed_all(seed: int) -> None:
    """Seed every generator of random numbers that a method may draw from."""
    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)
    random.seed(seed)


def snapshot(step: int, adapted: Adapted, batches: Batches, meters: list) -> dict[str, Any]:
    """All that the next step depends on, as tensors and plain values; `meters` are the states of
    the meters, by process."""
    return {
        "step": step,
        "state": {name: _plain(part.state_dict()) for name, part in adapted.state.items()},
        "random": {
            "torch": random_state(),
            "numpy": _plain(numpy.random.get_state(legacy=False)),
            "python": random.getstate(),
        },
        "cursor": batches.cursor,
        "meters": meters,
    }


def restore(kept: dict[str, Any], adapted: Adapted, batches: Batches) -> int:
    """Set a `snapshot`; returns its step."""
    for name, part in adapted.state.items():
        part.load_state_dict(_plain(kept["state"][name]))
    set_random_state(kept["random"]["torch"])
    numpy.random.set_state(kept["random"]["numpy"])
    random.setstate(kept["random"]["python"])
    batches.cursor = kept["cursor"]
    return kept["step"]


def _plain(value: Any) -> Any:
    """A copy in which nothing is shared and numpy's arrays are lists."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, numpy.ndarray):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list) else value


@contextmanager
def evaluating(adapted: Adapted) -> Iterator[None]:
    """Modules of the state in eval mode, and the random numbers as they were afterwards."""
    parts = [part for part in adapted.state.values() if isinstance(part, torch.nn.Module)]
    modes = [(module, module.training) for part in parts for module in part.modules()]
    drawn = random_state()
    try:
        for part in parts:
            part.eval()
        yield
    finally:
        set_random_state(drawn)
        for module, mode in modes:  # each its own: a part of it may have been in eval before
            module.training = mode


def warm_up(method: ModuleType, problem: Problem, config: object) -> None:
    """Two steps on noise, before the seed is set, metered nowhere."""
    vocabulary, seq_len = len(problem.head.weight), problem.train.shape[1]
    batches = noise(vocabulary, problem.batch_size, seq_len, 2, problem.train.device)
    for _ in method.train(problem, batches, config):
        pass
