"""Finetune every weight of the blocks after the SAE, which LoRA changes by low-rank updates only.

The blocks are an own copy; embedding, final norm and unembedding stay as they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.problem import Adapted, Batches, Descent, Problem, block_after, descend


@dataclass(frozen=True)
class Config(Descent):
    """Fields of `--set full.FIELD=VALUE`."""

    lr: float = 1.5e-4


def train(problem: Problem, batches: Batches, config: Config) -> Iterator[Adapted]:
    """Yield the adapted model before training and after every step."""
    blocks, weights = problem.copy_of_blocks()
    adapted = Adapted(saes=problem.saes, blocks=blocks, state={"weights": weights})
    yield from descend(problem, batches, adapted, config)


def check(config: Config, site_names: Sequence[str], n_blocks: int) -> None:
    """Raise ValueError where no block comes after the SAE."""
    if min(map(block_after, site_names)) == n_blocks:
        raise ValueError(f"no block comes after {site_names[0]}")
