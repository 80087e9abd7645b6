"""Planted: raises at its third step."""

from dataclasses import dataclass

from bench.problem.problem import Adapted


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


def train(problem, batches, config):
    """Two good steps, then none."""
    adapted = Adapted(saes=problem.saes)
    yield adapted
    for number, _ in enumerate(batches):
        if number == 2:
            raise RuntimeError("planted failure")
        yield adapted
