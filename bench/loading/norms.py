"""RMSNorm inside the bridge in few sweeps.

TransformerLens' bridge computes every norm twice: by transformers' own code, and once more for
its hook points, on which nothing here sits. The bridge's own way stays wherever something does.
Weights that are trained, and number formats other than float32, whose rounding differs between
families, are left to transformers.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge.generalized_components.rms_normalization import (
    RMSNormalizationBridge,
)

OFFSETS = {"LlamaRMSNorm": 0, "Gemma2RMSNorm": 1, "Gemma3RMSNorm": 1}
"""transformers' class of norm -> what it adds to its weight."""


class FusedNorm(RMSNormalizationBridge):
    """The norms of Llama and Gemma, with `hook_in` and `hook_out`."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """As the bridge's own, except that scale and normalized value are not shown."""
        norm, points = self.original_component, (self.hook_scale, self.hook_normalized)
        if any(point._forward_hooks or point._backward_hooks for point in points):
            return super().forward(hidden_states, **kwargs)
        x = self.hook_in(hidden_states)
        if x.dtype != torch.float32 or norm.weight.requires_grad:
            return self.hook_out(norm(x))
        eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
        offset = OFFSETS[type(norm).__name__]
        weight = norm.weight + offset if offset else norm.weight
        return self.hook_out(_RMSNorm.apply(x, weight, eps))


class _RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis; `weight` gets no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "*tokens d"], weight: Float[Tensor, " d"], eps: float
    ) -> Float[Tensor, "*tokens d"]:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors
        gradient = upstream * weight
        along = torch.linalg.vecdot(gradient, x)[..., None]
        along *= inverse**3 / -x.shape[-1]
        return gradient.mul_(inverse).addcmul_(x, along), None, None
