"""Blocks compiled one by one: `SPLICEBENCH_COMPILE=blocks`, an experiment that is off by default.

One compiled block stands for all. It runs where there is no gradient and no function on a hook
point: the clean pass, from end to end. Attaching a function would compile anew at every pass.

PyTorch's compiler cannot follow three things in TransformerLens' blocks: how parts look up names, a
name that may be missing, and hooks that hold weak references. Each gets a form that it can follow.
"""

import os
from functools import cache
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.generalized_components.block import BlockBridge

from bench.errors import unknown


def wanted() -> bool:
    """Whether blocks are to be compiled. Raises `Usage` for a word that says nothing."""
    word = os.environ.get("SPLICEBENCH_COMPILE", "")
    if word not in ("", "blocks"):
        raise unknown("SPLICEBENCH_COMPILE", word, ("blocks",))
    return word == "blocks"


class CompiledBlock(BlockBridge):
    """A block that runs compiled where it may."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the bridge's own."""
        hooked = any(getattr(part, "fwd_hooks", None) for part in self.modules())
        if hooked or torch.is_grad_enabled() or self._stop_at_layer_idx is not None:
            return super().forward(*args, **kwargs)
        return _compiled()(self, *args, **kwargs)


@cache
def _compiled() -> Any:
    return torch.compile(BlockBridge.forward)


def compile_blocks(bridge: TransformerBridge) -> None:
    """Let the blocks of this bridge run compiled."""
    GeneralizedComponent.__getattr__ = _attribute
    for block in bridge.blocks:
        if type(block) is BlockBridge:
            block._stop_at_layer_idx = None
            block._teardown_capture_hooks()  # they serve `use_hook_mlp_in`, which is off here
            block._capture_hooks_wired = True
            block.__class__ = CompiledBlock


def _attribute(self: GeneralizedComponent, name: str) -> Any:
    """A part, or what the wrapped component calls so: as the bridge's own, for one name."""
    parts = self.__dict__.get("_modules") or {}
    if name in parts:
        return parts[name]
    original = parts.get("_original_component")
    waits = name == "original_component" or name in (self.__dict__.get("submodules") or {})
    if original is not None and not waits and hasattr(original, name):
        return getattr(original, name)
    raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
