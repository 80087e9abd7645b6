"""Causal attention with a softcap (Gemma-2's) that never holds the scores of all heads at once.

PyTorch's fused kernel knows no softcap. Here queries go through in pieces, each against the keys
that it may see, and the backward pass forms the scores of a piece anew. On CUDA a window that is
long enough goes to FlexAttention, once that has been seen to give the same.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.weak import WeakTensorKeyDictionary

from bench.io.console import say

FLEX_FROM = 512
"""Tokens of a window from which FlexAttention is used (below, it is said to be no faster)."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""How far FlexAttention's output and gradients may be off, relative to their norm."""
NUMBERS = {"cpu": 2**20, "cuda": 2**26, "mps": 2**24}
"""Scores of a piece, which is of all windows and heads: 4 MiB in float32, 256, 64."""


class How(NamedTuple):
    """What is the same for every query."""

    scale: float
    cap: float
    window: int | None
    """How many keys a query sees, its own included; None for all before it."""
    rows: int
    """Queries of a piece."""


class Piece(NamedTuple):
    """The queries `rows`, which see no key but `keys`."""

    rows: slice
    keys: slice

    def of(self, queries: Tensor) -> Float[Tensor, "groups rows d"]:
        """The part of [groups, heads, seq, d], the heads one after the other."""
        return queries[:, :, self.rows].flatten(1, 2)

    def seen(self, keys: Tensor) -> Float[Tensor, "groups keys d"]:
        """The part of [groups, seq, d]."""
        return keys[:, self.keys]


def attend(
    q: Float[Tensor, "batch heads seq d"],
    k: Float[Tensor, "batch kv_heads seq d"],
    v: Float[Tensor, "batch kv_heads seq d"],
    mask: Float[Tensor, "#batch 1 seq seq"] | None,
    scale: float,
    cap: float,
    window: int | None = None,
) -> Float[Tensor, "batch heads seq d"]:
    """softmax(cap * tanh(scale * q k / cap) + mask) v; causal, with or without a `mask`.

    A query sees `window` keys, its own included, or all before it.
    """
    shape = (q.shape[1], k.shape[1], q.shape[3])
    if q.is_cuda and q.shape[2] >= FLEX_FROM and _flex_agrees(shape, q.dtype, scale, cap):
        return flexible(q, k, v, mask, scale, cap, window)
    return in_pieces(q, k, v, mask, scale, cap, window)


def in_pieces(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    cap: float,
    window: int | None = None,
    rows: int | None = None,
) -> Float[Tensor, "batch heads seq d"]:
    """As `attend`, on any device; `rows` queries at a time."""
    batch, heads, seq, d = q.shape
    groups = k.shape[:2].numel()
    rows = rows or max(16, NUMBERS.get(q.device.type, 2**20) // (batch * heads * seq))
    if mask is not None:  # one for each group
        mask = mask.expand(batch, k.shape[1], seq, seq).reshape(groups, seq, seq)
    q = q.reshape(groups, -1, seq, d)
    k, v = k.reshape(groups, seq, d), v.reshape(groups, seq, d)
    return _Attend.apply(q, k, v, mask, How(scale, cap, window, rows)).view(batch, heads, seq, d)


def flexible(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    cap: float,
    window: int | None = None,
) -> Float[Tensor, "batch heads seq d"]:
    """As `attend`, by FlexAttention."""
    seen = _blocks_of(q.shape[2], window, q.device) if mask is None else _under(mask, window)
    return _flex()(q, k, v, _softcap(cap), seen, scale, enable_gqa=True)


@cache
def _flex() -> Callable[..., Any]:
    return torch.compile(flex_attention)


@cache  # a function of its own at each call would be compiled anew
def _softcap(cap: float) -> Callable[..., Tensor]:
    return lambda score, batch, head, query, key: cap * torch.tanh(score / cap)


@cache
def _blocks_of(seq: int, window: int | None, device: torch.device) -> BlockMask:
    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < (window or seq))

    return create_block_mask(sees, None, None, seq, seq, device=device)


_masks = WeakTensorKeyDictionary()


def _under(mask: Float[Tensor, "batch 1 seq seq"], window: int | None) -> BlockMask:
    """What a mask leaves to see, found once: the same mask comes for every block and step."""
    known, seq = _masks.setdefault(mask, {}), mask.shape[-1]
    if window in known:
        return known[window]
    several, allowed = len(mask) > 1, mask[:, 0] == 0

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (key <= query) & (query - key < (window or seq))
        return near & allowed[batch if several else 0, query, key]

    batch = len(mask) if several else None
    known[window] = create_block_mask(sees, batch, None, seq, seq, device=mask.device)
    return known[window]


