"""The bridge's blocks run by hand, so that a pass can start and stop where it likes."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module, ParameterDict

Residual = Float[Tensor, "batch seq d_model"]
Tokens = Int[Tensor, "batch seq"]
Copies = dict[int, Module]
"""Block number -> the copy that runs in its place."""


class Blocks:
    """The blocks of one bridge, with the keyword arguments that each one wants.

    Masks and rotary embeddings depend on the shape of the windows alone, since none is padded:
    they are caught once a shape and replayed.
    """

    def __init__(self, bridge: Module) -> None:
        self._bridge = bridge
        self._arguments: dict[torch.Size, dict[int, dict[str, Any]]] = {}

    def __len__(self) -> int:
        return len(self._bridge.blocks)

    def embed(self, tokens: Tokens) -> Residual:
        """The input of the first block."""
        return self._bridge(tokens, stop_at_layer=0)

    def arrive(self, block: int, residual: Residual) -> Residual:
        """A residual put in before `block`: the output of the block before is a hook point too."""
        return self._bridge.blocks[block - 1].hook_out(residual) if block else residual

    def run(
        self, first: int, end: int, residual: Residual, tokens: Tokens, copies: Copies | None = None
    ) -> Residual:
        """The residual after the blocks first .. end - 1."""
        arguments = self._arguments_for(tokens) if first < end else {}
        for index in range(first, end):
            block = (copies or {}).get(index, self._bridge.blocks[index])
            out = block(residual, **arguments[index])
            residual = out[0] if isinstance(out, tuple) else out
        return residual

    def to_final(
        self, first: int, residual: Residual, tokens: Tokens, copies: Copies | None = None
    ) -> Residual:
        """Through the blocks from `first` on and the final norm."""
        return self._bridge.ln_final(self.run(first, len(self), residual, tokens, copies))

    def copies(self, numbers: Iterable[int]) -> tuple[Copies, ParameterDict]:
        """Trainable copies of these blocks, and their weights."""
        copies = {number: _copy(self._bridge.blocks[number]) for number in numbers}
        weights = ParameterDict()
        for number, block in copies.items():
            for name, weight in named_weights(block).items():
                key = f"{number}.{name}".replace("_original_component.", "")
                weights[key.replace(".", "-")] = weight.requires_grad_(True)
        return copies, weights

    def prepare(self, tokens: Tokens) -> None:
        """Catch the arguments for windows of this shape, as long as no hook is attached."""
        self._arguments_for(tokens)

    def _arguments_for(self, tokens: Tokens) -> dict[int, dict[str, Any]]:
        if tokens.shape not in self._arguments:
            self._arguments[tokens.shape] = self._catch(tokens)
        return self._arguments[tokens.shape]

    @torch.no_grad()
    def _catch(self, tokens: Tokens) -> dict[int, dict[str, Any]]:
        caught: dict[int, dict[str, Any]] = {}
        handles = [
            block.register_forward_pre_hook(_keeper(caught, index), with_kwargs=True)
            for index, block in enumerate(self._bridge.blocks)
        ]
        try:
            self._bridge(tokens, use_cache=False, logits_to_keep=1)
        finally:
            for handle in handles:
                handle.remove()
        return caught


def _keeper(caught: dict[int, dict[str, Any]], index: int) -> Callable[..., None]:
    def keep(block: Module, positional: tuple, keywords: dict[str, Any]) -> None:
        caught[index] = {k: v for k, v in keywords.items() if k != "hidden_states"}
        if _only_causal(keywords.get("attention_mask")):
            caught[index]["attention_mask"] = None

    return keep


def _only_causal(mask: Tensor | None) -> bool:
    """Whether a mask says no more than attention knows without one, and does faster."""
    if mask is None or mask.dtype == torch.bool or mask.ndim != 4:
        return False
    seq_len = mask.shape[-1]
    causal = torch.ones(seq_len, seq_len, dtype=torch.bool, device=mask.device).tril()
    return mask.shape[-2] == seq_len and bool(((mask == 0) == causal).all())


def named_weights(block: Module) -> dict[str, torch.nn.Parameter]:
    """Name -> each weight that a block runs on: of GPT-2's q, k and v the parts, not the whole."""
    return {name: weight for name, weight in block.named_parameters() if ".qkv." not in name}


def _copy(block: Module) -> Module:
    """A copy of a block that shares nothing with it but the hooks that sit on its output.

    Those are the meter's: it counts the passes of the copy too, and lets go of both at once.
    """
    hooks, block._forward_hooks = block._forward_hooks, OrderedDict()
    try:
        # TransformerLens' attention holds on to a part of the last pass, which cannot be copied.
        held = [v for part in block.modules() for v in vars(part).values() if _of_a_pass(v)]
        copied = deepcopy(block, {id(value): None for value in held})
    finally:
        block._forward_hooks = hooks
    copied._forward_hooks = hooks
    return copied


def _of_a_pass(value: object) -> bool:
    return isinstance(value, Tensor) and value.grad_fn is not None
