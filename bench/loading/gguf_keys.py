"""What a GGUF file says of the model's function: every key is understood, or the file is refused.

transformers leaves out the keys that it does not know and puts its own defaults in their place.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bench.loading.weights import shown

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def _theta(kind: str) -> Callable[..., float]:
    """The base of the rotary frequencies; `kind` is Gemma-3's name of an attention."""

    def read(config: "PretrainedConfig") -> float:
        return config.rope_parameters.get(kind, config.rope_parameters)["rope_theta"]

    return read


SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "vocab_size": "vocab_size",
    "attention.head_count": "num_attention_heads",
}
LLAMA = SIZES | {
    "feed_forward_length": "intermediate_size",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.dimension_count": "head_dim",
    "rope.freq_base": _theta("full_attention"),
}
GEMMA = LLAMA | {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    # The scale of the attention is not in the file: known only where it is the head's width.
    "attention.value_length": "query_pre_attn_scalar",
}
MEANT = {
    "gpt2": SIZES
    | {
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
        "feed_forward_length": lambda config: config.n_inner or 4 * config.n_embd,
    },
    "llama": LLAMA,
    "gemma2": GEMMA,
    "gemma3": GEMMA | {"rope.freq_base_swa": _theta("sliding_attention")},
}
"""Architecture -> key without its beginning -> the same value of transformers' config."""
EPSILON = "attention.layer_norm_rms_epsilon"
NEEDED = {
    "gpt2": ("attention.head_count", "attention.layer_norm_epsilon"),
    "llama": ("attention.head_count", EPSILON),
    "gemma2": ("attention.head_count", "attention.key_length", "attention.value_length", EPSILON),
    "gemma3": (
        "attention.head_count",
        "attention.key_length",
        "attention.value_length",
        "attention.sliding_window",
        EPSILON,
        "rope.freq_base",
    ),
}
"""Keys that no tensor's shape tells, and for which transformers has a default of its own."""
NEUTRAL = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "pooling_type": (0,),
    "rope.scale_linear": (1,),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.factor": (0, 1),
    "rope.scaling.type": ("none",),
    "tensor_data_layout": ("Meta AI original pth",),
}
"""What is not in the config: the values at which it changes nothing."""
NEUTRAL_OF = {
    "llama": NEUTRAL | {"attention.sliding_window": (0,)},
    "gpt2": NEUTRAL,
    "gemma2": NEUTRAL | {"attention.sliding_window_pattern": (2,)},
    "gemma3": NEUTRAL | {"attention.sliding_window_pattern": (6,)},
}
HARMLESS = ("rope.scaling.finetuned", "rope.scaling.original_context_length")
"""Of no effect by themselves."""


def lost(architecture: str, header: dict[str, Any]) -> str | None:
    """What a conversion would lose of a header's `{key: value}`, on one line, or None."""
    if header.get("general.type", "model") != "model":
        return f"general.type is {_value(header['general.type'])}, expected 'model'"
    for key in NEEDED[architecture]:
        if f"{architecture}.{key}" not in header:
            return f"it does not say {architecture}.{key}"
    for key, value in _own(architecture, header):
        neutral = NEUTRAL_OF[architecture].get(key)
        if key in MEANT[architecture] or key in HARMLESS:
            continue
        if neutral is None:
            return f"{_is(architecture, key, value)}, a key that is not known here"
        if value not in neutral:
            expected = " or ".join(map(repr, neutral))
            return f"{_is(architecture, key, value)}, which would be lost, expected {expected}"
    return None


def changed(architecture: str, header: dict[str, Any], config: "PretrainedConfig") -> str | None:
    """Where transformers' `config` is not what the header says, on one line, or None."""
    for key, value in _own(architecture, header):
        meant = MEANT[architecture].get(key)
        if meant is None:
            continue
        got = meant(config) if callable(meant) else getattr(config, meant)
        if not _same(value, got):
            return f"{_is(architecture, key, value)}, the converted model has {got!r}"
    return None


def _own(architecture: str, header: dict[str, Any]) -> list[tuple[str, Any]]:
    """(key without its beginning, value) of what is said of the architecture."""
    start = f"{architecture}."
    return [(key.removeprefix(start), header[key]) for key in header if key.startswith(start)]


def _same(said: object, got: object) -> bool:
    """Whether two values are one number: a softcap of 0 is none, and GGUF's floats are short."""
    numbers = [value or 0 for value in (said, got)]
    if said is None or not all(isinstance(value, int | float) for value in numbers):
        return False
    return math.isclose(*numbers, rel_tol=1e-6)


def _is(architecture: str, key: str, value: object) -> str:
    return f"{shown(f'{architecture}.{key}')} is {_value(value)}"


def _value(value: object) -> str:
    return "an array" if value is None else shown(repr(value))
