"""Planted: trains the problem's own SAEs."""

from dataclasses import dataclass

import torch

from bench.problem.problem import Adapted


@dataclass(frozen=True)
class Config:
    """Fields of this method."""

    lr: float = 1e-2
    """Adam's step size."""


def train(problem, batches, config):
    """End to end, but on what was lent."""
    saes = problem.saes.requires_grad_(True)
    adam = torch.optim.Adam(saes.parameters(), lr=config.lr)
    adapted = Adapted(saes=saes, state={"saes": saes, "adam": adam})
    yield adapted
    for tokens in batches:
        problem.backward(tokens, adapted)
        adam.step()
        adam.zero_grad()
        yield adapted
