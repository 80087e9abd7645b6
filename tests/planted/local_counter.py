"""Planted: keeps a counter that the next step depends on in a local variable."""

from dataclasses import dataclass

import torch

from bench.problem.problem import Adapted, copy_of


@dataclass(frozen=True)
class Config:
    """Fields of this method."""

    lr: float = 1e-2
    """Step size of the first step."""


def train(problem, batches, config):
    """End to end with a step size that falls with a count of the steps."""
    saes = copy_of(problem.saes)
    adam = torch.optim.Adam(saes.parameters(), lr=config.lr)
    adapted = Adapted(saes=saes, state={"saes": saes, "adam": adam})
    yield adapted
    for count, tokens in enumerate(batches, start=1):
        adam.param_groups[0]["lr"] = config.lr / count
        problem.backward(tokens, adapted)
        adam.step()
        adam.zero_grad()
        yield adapted
