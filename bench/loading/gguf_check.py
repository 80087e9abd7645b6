"""What a GGUF file holds, by the package gguf; what cannot be converted is refused in one line.

transformers leaves out the keys that it does not know and puts its own defaults in their place.
So every key of a file is understood here, or the file is refused.
"""

import math
import struct
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import Rejected, Unavailable
from bench.loading.peft_format import FAMILIES
from bench.loading.weights import as_rejected, shown

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderField, ReaderTensor
    from transformers import PretrainedConfig

ARCHITECTURES = tuple(family.removesuffix("_text") for family in FAMILIES)
"""GGUF's names of the families."""
MAGIC, VERSIONS = b"GGUF", (2, 3)
ARRAY = 9
"""GGUF's type of an array."""
MOST, MOST_VALUES, LONGEST_HEADER = 2**16, 2**20, 2**26
"""Tensors or keys; values of an array, of which a header has up to four so long; bytes."""


def _theta(config: "PretrainedConfig", kind: str = "full_attention") -> float:
    """The base of the rotary frequencies; `kind` is Gemma-3's name of an attention."""
    return config.rope_parameters.get(kind, config.rope_parameters)["rope_theta"]


HEADS, EPSILON = "attention.head_count", "attention.layer_norm_rms_epsilon"
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
SIZES = NEUTRAL | {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "vocab_size": "vocab_size",
    HEADS: "num_attention_heads",
}
LLAMA = SIZES | {
    "feed_forward_length": "intermediate_size",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    EPSILON: "rms_norm_eps",
    "rope.dimension_count": "head_dim",
    "rope.freq_base": _theta,
}
GEMMA = LLAMA | {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    # The scale of the attention is not in the file: known only where it is the head's width.
    "attention.value_length": "query_pre_attn_scalar",
}
KNOWN = {
    "gpt2": SIZES
    | {
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
        "feed_forward_length": lambda config: config.n_inner or 4 * config.n_embd,
    },
    "llama": LLAMA | {"attention.sliding_window": (0,)},
    "gemma2": GEMMA | {"attention.sliding_window_pattern": (2,)},
    "gemma3": GEMMA
    | {
        "attention.sliding_window_pattern": (6,),
        "rope.freq_base_swa": partial(_theta, kind="sliding_attention"),
    },
}
"""Architecture -> key without its beginning -> the same value of transformers' config. Of what is
not in that config: the values (a tuple) at which it changes nothing."""
HARMLESS = ("rope.scaling.finetuned", "rope.scaling.original_context_length")
"""Keys of no effect by themselves."""
OF_GEMMA = (HEADS, EPSILON, "attention.key_length", "attention.value_length")
NEEDED = {
    "gpt2": (HEADS, "attention.layer_norm_epsilon"),
    "llama": (HEADS, EPSILON),
    "gemma2": OF_GEMMA,
    "gemma3": (*OF_GEMMA, "attention.sliding_window", "rope.freq_base"),
}
"""Keys that no tensor's shape tells, and for which transformers has a default of its own."""


def check_start(path: Path) -> None:
    """Raise `Rejected` where a file's first bytes are not those of a GGUF file that is read here.

    Raises `Unavailable` where the file cannot be read, or no package is there to read it with.
    """
    try:
        with path.open("rb") as file:
            magic, rest = file.read(4), file.read(20).ljust(20, b"\0")
    except OSError as error:
        raise Unavailable(f"{path}: cannot be read ({error.strerror or error})") from None
    if magic != MAGIC:
        wrong = f"starts with {magic!r}, expected {MAGIC!r}" if magic else "it is empty"
        raise Rejected(f"{path}: not a GGUF file ({wrong})")
    version, n_tensors, n_keys = struct.unpack("<IQQ", rest)
    if version and not version & 0xFFFF:
        raise Rejected(f"{path}: big-endian, expected a little-endian GGUF file")
    if version not in VERSIONS:
        raise Rejected(f"{path}: version {version} of GGUF, expected one of {VERSIONS}")
    if not n_tensors or max(n_tensors, n_keys) > MOST:
        wrong = f"{n_tensors:,} tensors and {n_keys:,} keys, expected 1 to {MOST:,}"
        raise Rejected(f"{path}: truncated or corrupt ({wrong})")
    if not find_spec("gguf"):
        raise Unavailable("a GGUF file needs the package gguf: pip install gguf")


