"""Scale and shift what the SAE gives, dimension by dimension, on the model's predictions.

The smallest correction there is: 2 x d_in numbers, folded into the SAE's decoder when saved.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bench.problem import Adapted, Batches, Descent, Problem, correct, descend


@dataclass(frozen=True)
class Config(Descent):
    """Fields of `--set affine.FIELD=VALUE`."""

    lr: float = 4e-2


class Affine(torch.nn.Module):
    """y * scale + shift, at first the identity."""

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(d_in))
        self.shift = torch.nn.Parameter(torch.zeros(d_in))

    def forward(self, y: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_in"]:
        return y * self.scale + self.shift


def train(problem: Problem, batches: Batches, config: Config) -> Iterator[Adapted]:
    """Yield the adapted model before training and after every step."""
    maps, saes = correct(problem.saes, Affine)
    adapted = Adapted(saes=saes, state={"maps": maps})
    yield from descend(problem, batches, adapted, config)
