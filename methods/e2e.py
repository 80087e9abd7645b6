"""End to end: train the SAE itself on the model's predictions.

KL(clean || spliced) as Braun et al. (2405.12241) and Chen et al. (2501.19406) do, per scored
token; or KL and reconstruction together, balanced as Karvonen (2503.17272) does. With an `adapter`
the SAE is trained in a model that LoRA has adapted already.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from typing import Literal

from torch import Tensor

from bench.loading import peft_format
from bench.problem import (
    LOSSES,
    Adapted,
    Batches,
    Descent,
    Problem,
    Seen,
    center,
    clamp_thresholds,
    copy_of,
    descend,
    freeze,
)
from methods import lora


@dataclass(frozen=True)
class Config(Descent):
    """Fields of `--set e2e.FIELD=VALUE`."""

    lr: float = 6e-4
    loss: Literal["kl", "kl+mse"] = "kl"
    """KL alone, or 0.5 * (KL rescaled to the size of the MSE + MSE)."""
    freeze: tuple[str, ...] = ()
    """Parameters of the SAE that stay as they are, such as `threshold` or `W_dec`."""
    adapter: str = ""
    """Folder of a PEFT adapter that stays in the model, as it is, while the SAE is trained."""
    adapter_sha256: str = ""
    """Filled in: the hash of that adapter, so that another one is another run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter:
            object.__setattr__(self, "adapter_sha256", peft_format.sha256(self.adapter))


def train(problem: Problem, batches: Batches, config: Config) -> Iterator[Adapted]:
    """Yield the adapted model before training and after every step."""
    saes = copy_of(problem.saes)
    freeze(saes, config.freeze)
    hooks = lora.frozen(problem, config.adapter) if config.adapter else []
    adapted = Adapted(saes=saes, hooks=hooks, state={"saes": saes})
    untrained = any(not sae.b_dec.any() for sae in saes)
    loss = centered(adapted, LOSSES[config.loss]) if untrained else LOSSES[config.loss]
    put_right = partial(clamp_thresholds, saes)
    yield from descend(problem, batches, adapted, config, loss, after_step=put_right)


def centered(adapted: Adapted, loss: Callable[[Seen], Tensor]) -> Callable[[Seen], Tensor]:
    """The loss, in whose first step an SAE that was never trained starts as under `mse`."""

    @wraps(loss)
    def of(seen: Seen) -> Tensor:
        if not adapted.state["schedule"].last_epoch:
            for sae, target in zip(adapted.saes, seen.targets, strict=True):
                center(sae, target)
        return loss(seen)

    return of
