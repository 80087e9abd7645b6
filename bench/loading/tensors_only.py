"""Torch and numpy files from outside: only their tensors are read, and nothing of them is run."""

import os
import pickletools
import re
import zipfile
from contextlib import contextmanager

from bench.errors import Rejected, Unavailable, out_of_memory

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".npy", ".npz")
"""What such files are called."""
CONVERT = "only tensors are accepted: convert it to safetensors where you trust it"
NAMED = 5
"""So many names of a file are told."""
FORCE, FORCE_NO = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def load(path):
    """What torch.save wrote to the file `path`, on the CPU, if that is tensors in plain containers.

    Raises `Rejected` for a file that needs anything else, is truncated, or is none of torch's.
    """
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Mapped: no more is read of it than is used.
            mapped = zipfile.is_zipfile(path)
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # of any kind: it is a stranger's file that is refused
        if out_of_memory(error):
            raise Unavailable(f"{path}: not enough memory for it") from None
        raise Rejected(f"{path}{_complaint(path, error)}") from None


def refuse(path, expected):
    """Raise `Rejected` for a file that was given where `expected` should be, saying what it is."""
    head = _head(path)
    if path.suffix == ".npz" or head == b"\x93NUMPY":
        _check_numpy(path)
    elif path.suffix in SUFFIXES:
        load(path)
    else:
        raise Rejected(f"{path} is a file, expected {expected}")
    raise Rejected(f"{path} holds only tensors, but not as they are read here: expected {expected}")


def first_in(folder):
    """The first file of a folder that is called like one of torch's or numpy's, or None."""
    found = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)
    return next(filter(lambda path: path.is_file(), found), None)


@contextmanager
def enforced():
    """Inside, torch.load reads tensors only, whoever calls it and whatever the environment says."""
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORCE_NO)}
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _head(path):
    """The first few bytes of a file."""
    try:
        with path.open("rb") as file:
            return file.read(6)
    except OSError as error:
        raise Unavailable(f"{path}: cannot be read ({error.strerror or error})") from None


def _complaint(path, error):
    """What comes after the file's name where torch would not read its tensors."""
    head = _head(path)
    if not head:
        return ": empty, expected a torch file"
    if isinstance(error, EOFError) or "unexpected EOF" in str(error):
        return ": truncated (it ends in the middle of what it holds)"
    if head[:4] == b"PK\x03\x04" and not zipfile.is_zipfile(path):
        return ": truncated (a torch file without its end)"
    if "TorchScript archives" in str(error):
        return f" is TorchScript, which is code; {CONVERT}"
    names = _needs(path, error)
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f" needs {', '.join(names[:NAMED])}{more}; {CONVERT}"
    return ": corrupt, or not a torch file"


def _needs(path, error):
    """What the file would import besides tensors, by name; [] where that cannot be told."""
    import torch

    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # not as torch writes it today
        names = re.findall(r"GLOBAL ([\w.]+)", str(error)) or _imports(path)
    return sorted(name for name in set(names) if re.fullmatch(r"[\w.]+", name))


def _imports(path):
    """What a plain pickle would import, read off its opcodes."""
    names, strings = [], []
    try:
        with path.open("rb") as file:
            for opcode, value, _ in pickletools.genops(file):
                if opcode.name in ("GLOBAL", "INST"):
                    names.append(value.replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.append(".".join(strings[-2:]))
                elif isinstance(value, str):
                    strings.append(value)
    except Exception:  # no pickle, or not a whole one
        pass
    return names


def _check_numpy(path):
    """Raise `Rejected` for numpy's file of anything but numbers."""
    import numpy

    try:
        found = numpy.load(path, mmap_mode="r", allow_pickle=False)
        for name in getattr(found, "files", ()):
            found[name]
    except Exception as error:  # whatever numpy and zipfile raise
        if "object" in str(error).lower():
            raise Rejected(f"{path} holds Python objects; {CONVERT}") from None
        raise Rejected(f"{path}: truncated, or not a numpy file") from None
