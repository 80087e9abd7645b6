"""Planted: the process dies in its third step, without a word to Python."""

import faulthandler
import os
from dataclasses import dataclass

from bench.problem.problem import Adapted


@dataclass(frozen=True)
class Config:
    """Fields of `--set aborts.FIELD=VALUE`."""

    how: str = "abort"
    """`abort`, or `leave` with an exit code."""


def train(problem, batches, config):
    """Two good steps, then none."""
    adapted = Adapted(saes=problem.saes)
    yield adapted
    for number, _ in enumerate(batches):
        if number == 2:
            faulthandler.disable()  # pytest's, which would print a page
            os.abort() if config.how == "abort" else os._exit(7)
        yield adapted
