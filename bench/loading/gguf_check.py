"""A GGUF file's header, read before any library does: what cannot be converted is one line.

The layout is that of the GGUF specification, versions 2 and 3: magic, version, counts, keys and
values, tensor infos, padding, tensors one after the other.
"""

import mmap
import struct
from dataclasses import dataclass
from functools import cache
from math import prod

from bench.errors import Rejected, Unavailable
from bench.loading import gguf_keys
from bench.loading.adapters import FAMILIES
from bench.loading.weights import shown

ARCHITECTURES = tuple(family.removesuffix("_text") for family in FAMILIES)
"""GGUF's names of the families."""
MAGIC, VERSIONS = b"GGUF", (2, 3)
MOST_KEYS, MOST_TENSORS = 100_000, 1_000_000
LONGEST_KEY, LONGEST_NAME, LONGEST_VALUE = 2**16, 64, 2**30
"""Bytes of a key, of a tensor's name, and of a string or entries of an array."""
MOST_DIMENSIONS, MOST_ELEMENTS = 4, 2**40
STRING, ARRAY = 8, 9
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""GGUF's type of a value -> struct's."""
UINT32 = 4
ALIGNMENT = 32
"""Where the file does not say."""


@dataclass(frozen=True)
class Tensor:
    """What a GGUF file says of one tensor."""

    name: str
    shape: tuple
    kind: int
    """Its type, a GGMLQuantizationType."""
    offset: int
    """Where it starts, after the header."""

    @property
    def n_elements(self):
        """How many numbers it holds."""
        return prod(self.shape)


def check(path):
    """The `Tensor`s of the GGUF file at `path`; `Rejected` where it cannot be converted as it is.

    That is: no GGUF, another version, byte order or architecture, a header that is corrupt, a
    key that changes the model and would be lost, a tensor of a type that cannot be dequantised,
    or a file that ends before its last tensor does.
    """
    return read(path)[1]


def read(path):
    """({key: (type, value)}, `Tensor`s) of a GGUF file, as `check` checks it.

    The value of a string is a str, that of an array None.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
            if head != MAGIC:
                told = f"starts with {head!r}, expected {MAGIC!r}" if head else "it is empty"
                raise Rejected(f"{path}: not a GGUF file ({told})")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _check(_Header(path, data, len(data)))
    except OSError as error:
        raise Unavailable(f"{path}: cannot be read ({error.strerror or error})") from None


class _Header:
    """The bytes of a header, taken one value after the other."""

    def __init__(self, path, data, size):
        self.path, self.data, self.size, self.at = path, data, size, 4

    def wrong(self, told):
        """The `Rejected` to raise."""
        return Rejected(f"{self.path}: {told}")

    def skip(self, n):
        """Go on by `n` bytes, which must be there -> where they start."""
        start, self.at = self.at, self.at + n
        if self.at > self.size:
            raise self.truncated(self.at)
        return start

    def truncated(self, want):
        """The `Rejected` for a file that should have `want` bytes."""
        return self.wrong(f"truncated (want at least {want:,} bytes, has {self.size:,})")

    def take(self, form):
        """The next value, of one of struct's types."""
        form = "<" + form
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form)))[0]

    def count(self, form, most, what):
        """The next value, a count; `Rejected` where no file has so many."""
        n = self.take(form)
        if n > most:
            raise self.wrong(f"corrupt: {n:,} {what}, at most {most:,} are possible")
        return n

    def string(self, longest, what):
        """The next string."""
        n = self.count("Q", longest, f"bytes of {what}")
        start = self.skip(n)
        try:
            return self.data[start : start + n].decode()
        except UnicodeDecodeError:
            raise self.wrong(f"corrupt: {what} is not UTF-8") from None

    def value(self, kind, key):
        """The next value, of a GGUF type; an array is passed over."""
        if kind == STRING:
            return self.string(LONGEST_VALUE, f"{shown(key)}")
        if kind in SCALARS:
            return self.take(SCALARS[kind])
        if kind != ARRAY:
            raise self.wrong(f"corrupt: {shown(key)} is of type {kind}, which GGUF does not have")
        inner, n = self.take("I"), self.count("Q", LONGEST_VALUE, f"values of {shown(key)}")
        if inner in SCALARS:
            self.skip(n * struct.calcsize(SCALARS[inner]))
        elif inner == STRING:
            for _ in range(n):
                self.skip(self.count("Q", LONGEST_VALUE, f"bytes of a string of {shown(key)}"))
        else:
            raise self.wrong(
                f"corrupt: {shown(key)} is an array of type {inner}, expected a plain one"
            )
        return None

    def key_value(self):
        """The next (key, (type, value))."""
        key, kind = self.string(LONGEST_KEY, "a key"), self.take("I")
        return key, (kind, self.value(kind, key))

    def tensor(self):
        """The next `Tensor`."""
        name = self.string(LONGEST_NAME, "a tensor's name")
        n = self.count("I", MOST_DIMENSIONS, f"dimensions of {shown(name)}")
        shape = tuple(self.take("Q") for _ in range(n))
        return Tensor(name, shape, self.take("I"), self.take("Q"))

    def unique(self, what, pairs):
        """A dict of the (name, value) pairs; `Rejected` for a name that is there twice."""
        found = {}
        for name, value in pairs:
            if name in found:
                raise self.wrong(f"corrupt: the {what} {shown(name)} is there twice")
            found[name] = value
        return found


