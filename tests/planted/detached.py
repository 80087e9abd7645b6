"""Planted: an adapter that the loss does not see, because its hook detaches what it adds."""

from dataclasses import dataclass

import torch

from bench.problem.problem import Adapted, copy_of


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


def train(problem, batches, config):
    """Trains the SAE, and believes to train a shift as well."""
    saes = copy_of(problem.saes)
    shift = torch.nn.Linear(1, problem.head.weight.shape[1])

    def add(value, hook):
        return value + shift.bias.detach()

    state = {"saes": saes, "shift": shift}
    adapted = Adapted(saes=saes, hooks=[("blocks.2.hook_resid_post", add)], state=state)
    yield adapted
    for tokens in batches:
        problem.backward(tokens, adapted)
        yield adapted
