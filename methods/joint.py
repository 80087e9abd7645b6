"""LoRA on the model after the SAE and the SAE itself, trained together on the same loss."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from bench.errors import require_positive
from bench.problem import Adapted, Batches, Descent, Problem, clamp_thresholds, copy_of, descend
from methods import lora

TUNED = {"lr": "lora", "sae_lr": "e2e"}
"""What `tune` scales, by one factor -> the method whose tuned step size it starts at."""


@dataclass(frozen=True)
class Config(Descent):
    """Fields of `--set joint.FIELD=VALUE`."""

    lr: float = 2.5e-3
    """Adam's step size for the adapters."""
    sae_lr: float = 6e-4
    """Adam's step size for the SAE."""
    rank: int = 16
    """Rank of each adapter."""
    alpha: float = 16.0
    """Scale of the update: it is multiplied by alpha / rank."""
    layers: str = "after"
    """As `lora` has it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "sae_lr")
        self.adapters()  # which checks the rest

    def adapters(self) -> lora.Config:
        """The config of `lora` that these adapters are built from."""
        return lora.Config(rank=self.rank, alpha=self.alpha, layers=self.layers, lr=self.lr)


def train(problem: Problem, batches: Batches, config: Config) -> Iterator[Adapted]:
    """Yield the adapted model before training and after every step."""
    adapters, hooks = lora.build(problem, config.adapters())
    saes = copy_of(problem.saes)
    groups = [
        {"params": list(adapters.parameters()), "lr": config.lr},
        {"params": list(saes.parameters()), "lr": config.sae_lr},
    ]
    adapted = Adapted(saes=saes, hooks=hooks, state={"adapters": adapters, "saes": saes})
    put_right = partial(clamp_thresholds, saes)
    yield from descend(problem, batches, adapted, config, groups=groups, after_step=put_right)


def check(config: Config, site_names: Sequence[str], n_blocks: int) -> None:
    """Raise ValueError if the model has no such layer."""
    lora.check(config.adapters(), site_names, n_blocks)