def read(path: Path) -> tuple[dict[str, Any], list["ReaderTensor"]]:
    """({key: value}, gguf's tensors) of the GGUF file at `path`; the value of an array is None.

    Raises `Rejected` where the file is not whole, or not of a known format or architecture. So it
    does where a conversion would lose a key that changes the model. Takes seconds.
    """
    check_start(path)
    import numpy

    cannot = as_rejected(path, "content", "read: truncated or corrupt")
    with cannot, numpy.errstate(over="raise"):
        reader = _bounded_reader(path)
        header = {key: _plain(field) for key, field in reader.fields.items()}
    wrong = _wrong_model(header) or _wrong_tensors(reader)
    if wrong:
        raise Rejected(f"{path}: {wrong}")
    return header, reader.tensors


def _bounded_reader(path: Path) -> "GGUFReader":
    """A `GGUFReader` that gives up where a corrupt count would have it read on and on."""
    import numpy
    from gguf import GGUFReader

    class Bounded(GGUFReader):
        n_read = 0

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            self.n_read += 1
            long = self.n_read > 4 * MOST_VALUES or offset + 8 * int(count) > LONGEST_HEADER
            if long and not hasattr(self, "data_offset"):  # after it come the tensors themselves
                raise ValueError("its header is too long")
            return super()._get(offset, dtype, count, override_order)

        def _get_field_parts(self, offset: int, kind: int) -> tuple[Any, ...]:
            if kind == ARRAY and (n := self._get(offset + 4, numpy.uint64)[0]) > MOST_VALUES:
                raise ValueError(f"an array of {n:,} values")
            return super()._get_field_parts(offset, kind)

        def _push_field(self, field: "ReaderField", skip_sum: bool = False) -> int:
            if field.name in self.fields:  # of which old versions of gguf only warn
                raise ValueError(f"the key {field.name} is there twice")
            return super()._push_field(field, skip_sum)

    return Bounded(path)


def _plain(field: "ReaderField") -> str | float | None:
    if field.types[0] == ARRAY:
        return None
    value = field.parts[-1]
    return bytes(value).decode() if field.types[0].name == "STRING" else value.tolist()[0]


def _wrong_model(header: dict[str, Any]) -> str | None:
    """Why a model that says this of itself cannot be converted, or None."""
    architecture = header.get("general.architecture")
    if not isinstance(architecture, str):
        return "it does not say what model it is (general.architecture)"
    if architecture not in ARCHITECTURES:
        return f"a '{shown(architecture)}' model, expected one of {', '.join(ARCHITECTURES)}"
    parts = header.get("split.count")
    if isinstance(parts, int) and parts > 1:
        return f"one of {parts} parts, expected a model in one file"
    return lost(architecture, header)


def _wrong_tensors(reader: "GGUFReader") -> str | None:
    """The first tensor that does not start where the one before it ends, or None."""
    at, alignment = int(reader.data_offset), int(reader.alignment)
    for tensor in reader.tensors:
        if tensor.data_offset != at:
            name = shown(tensor.name)
            return f"corrupt: {name} is at byte {tensor.data_offset:,}, expected {at:,}"
        at += -(-tensor.n_bytes // alignment) * alignment
    return None


def lost(architecture: str, header: dict[str, Any]) -> str | None:
    """What a conversion would lose of a header's `{key: value}`, on one line, or None."""
    if header.get("general.type", "model") != "model":
        return f"{_says('general.type', header['general.type'])}, expected 'model'"
    for key in NEEDED[architecture]:
        if f"{architecture}.{key}" not in header:
            return f"it does not say {architecture}.{key}"
    for key, value, known in _own(architecture, header):
        if known is None:
            return f"{_says(key, value)}, a key that is not known here"
        if isinstance(known, tuple) and value not in known:
            neutral = " or ".join(map(repr, known))
            return f"{_says(key, value)}, which would be lost, expected {neutral}"
    return None


def changed(architecture: str, header: dict[str, Any], config: "PretrainedConfig") -> str | None:
    """Where transformers' `config` is not what the header says, on one line, or None."""
    for key, value, known in _own(architecture, header):
        if not isinstance(known, tuple):
            result = known(config) if callable(known) else getattr(config, known)
            if not _same(value, result):
                return f"{_says(key, value)}, the converted model has {result!r}"
    return None


def _own(architecture: str, header: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value, what is known of the key or None) of each key of the architecture."""
    start, known = f"{architecture}.", KNOWN[architecture]
    keys = [key.removeprefix(start) for key in header if key.startswith(start)]
    return [(start + k, header[start + k], known.get(k)) for k in keys if k not in HARMLESS]


def _same(value: Any, result: Any) -> bool:
    """Whether two values are one number: a softcap of 0 is none, and GGUF's floats are short."""
    pair = value or 0, result or 0
    are_numbers = value is not None and all(isinstance(number, int | float) for number in pair)
    return are_numbers and math.isclose(*pair, rel_tol=1e-6)


def _says(key: str, value: object) -> str:
    return f"{shown(key)} is {'an array' if value is None else shown(repr(value))}"
