"""What a GGUF file holds, by the package gguf; what cannot be converted is refused in one line."""

import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.errors import Rejected, Unavailable
from bench.loading import gguf_keys
from bench.loading.peft_format import FAMILIES
from bench.loading.weights import as_rejected, shown

ARCHITECTURES = tuple(family.removesuffix("_text") for family in FAMILIES)
"""GGUF's names of the families."""
MAGIC, VERSIONS = b"GGUF", (2, 3)
ARRAY = 9
"""GGUF's type of an array."""
MOST, MOST_VALUES, LONGEST_HEADER = 2**16, 2**20, 2**26
"""Tensors or keys; values of an array, of which a header has up to four so long; bytes."""


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


def read(path: Path) -> tuple[dict, list]:
    """({key: value}, gguf's tensors) of the GGUF file at `path`; the value of an array is None.

    `Rejected` where it cannot be converted as it is: no GGUF, another version, byte order or
    architecture, truncated or corrupt, one of several parts, a key that changes the model and
    would be lost, a tensor of a type that cannot be dequantised. Takes seconds.
    """
    check_start(path)
    import numpy

    cannot = as_rejected(path, "content", "read: truncated or corrupt")
    with cannot, numpy.errstate(over="raise"):
        reader = _bounded_reader(path)
        header = {key: _value(field) for key, field in reader.fields.items()}
    wrong = _wrong_model(header) or _wrong_tensors(reader)
    if wrong:
        raise Rejected(f"{path}: {wrong}")
    return header, reader.tensors


def _bounded_reader(path: Path) -> Any:
    """A `GGUFReader` that gives up where a corrupt count would have it read on and on."""
    import numpy
    from gguf import GGUFReader

    class Bounded(GGUFReader):
        n_read = 0

        def _get(self, offset: int, dtype: type, count: int = 1, **order: Any) -> Any:
            self.n_read += 1
            long = self.n_read > 4 * MOST_VALUES or offset + 8 * int(count) > LONGEST_HEADER
            if long and not hasattr(self, "data_offset"):  # after it come the tensors themselves
                raise ValueError("its header is too long")
            return super()._get(offset, dtype, count, **order)

        def _get_field_parts(self, offset: int, kind: int) -> tuple:
            if kind == ARRAY and (n := self._get(offset + 4, numpy.uint64)[0]) > MOST_VALUES:
                raise ValueError(f"an array of {n:,} values")
            return super()._get_field_parts(offset, kind)

        def _push_field(self, field: Any, skip_sum: bool = False) -> int:
            if field.name in self.fields:  # of which old versions of gguf only warn
                raise ValueError(f"the key {field.name} is there twice")
            return super()._push_field(field, skip_sum)

    return Bounded(path)


def _value(field: Any) -> str | float | None:
    if field.types[0] == ARRAY:
        return None
    value = field.parts[-1]
    return bytes(value).decode() if field.types[0].name == "STRING" else value.tolist()[0]


def _wrong_model(header: dict) -> str | None:
    """Why a model that says this of itself cannot be converted, or None."""
    architecture = header.get("general.architecture")
    if not isinstance(architecture, str):
        return "it does not say what model it is (general.architecture)"
    if architecture not in ARCHITECTURES:
        return f"a '{shown(architecture)}' model, expected one of {', '.join(ARCHITECTURES)}"
    parts = header.get("split.count")
    if isinstance(parts, int) and parts > 1:
        return f"one of {parts} parts, expected a model in one file"
    return gguf_keys.lost(architecture, header)


def _wrong_tensors(reader: Any) -> str | None:
    """The first tensor that does not start where the one before ends, or of no known type."""
    import numpy
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    at, alignment = int(reader.data_offset), int(reader.alignment)
    for tensor in reader.tensors:
        name, kind = shown(tensor.name), tensor.tensor_type
        if tensor.data_offset != at:
            return f"corrupt: {name} is at byte {tensor.data_offset:,}, expected {at:,}"
        at += -(-tensor.n_bytes // alignment) * alignment
        try:  # on one block
            dequantize(numpy.zeros(GGML_QUANT_SIZES[kind][1], dtype=numpy.uint8), kind)
        except NotImplementedError:
            return f"{name} is of type {kind.name}, which gguf cannot dequantise"
    return None
