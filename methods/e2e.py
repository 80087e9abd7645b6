"""End to end: train the SAE itself on the model's predictions.

KL(clean || spliced) as Braun et al. (2405.12241) and Chen et al. (2501.19406) do, per scored
token; or KL and reconstruction together, balanced as Karvonen (2503.17272) does.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from bench.descent import descend
from bench.errors import require_positive
from bench.problem import Adapted, copy_of
from bench.saes import clamp_thresholds
from bench.seen import LOSSES


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
        require_positive(self, "lr", "clip")


def train(problem, batches, config):
    """Yield the adapted model before training and after every step."""
    saes = copy_of(problem.saes)
    adam = torch.optim.Adam(saes.parameters(), lr=config.lr)
    adapted = Adapted(saes=saes, state={"saes": saes, "adam": adam})
    loss, put_right = LOSSES[config.loss], partial(clamp_thresholds, saes)
    yield from descend(problem, batches, adapted, adam, config.clip, loss, put_right)
