"""End to end: train the SAE itself on the model's predictions.

KL(clean || spliced) as Braun et al. (2405.12241) and Chen et al. (2501.19406) do, per scored
token; or KL and reconstruction together, balanced as Karvonen (2503.17272) does.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.utils import clip_grad_norm_

from bench.problem import Adapted, copy_of, kl_to_clean
from bench.saes import clamp_thresholds


@dataclass(frozen=True)
class Config:
    """Fields of `--set e2e.FIELD=VALUE`."""

    loss: Literal["kl", "kl+mse"] = "kl"
    """KL alone, or 0.5 * (KL rescaled to the size of the MSE + MSE)."""
    lr: float = 6e-4
    """Adam's step size."""
    clip: float = 1.0
    """Largest gradient norm."""

    def __post_init__(self):
        if not (self.lr > 0 and self.clip > 0):
            raise ValueError(f"lr and clip must be above 0, got {self.lr} and {self.clip}")


def train(problem, batches, config):
    """Yield the adapted model before training and after every step."""
    saes = copy_of(problem.saes)
    adam = torch.optim.Adam(saes.parameters(), lr=config.lr)
    adapted = Adapted(saes=saes, state={"saes": saes, "adam": adam})
    loss = {"kl": kl_to_clean, "kl+mse": kl_and_mse}[config.loss]
    yield adapted
    for tokens in batches:
        problem.backward(tokens, adapted, loss)
        clip_grad_norm_(saes.parameters(), config.clip)
        adam.step()
        clamp_thresholds(saes)
        adam.zero_grad()
        yield adapted


def kl_and_mse(seen):
    """0.5 * (alpha * KL + MSE), alpha = MSE / KL held constant in each step.

    Karvonen 2503.17272, `train_model`: the KL takes the MSE's size, so that a step size found
    for reconstruction carries over.
    """
    pairs = zip(seen.reconstructions, seen.sites, strict=True)
    mse = sum(torch.nn.functional.mse_loss(made, given) for made, given in pairs)
    alpha = (mse / (seen.kl + 1e-8)).detach()
    return 0.5 * (alpha * seen.kl + mse)
