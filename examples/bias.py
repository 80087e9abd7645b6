"""Train the SAE's decoder bias alone, on the model's predictions."""

from dataclasses import dataclass

import torch

from bench.problem import Adapted, copy_of


@dataclass(frozen=True)
class Config:
    lr: float = 1e-2


def train(problem, batches, config):
    saes = copy_of(problem.saes)  # never train what the problem lent you
    adam = torch.optim.Adam([sae.b_dec for sae in saes], lr=config.lr)
    adapted = Adapted(saes=saes, state={"saes": saes, "adam": adam})
    yield adapted  # before any training
    for tokens in batches:
        problem.backward(tokens, adapted)  # clean pass, splice, student, KL, backward
        adam.step()
        saes.zero_grad()
        yield adapted  # after every step
