"""Finetune every weight of the blocks after the SAE, which LoRA changes by low-rank updates only.

The blocks are an own copy; embedding, final norm and unembedding stay as they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from bench.errors import require_positive
from bench.problem import Adapted, Batches, Problem, block_after, descend


@dataclass(frozen=True)
class Config:
    """Fields of `--set full.FIELD=VALUE`."""

    lr: float = 1.5e-4
    """Adam's step size."""
    clip: float = 1.0
    """Largest gradient norm."""

    def __post_init__(self) -> None:
        require_positive(self, "lr", "clip")


def train(problem: Problem, batches: Batches, config: Config) -> Iterator[Adapted]:
    """Yield the adapted model before training and after every step."""
    blocks, weights = problem.copy_of_blocks()
    adam = torch.optim.Adam(weights.parameters(), lr=config.lr, fused=True)
    state = {"weights": weights, "adam": adam}
    adapted = Adapted(saes=problem.saes, blocks=blocks, state=state)
    yield from descend(problem, batches, adapted, adam, config.clip)


def check(config: Config, site_names: Sequence[str], n_blocks: int) -> None:
    """Raise ValueError where no block comes after the SAE."""
    if min(map(block_after, site_names)) == n_blocks:
        raise ValueError(f"no block comes after {site_names[0]}")
