"""Causal attention on a CPU whose matrix products are oneDNN's: a backward pass made of them.

PyTorch's fused kernel takes its products from BLAS and shares them out by heads of keys, of which
there are few. Its forward pass is as fast as it can be, and stays.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.loading import cpu_kernels

LEAST = 512
"""Tokens of a window from which this is faster than PyTorch's own."""
ROWS = 256
"""Queries of a piece, of all heads that share a key: their scores stay in the cache."""


def pays(q: Float[Tensor, "batch heads seq d"], k: Float[Tensor, "batch kv_heads seq d"]) -> bool:
    """Whether `attend` is the faster way on this machine: only if heads share their keys."""
    wanted = q.requires_grad and torch.is_grad_enabled() and q.dtype == torch.float32
    large = q.shape[2] >= LEAST and q.shape[1] > k.shape[1]
    return wanted and large and q.device.type == "cpu" and cpu_kernels.install() == "oneDNN"


def attend(
    q: Float[Tensor, "batch heads seq d"],
    k: Float[Tensor, "batch kv_heads seq d"],
    v: Float[Tensor, "batch kv_heads seq d"],
    scale: float | None = None,
) -> Float[Tensor, "batch heads seq d"]:
    """softmax(scale * q k) v, of each query over the keys before it and its own."""
    return _Attend.apply(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        z = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        ctx.save_for_backward(q, k, v, z)
        ctx.scale = scale
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        shapes = [x.shape for x in ctx.saved_tensors[:3]]
        q, k, v, z = ctx.saved_tensors
        (*_, seq, d), groups = q.shape, k.shape[:2].numel()
        q, z, dz = (x.reshape(groups, -1, seq, d) for x in (q, z, dz))
        k, v = (x.reshape(groups, seq, d).contiguous() for x in (k, v))
        dq = torch.empty(q.shape)
        dk, dv = torch.zeros(2, groups, d, seq)  # turned over: so oneDNN copies the small factor
        inner = torch.linalg.vecdot(dz, z)
        later = torch.full((ROWS, ROWS), -torch.inf).triu_(1)
        for group in range(groups):
            for at in range(0, seq, ROWS):
                rows, keys = slice(at, min(at + ROWS, seq)), slice(0, min(at + ROWS, seq))
                n = rows.stop - at
                queries = q[group, :, rows].flatten(0, 1) * ctx.scale
                upstream = dz[group, :, rows].flatten(0, 1)
                scores = queries @ k[group, keys].t()
                scores.view(-1, n, keys.stop)[..., at:].add_(later[:n, :n])
                p = torch.softmax(scores, -1)
                dv[group, :, keys] += upstream.t() @ p
                ds = upstream @ v[group, keys].t()
                ds.sub_(inner[group, :, rows].reshape(-1, 1)).mul_(p)
                dq[group, :, rows] = (ds @ k[group, keys]).view(-1, n, d)
                dk[group, :, keys] += queries.t() @ ds
        gradients = (dq.mul_(ctx.scale), dk.mT, dv.mT)
        return *(x.view(shape) for x, shape in zip(gradients, shapes, strict=True)), None