def _check(header):
    version = header.take("I")
    if not version & 0xFFFF and version:
        raise header.wrong("big-endian, expected a little-endian GGUF file")
    if version not in VERSIONS:
        raise header.wrong(f"version {version} of GGUF, expected one of {VERSIONS}")
    n_tensors = header.count("Q", MOST_TENSORS, "tensors")
    n_keys = header.count("Q", MOST_KEYS, "keys")
    told = header.unique("key", (header.key_value() for _ in range(n_keys)))
    _check_architecture(header, told)
    alignment = _alignment(header, told)
    named = ((one.name, one) for one in (header.tensor() for _ in range(n_tensors)))
    tensors = list(header.unique("tensor", named).values())
    if not tensors:
        raise header.wrong("no tensors in it")
    _check_layout(header, tensors, alignment)
    return told, tensors


def _check_architecture(header, told):
    kind, architecture = told.get("general.architecture", (None, None))
    if kind != STRING:
        raise header.wrong("it does not say what model it is (general.architecture)")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise header.wrong(f"a '{shown(architecture)}' model, expected one of {known}")
    _, parts = told.get("split.count", (None, 1))
    if isinstance(parts, int) and parts > 1:
        raise header.wrong(f"one of {parts} parts, expected a model in one file")
    lost = gguf_keys.lost(architecture, told)
    if lost:
        raise header.wrong(lost)


def _alignment(header, told):
    kind, alignment = told.get("general.alignment", (UINT32, ALIGNMENT))
    if kind != UINT32 or alignment < 1 or alignment & (alignment - 1):
        raise header.wrong(f"corrupt: general.alignment is {alignment}, expected a power of two")
    return alignment


def _check_layout(header, tensors, alignment):
    """Each tensor starts where the one before ends, and the file is long enough for the last."""
    start = _padded(header.at, alignment)
    at = end = 0
    for tensor in tensors:
        if tensor.offset != at:
            told = f"{shown(tensor.name)} is at byte {tensor.offset:,}, expected {at:,}"
            raise header.wrong(f"corrupt: {told} of the tensors")
        end = at + _n_bytes(header, tensor)
        at = _padded(end, alignment)
    if start + end > header.size:
        raise header.truncated(start + end)


def _padded(n, alignment):
    return -(-n // alignment) * alignment


def _n_bytes(header, tensor):
    """The tensor's size in the file; `Rejected` for a shape or type that cannot be."""
    block, n_bytes = _block(header, tensor)
    n = tensor.n_elements
    if not 0 < n <= MOST_ELEMENTS:
        raise header.wrong(f"corrupt: {shown(tensor.name)} has the shape {list(tensor.shape)}")
    row = tensor.shape[0] if tensor.shape else 1
    if row % block:
        told = f"{shown(tensor.name)} has rows of {row:,}, its type wants a multiple of {block}"
        raise header.wrong(f"corrupt: {told}")
    return n // block * n_bytes


def _block(header, tensor):
    """(numbers, bytes) of a block of the tensor's type; `Rejected` if gguf cannot read the type."""
    try:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError:
        raise Unavailable("a GGUF file needs the package gguf: pip install gguf") from None
    name = shown(tensor.name)
    try:
        kind = GGMLQuantizationType(tensor.kind)
        block, n_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise header.wrong(f"{name} is of type {tensor.kind}, which gguf does not know") from None
    if not _can_dequantize(kind, n_bytes):
        raise header.wrong(f"{name} is of type {kind.name}, which gguf cannot dequantise")
    return block, n_bytes


@cache
def _can_dequantize(kind, n_bytes):
    """Whether gguf has what turns a block of this type into numbers: it is tried on one."""
    import numpy
    from gguf.quants import dequantize

    try:
        dequantize(numpy.zeros(n_bytes, dtype=numpy.uint8), kind)
    except NotImplementedError:
        return False
    return True