@cache
def _flex_agrees(shape: tuple[int, int, int], dtype: torch.dtype, scale: float, cap: float) -> bool:
    """Whether FlexAttention works here for these (heads, heads of keys, d), there and back."""
    heads, kv_heads, d = shape
    results = []
    try:
        for one in (in_pieces, flexible):
            generator = torch.Generator("cuda").manual_seed(0)
            qkv = [
                torch.randn(1, n, FLEX_FROM, d, device="cuda", dtype=dtype, generator=generator)
                for n in (heads, kv_heads, kv_heads)
            ]
            with torch.enable_grad():
                q, k, v = (x.requires_grad_(True) for x in qkv)
                z = one(q, k, v, None, scale, cap)
                results.append([z.detach(), *torch.autograd.grad(z.square().sum(), qkv)])
        errors = [((b - a).norm() / a.norm()).item() for a, b in zip(*results, strict=True)]
        if max(errors) < TOLERANCE[dtype]:
            return True
        why = f"off by {max(errors):.0e}, {TOLERANCE[dtype]:.0e} is allowed"
    except Exception as error:  # a compiler's: of every kind
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
    say(f"softcapped attention goes without FlexAttention: {why}")
    return False


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, how: How
    ) -> Float[Tensor, "groups heads seq d"]:
        z = torch.empty_like(q)
        for piece in _pieces(q, how):
            p, _ = _pattern(q, k, mask, piece, how)
            _put(z, piece, p @ piece.seen(v))
        ctx.save_for_backward(q, k, v, z, mask)
        ctx.how = how
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, z, mask = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        inner = torch.linalg.vecdot(dz, z)[..., None]
        for piece in _pieces(q, ctx.how):
            p, t = _pattern(q, k, mask, piece, ctx.how)
            d = piece.of(dz)
            piece.seen(dv).add_(p.mT @ d)
            ds = (d @ piece.seen(v).mT).sub_(piece.of(inner)).mul_(p)
            ds.addcmul_(ds * t, t, value=-1)  # the derivative of tanh is 1 - tanh^2
            _put(dq, piece, ds @ piece.seen(k))
            piece.seen(dk).add_(ds.mT @ piece.of(q))
        return dq.mul_(ctx.how.scale), dk.mul_(ctx.how.scale), dv, None, None


def _put(whole: Tensor, piece: Piece, part: Tensor) -> None:
    place = whole[:, :, piece.rows]
    place.copy_(part.view(place.shape))


def _pieces(q: Float[Tensor, "groups heads seq d"], how: How) -> Iterator[Piece]:
    for at in range(0, q.shape[2], how.rows):
        end = min(at + how.rows, q.shape[2])
        first = max(0, at - how.window + 1) if how.window else 0
        yield Piece(slice(at, end), slice(first, end))


def _pattern(
    q: Tensor, k: Tensor, mask: Tensor | None, piece: Piece, how: How
) -> tuple[Float[Tensor, "groups rows keys"], Float[Tensor, "groups rows keys"]]:
    """(what each query takes of each key, tanh of its scores) in a piece."""
    scores = piece.of(q).mul(how.scale / how.cap) @ piece.seen(k).mT
    tanh = _tanh_(scores)
    (at, end), keys = (piece.rows.start, piece.rows.stop), tanh.shape[-1]
    logits = (tanh * how.cap).view(len(q), -1, end - at, keys)
    if mask is not None:
        logits.add_(mask[:, None, piece.rows, piece.keys])
    logits[..., at - end :].add_(_later(end - at, logits.dtype, logits.device))
    if how.window and end > how.window:
        query = torch.arange(at, end, device=q.device)[:, None]
        key = torch.arange(piece.keys.start, end, device=q.device)
        logits.masked_fill_(key <= query - how.window, -torch.inf)
    pattern = torch.softmax(logits, -1, torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    return pattern.view(tanh.shape), tanh


def _later(n: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "n n"]:
    """What is added to the scores of n queries and the same keys, so that none sees a later one."""
    return torch.full((n, n), -torch.inf, dtype=dtype, device=device).triu_(1)


def _tanh_(x: Tensor) -> Tensor:
    """tanh(x), perhaps in place; on a CPU from expm1, which is quicker and as exact."""
    if x.device.type != "cpu":
        return x.tanh_()
    grown = x.clamp_(max=40).mul_(2).expm1_()
    return grown.div_(grown + 2)
