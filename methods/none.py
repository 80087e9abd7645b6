"""The spliced model as it is: the reference."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.problem import Adapted, Batches, Problem


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


def train(problem: Problem, batches: Batches, config: Config) -> Iterator[Adapted]:
    """Yield the bare SAEs once; no batch is fetched."""
    yield Adapted(saes=problem.saes)
