"""When memory runs out in a training pass: take back what it did, and go on in smaller parts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from bench.devices import random_state, set_random_state
from bench.errors import OutOfMemory

if TYPE_CHECKING:
    from bench.problem.problem import Adapted


class MicroBatching:
    """How many windows of a batch a run passes through the model at once."""

    def __init__(self, size: int, halvings: Sequence[dict[str, Any]] = ()) -> None:
        self.size = size
        self.halvings = list(halvings)
        """For each time that memory ran out: the micro-batch from there on, and whether the loss
        is another one for it (a record's `memory`)."""

    def halve(self, windows: int, seq_len: int) -> None:
        """Go on in halves of what a pass of `windows` had; `OutOfMemory` for one window."""
        if (size := min(self.size, windows)) == 1:
            raise OutOfMemory(
                f"out of memory with one window of {seq_len} tokens at a time: lower --seq-len, "
                "the rank or the layers of the method, or --sae-width"
            )
        self.size = size // 2
        self.halvings.append({"micro_batch": self.size})


class Before:
    """What a training pass changes of an adapted model, to be put back after one that broke off:
    gradients, buffers and random numbers. (Gradients are mostly not there yet, and cost nothing.
    What a loss writes into a parameter, as `mse` does once, stays.)
    """

    def __init__(self, adapted: "Adapted") -> None:
        modules = [part for part in adapted.state.values() if isinstance(part, torch.nn.Module)]
        parameters = [parameter for module in modules for parameter in module.parameters()]
        buffers = [buffer for module in modules for buffer in module.buffers()]
        self._gradients = [(p, None if p.grad is None else p.grad.clone()) for p in parameters]
        self._buffers = [(buffer, buffer.clone()) for buffer in buffers]
        self._random = random_state()

    @torch.no_grad()
    def restore(self) -> None:
        """Put it back."""
        for parameter, gradient in self._gradients:
            parameter.grad = None if gradient is None else gradient.clone()
        for buffer, value in self._buffers:
            buffer.copy_(value)
        set_random_state(self._random)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def has_drawn(self) -> bool:
        """Whether random numbers were drawn since, as for dropout."""
        pairs = zip(_flat(self._random), _flat(random_state()), strict=True)
        return any(not torch.equal(*pair) for pair in pairs)


def _flat(state: dict[str, Any]) -> list[torch.Tensor]:
    return [state["cpu"], *state["cuda"], *([state["mps"]] if "mps" in state else [])]
