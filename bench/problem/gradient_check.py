"""Whether the gradient reaches what a method trains: looked at in the first two passes."""

from collections.abc import Iterator

import torch

from bench.problem.problem import Adapted


class NoGradient(Exception):
    """Something that is to be trained never will be."""


class Reached:
    """Called after each training pass with the adapted model; raises `NoGradient`.

    Every tensor must have a gradient after the first pass. After the second, one of the gradients
    must not be zero: that of LoRA's A is exactly zero in the first.
    """

    def __init__(self) -> None:
        self._passes, self._any = 0, False

    def __call__(self, adapted: Adapted) -> None:
        if self._passes == 2:
            return
        self._passes += 1
        tensors = dict(_trainable(adapted))
        if not tensors:
            raise NoGradient("nothing to train: `state` names no module with trainable parameters")
        missing = [name for name, tensor in tensors.items() if tensor.grad is None]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise NoGradient(f"no gradient reaches {', '.join(missing[:3])}{more}")
        self._any = self._any or any(bool(tensor.grad.any()) for tensor in tensors.values())
        if self._passes == 2 and not self._any:
            raise NoGradient(f"the gradient of all {len(tensors)} trained tensors is zero")


def _trainable(adapted: Adapted) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for part, module in adapted.state.items():
        if isinstance(module, torch.nn.Module):
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    yield f"{part}.{name}", parameter
