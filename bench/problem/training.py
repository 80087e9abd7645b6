"""The loop that gradient methods share: backward, clip, step."""

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from bench.problem.objectives import Seen, kl_to_clean
from bench.problem.problem import Adapted, Problem


def falling(n_steps: int, share: float) -> Callable[[int], float]:
    """Step -> factor of the step size: 1, then linearly to 0 over the last `share` of the run."""
    length = max(1, round(share * n_steps))
    return lambda step: min(1.0, max(0.0, (n_steps - step) / length))


def descend(
    problem: Problem,
    batches: Iterable[Tensor],
    adapted: Adapted,
    adam: Optimizer,
    clip: float,
    loss: Callable[[Seen], Tensor] = kl_to_clean,
    after_step: Callable[[], None] | None = None,
) -> Iterator[Adapted]:
    """Yield `adapted` before training and after every step of the optimizer `adam`.

    The norm of all gradients together is at most `clip`; `after_step()` puts right what a step
    may have broken.
    """
    parameters = [p for group in adam.param_groups for p in group["params"]]
    yield adapted
    for tokens in batches:
        problem.backward(tokens, adapted, loss)
        clip_grad_norm_(parameters, clip)
        adam.step()
        adam.zero_grad()
        if after_step:
            after_step()
        yield adapted
