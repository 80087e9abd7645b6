"""What gradient methods share: the fields of their step size, and the loop that takes the steps."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from bench.errors import require_positive
from bench.problem.batches import Batches
from bench.problem.objectives import Seen, kl_to_clean
from bench.problem.problem import Adapted, Problem, trained_by


@dataclass(frozen=True)
class Descent:
    """The fields of a method that is trained by Adam; its own `Config` adds to them."""

    lr: float
    """Adam's step size."""
    clip: float = 1.0
    """Largest norm of all gradients together."""
    warmup: float = 0.0
    """Share of the run, at its start, over which the step size rises linearly."""
    decay: float = 0.0
    """Share of the run, at its end, over which the step size falls linearly to 0."""

    def __post_init__(self) -> None:
        require_positive(self, "lr", "clip")
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


def schedule(n_steps: int, warmup: float, decay: float) -> Callable[[int], float]:
    """Step -> factor of the step size: it rises, stays, falls, by shares of a run of `n_steps`.

    No step is taken at 0: the first of a rise over w steps has 1/w, the last of a fall as well.
    """
    rise, fall = (max(1, round(share * n_steps)) for share in (warmup, decay))
    return lambda step: min(1.0, (step + 1) / rise, max(0.0, (n_steps - step) / fall))


def descend(
    problem: Problem,
    batches: Batches,
    adapted: Adapted,
    config: Descent,
    loss: Callable[[Seen], Tensor] = kl_to_clean,
    *,
    after_step: Callable[[], None] | None = None,
    groups: Iterable[dict[str, Any]] | None = None,
    moments: dict[str, Any] | None = None,
) -> Iterator[Adapted]:
    """Yield `adapted` before training and after every step of Adam on what its state trains.

    Adam and its schedule are added to the state. `after_step()` puts right what a step may have
    broken. `groups` are Adam's parameter groups, where not all have one step size; `moments` is
    the state of an Adam to go on from.
    """
    parameters = [p for p in trained_by(adapted) if p.requires_grad]
    adam = torch.optim.Adam(groups or parameters, lr=config.lr, fused=True)
    if moments:
        adam.load_state_dict({**adam.state_dict(), "state": moments["state"]})
    factor = schedule(len(batches), config.warmup, config.decay)
    step_sizes = torch.optim.lr_scheduler.LambdaLR(adam, factor)
    adapted.state |= {"adam": adam, "schedule": step_sizes}
    yield adapted
    for tokens in batches:
        problem.backward(tokens, adapted, loss)
        clip_grad_norm_(parameters, config.clip)
        adam.step()
        adam.zero_grad()
        step_sizes.step()
        if after_step:
            after_step()
        yield adapted
