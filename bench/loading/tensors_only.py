"""Torch files from outside: only their tensors are read, and nothing of them is run."""

import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from bench.errors import Rejected, Unavailable, out_of_memory

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".npy", ".npz")
"""What files of torch, pickle and numpy are called."""
CONVERT = "only tensors are accepted: convert it to safetensors where you trust it"
FORCE, FORCE_NO = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def load(path: Path) -> Any:
    """What torch.save wrote to the file `path`, on the CPU, if that is tensors in plain containers.

    Raises `Rejected` for a file that needs anything else, is truncated, or is none of torch's.
    """
    import warnings

    import torch

    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
    except OSError as error:
        raise Unavailable(f"{path}: cannot be read ({error.strerror or error})") from None
    whole = zipped and zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings(action="ignore"):
            # Mapped: no more is read of it than is used.
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=whole)
    except Exception as error:  # of any kind: it is a stranger's file that is refused
        if out_of_memory(error):
            raise Unavailable(f"{path}: not enough memory for it") from None
        torn = isinstance(error, EOFError) or "unexpected EOF" in str(error) or zipped > whole
        wrong = f": truncated (has {path.stat().st_size:,} bytes)" if torn else _needs(path, error)
        raise Rejected(f"{path}{wrong}") from None


def _needs(path: Path, error: Exception) -> str:
    """What a whole file would import besides tensors, by name where torch can tell."""
    import torch

    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # not as torch writes it today
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))
    names = sorted(name for name in set(names) if re.fullmatch(r"[\w.]+", name))
    if names:
        return f" needs {', '.join(names[:5])}; {CONVERT}"
    return f" is no torch file, or holds code, or is corrupt; {CONVERT}"


def refuse(path: Path, expected: str) -> NoReturn:
    """Raise `Rejected` for a file that stands where `expected` should be, saying what it is."""
    if path.suffix not in SUFFIXES:
        raise Rejected(f"{path} is a file, expected {expected}")
    load(path)
    raise Rejected(f"{path} holds only tensors, but not as they are read here: expected {expected}")


def first_in(folder: Path) -> Path | None:
    """The first file of a folder that is called like one of torch's or numpy's, or None."""
    paths = (path for path in sorted(folder.glob("*")) if path.suffix in SUFFIXES)
    return next(filter(Path.is_file, paths), None)


@contextmanager
def enforced() -> Iterator[None]:
    """Inside, torch.load reads tensors only, whoever calls it and whatever the environment says."""
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORCE_NO)}
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})
