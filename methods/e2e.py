"""End to end: train the SAE itself on the model's predictions.

KL(clean || spliced) as Braun et al. (2405.12241) and Chen et al. (2501.19406) do, per scored
token; or KL and reconstruction together, balanced as Karvonen (2503.17272) does. With an `adapter`
the SAE is trained in a model that LoRA has adapted already.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from bench.errors import require_positive
from bench.loading import peft_format
from bench.problem import (
    LOSSES,
    Adapted,
    Batches,
    Problem,
    clamp_thresholds,
    copy_of,
    descend,
    falling,
)
from methods import lora


@dataclass(frozen=True)
class Config:
    """Fields of `--set e2e.FIELD=VALUE`."""

    loss: Literal["kl", "kl+mse"] = "kl"
    """KL alone, or 0.5 * (KL rescaled to the size of the MSE + MSE)."""
    lr: float = 6e-4
    """Adam's step size at the start."""
    decay: float = 0.0
    """Share of the run, at its end, over which the step size falls linearly to 0."""
    clip: float = 1.0
    """Largest gradient norm."""
    adapter: str = ""
    """Folder of a PEFT adapter that stays in the model, as it is, while the SAE is trained."""
    adapter_sha256: str = ""
    """Filled in: the hash of that adapter, so that another one is another run."""

    def __post_init__(self) -> None:
        require_positive(self, "lr", "clip")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be in [0, 1], got {self.decay}")
        if self.adapter:
            object.__setattr__(self, "adapter_sha256", peft_format.sha256(self.adapter))


def train(problem: Problem, batches: Batches, config: Config) -> Iterator[Adapted]:
    """Yield the adapted model before training and after every step."""
    saes = copy_of(problem.saes)
    adam = torch.optim.Adam(saes.parameters(), lr=config.lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, falling(len(batches), config.decay))
    hooks = lora.frozen(problem, config.adapter) if config.adapter else []
    state = {"saes": saes, "adam": adam, "schedule": schedule}
    adapted = Adapted(saes=saes, hooks=hooks, state=state)

    def after_step() -> None:
        clamp_thresholds(saes)
        schedule.step()

    loss = LOSSES[config.loss]
    yield from descend(problem, batches, adapted, adam, config.clip, loss, after_step)
