"""A low-rank linear adapter on what the SAE gives (Karvonen 2503.17272): y + B A y.

Nothing in the LM is adapted, and the adapter is folded into the SAE's decoder when saved.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bench.errors import require_positive
from bench.problem import LOSSES, Adapted, Batches, Descent, Problem, correct, descend


@dataclass(frozen=True)
class Config(Descent):
    """Fields of `--set linear.FIELD=VALUE`."""

    lr: float = 1e-3
    rank: int = 16
    """Rank of the adapter."""
    loss: Literal["kl", "kl+mse"] = "kl"
    """KL alone, or balanced with the reconstruction's MSE, as Karvonen trains it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "rank")


class LowRankResidual(torch.nn.Module):
    """y + B A y, with B = 0 at first."""

    def __init__(self, d_in: int, rank: int) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.empty(rank, d_in))
        self.b = torch.nn.Parameter(torch.zeros(d_in, rank))
        torch.nn.init.kaiming_uniform_(self.a, a=5**0.5)

    def forward(self, y: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_in"]:
        return y + y @ self.a.T @ self.b.T


def train(problem: Problem, batches: Batches, config: Config) -> Iterator[Adapted]:
    """Yield the adapted model before training and after every step."""
    maps, saes = correct(problem.saes, partial(LowRankResidual, rank=config.rank))
    adapted = Adapted(saes=saes, state={"maps": maps})
    yield from descend(problem, batches, adapted, config, LOSSES[config.loss])
