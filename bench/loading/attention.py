"""Attention inside the bridge by PyTorch's fused kernel.

TransformerLens' bridge forms scores and pattern of every head, [batch, heads, seq, seq] each, so
that they can be hooked. Nothing here hooks them; `scaled_dot_product_attention` forms neither.
The bridge's own way stays wherever something sits on those hook points, in training mode, and with
a key-value cache. It stays for every attention that is not listed here. The kernel knows no
softcap: for Gemma-2's there is `bench/loading/softcap.py`. This file leans on private parts of
TransformerLens, so it checks the version and its own output before it is used.
"""

from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.joint_qkv_attention import (
    JointQKVAttentionBridge,
)
from transformer_lens.model_bridge.generalized_components.position_embeddings_attention import (
    PositionEmbeddingsAttentionBridge,
)
from transformer_lens.model_bridge.generalized_components.rms_normalization import (
    RMSNormalizationBridge,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from bench.io.console import say
from bench.loading import norms, softcap

KNOWN = "3.9."
"""The versions of TransformerLens that this file was written for."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""How far the final hidden states may move, relative to their norm: a few roundings a block."""


def _plain(attention: torch.nn.Module, cache: object) -> bool:
    """Whether nothing is asked of this attention but its output."""
    config = attention.config
    watched = (attention.hook_attn_scores, attention.hook_pattern)
    special = ("use_split_qkv_input", "use_attn_in", "use_attn_result")
    return not (
        attention.training
        or attention.compatibility_mode
        or cache is not None
        or any(point._forward_hooks or point._backward_hooks for point in watched)
        or any(getattr(config, name, False) for name in special)
    )


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None
) -> Tensor:
    """Heads [batch, heads, seq, d_head], fewer of k and v allowed -> [batch, seq, d]."""
    settings = {"is_causal": mask is None, "scale": scale, "enable_gqa": k.shape[1] != q.shape[1]}
    return scaled_dot_product_attention(q, k, v, mask, **settings).transpose(1, 2).flatten(2)


class FusedRotary(PositionEmbeddingsAttentionBridge):
    """Llama's and Gemma-3's: separate projections, norms of q and k perhaps, rotary positions."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """As the bridge's own, except that no pattern is returned."""
        if args or not _plain(self, kwargs.get("past_key_values")):
            return super().forward(*args, **kwargs)
        inner = self.original_component
        x = self.hook_in(kwargs["hidden_states"])
        heads = (*x.shape[:-1], -1, inner.head_dim)
        q, k, v = (part(x).view(heads).transpose(1, 2) for part in (self.q, self.k, self.v))
        if "q_norm" in self.submodules:
            q, k = self.hook_q_normed(self.q_norm(q)), self.hook_k_normed(self.k_norm(k))
        positions = self._apply_position_embedding_hooks(kwargs["position_embeddings"])
        q, k = apply_rotary_pos_emb(q, k, *positions)
        q, k = self.hook_rot_q(q), self.hook_rot_k(k)
        return self.hook_out(self.o(self._mix(q, k, v, kwargs.get("attention_mask")))), None

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return _attend(q, k, v, mask, self.original_component.scaling)


class FusedCapped(FusedRotary):
    """Gemma-2's: the same with a softcap of the scores."""

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        inner = self.original_component
        if not (cap := inner.attn_logit_softcapping):
            return super()._mix(q, k, v, mask)
        z = softcap.attend(q, k, v, mask, inner.scaling, cap, inner.sliding_window)
        return z.transpose(1, 2).flatten(2)


class FusedJoint(JointQKVAttentionBridge):
    """GPT-2's: one map for q, k and v, which the bridge has split."""

    def _reconstruct_attention(
        self, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if not _plain(self, kwargs.get("past_key_values")):
            return super()._reconstruct_attention(q, k, v, **kwargs)
        q, k, v, *_ = self._reshape_qkv_to_heads(q, k, v, self.config.n_heads)
        z = _attend(q, k, v, kwargs.get("attention_mask"))
        return self._apply_output_projection(z), None


FUSED = {
    "LlamaAttention": FusedRotary,
    "Gemma2Attention": FusedCapped,
    "Gemma3Attention": FusedRotary,
    "GPT2Attention": FusedJoint,
}
"""The model's own class of attention -> ours."""
CAP = "attn_logit_softcapping"
ODD: tuple[str, ...] = (CAP, "sinks", "scale_attn_by_inverse_layer_idx")
ODD += ("reorder_and_upcast_attn",)
"""Settings that the fused kernel does not know."""


def fuse(bridge: TransformerBridge) -> None:
    """Fuse the attention of every block that allows it, and norms, if that changes nothing."""
    swaps = [(part, _fused_class(part)) for part in bridge.modules()]
    swaps = [(part, fused) for part, fused in swaps if fused]
    if not swaps:
        return
    if not version("transformer-lens").startswith(KNOWN):
        say(f"attention is not fused: written for TransformerLens {KNOWN}x, this is another")
        return
    before, originals = _final(bridge), [type(part) for part, _ in swaps]
    for part, fused in swaps:
        part.__class__ = fused
    moved = (_final(bridge) - before).norm() / before.norm()
    allowed = TOLERANCE[bridge.unembed.weight.dtype]
    if not moved < allowed:
        for (part, _), original in zip(swaps, originals, strict=True):
            part.__class__ = original
        say(f"attention is not fused: the output moved by {moved:.0e}, {allowed:.0e} is allowed")


def _fused_class(part: torch.nn.Module) -> type | None:
    """The fused class for this part of a bridge; None for others, or for an odd setting."""
    inner = getattr(part, "original_component", None)
    if type(part) is RMSNormalizationBridge and type(inner).__name__ in norms.OFFSETS:
        return norms.FusedNorm
    fused = FUSED.get(type(inner).__name__)
    odd = [name for name in ODD if getattr(inner, name, None)]
    return None if [name for name in odd if fused is not FusedCapped or name != CAP] else fused


@torch.no_grad()
def _final(bridge: TransformerBridge) -> Tensor:
    """Final hidden states of a window longer than any tile of the kernel's: [1, seq, d_model]."""
    generator = torch.Generator().manual_seed(0)
    device, vocabulary = bridge.unembed.weight.device, len(bridge.unembed.weight)
    seq_len = min(96, getattr(bridge.cfg, "n_ctx", 96))
    tokens = torch.randint(vocabulary, (1, seq_len), generator=generator).to(device)
    outputs: list[Tensor] = []
    handle = bridge.ln_final.register_forward_hook(lambda *values: outputs.append(values[-1]))
    try:
        bridge(tokens, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return outputs[0].float()
