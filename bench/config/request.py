"""The request of one call, the settings of one run, and how a run ended."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from bench.config.spec import Spec

EVERY = 30.0
"""Seconds of a run between two checkpoints, unless the user says otherwise."""
TRACKERS = ("wandb", "trackio", "tensorboard")


@dataclass(frozen=True)
class Request:
    """What all runs of a call have in common."""

    spec: Spec
    out: Path
    model_folder: Path | None = None
    """None until the preparation has brought the model there."""
    every: float = EVERY
    """Seconds between two checkpoints; 0 writes one after every step."""
    fresh: bool = False
    """Whether records that are there are set aside before anything is run."""
    micro_batch: int | None = None
    """Windows that go through the model at once; None: the batch, halved until it fits."""
    shard_model: bool = False
    """Whether the LM's blocks are spread over the processes of `torchrun`."""
    force: bool = False
    """Whether an SAE that does not seem to belong is taken all the same."""
    tuned: Path | None = None
    """The folder that the methods have their step sizes from: for one model, that it names."""
    tracker: str | None = None
    """Where the record of each run is also shown, once it has ended."""


@dataclass(frozen=True)
class RunSettings:
    """What makes one run: a method, how it is set, for how long, and where its record goes."""

    method: ModuleType
    config: Any
    """The frozen `Config` of the method's file."""
    header: dict[str, Any]
    """The record's first line."""
    steps: int
    path: Path
    """Of the record; the run's own folder lies beside it."""
    every: float = EVERY
    """Seconds between two checkpoints; 0 writes one after every step."""

    @property
    def folder(self) -> Path:
        """Where the run keeps its checkpoints and what it has trained."""
        return self.path.with_suffix("")


class Outcome(NamedTuple):
    """How a run ended."""

    end: str
    """finished, diverged, interrupted or error."""
    why: str = ""
    code: int = 0
    """The exit code that it calls for."""
