"""Files of weights from outside: whole, all tensors there, finite, no code in them; or refused."""

import json
import os
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bench.errors import Fault, Rejected, Unavailable, out_of_memory, reason

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"
ADAPTER = "adapter_config.json"
CONSTANTS = r"\.attn\.masked_bias$"
"""Not weights: what older GPT-2 checkpoints keep of the attention's mask."""
NAMED, LONGEST = 5, 120
"""So many tensors are named in a message, by so many letters."""
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".npy", ".npz")
"""What files of torch, pickle and numpy are called."""
CONVERT = "only tensors are accepted: convert it to safetensors where you trust it"
FORCE, FORCE_NO = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def load(folder: Path, settings: dict[str, Any]) -> "PreTrainedModel":
    """The Hugging Face model in `folder`, loaded by transformers with these `settings`.

    Raises `Rejected` where an adapter lies beside it, or a file is torn or holds more than tensors.
    So it does where a tensor is missing, unexpected, of another shape, or not finite.
    """
    from transformers import AutoModelForCausalLM

    check_no_adapter(folder)
    check_files(folder)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # they are named below
        output_loading_info=True,
        **settings,
    )
    check_complete(report, folder)
    check_finite(model.named_parameters(), folder)
    return model


def check_no_adapter(folder: Path) -> None:
    """Raise `Rejected` for a model's folder with an adapter in it.

    Where PEFT is installed transformers would make it part of the model, elsewhere not.
    """
    if (folder / ADAPTER).exists():
        expected = "a model without one; merge it into the weights, or give it as --init-adapter"
        raise Rejected(f"{folder}: has an {ADAPTER}, expected {expected}")


def check_files(folder: Path) -> None:
    """Raise `Rejected` for files of weights that are torn, that hold more than tensors, or that
    are not what the index beside them says.

    Torch's files are looked at only where transformers would read them.
    """
    for path in sorted(folder.glob("model*.safetensors")):
        names_in(path)
    if (folder / INDEX).is_file():
        _check_index(folder / INDEX, "model*.safetensors", names_in)
    elif (folder / WHOLE).is_file():
        for path in folder.glob("model-*-of-*.safetensors"):
            raise Rejected(f"{folder}: {path.name} is there beside {WHOLE}, and no index names it")
    else:
        for path in sorted(folder.glob("pytorch_model*.bin")):
            load_torch(path)
        if (folder / TORCH_INDEX).is_file():
            _check_index(folder / TORCH_INDEX, "pytorch_model*.bin", load_torch)


def _check_index(index: Path, pattern: str, names: Callable[[Path], Iterable[str]]) -> None:
    """Raise `Rejected` where the files of a folder do not hold what its index says they do.

    `names(path)` gives the names in a file. transformers takes a tensor from whatever file has it.
    """
    what = "an index, expected a weight_map of names to files"
    places, folder = read_json(index, what, weight_map=dict)["weight_map"], index.parent
    holders: dict[str, list[str]] = {}
    for file in places.values():
        if not isinstance(file, str):
            raise Rejected(f"{index}: not {what}")
        if file != Path(file).name:
            raise Rejected(f"{index}: names {shown(repr(file))}, expected a file beside it")
    for file in {path.name for path in folder.glob(pattern)} | set(places.values()):
        for name in names(folder / file) if (folder / file).is_file() else ():
            holders.setdefault(name, []).append(file)
    for name in sorted(holders.keys() | places.keys()):
        has, says = sorted(holders.get(name, [])), places.get(name, "nothing of it")
        if has != [says]:
            there = shown(" and ".join(has) or "no file")
            raise Rejected(f"{folder}: {shown(name)} is in {there}, the index says {shown(says)}")


def read_json(path: Path, what: str, **fields: Callable[[Any], Any]) -> dict[str, Any]:
    """The JSON object in a file, with these of its `fields` converted.

    Raises `Rejected`, saying that it is not `what`, where it is none, or lacks one of the fields.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return values | {name: convert(values[name]) for name, convert in fields.items()}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise Rejected(f"{path}: not {what} ({error!r})") from None


def names_in(path: Path) -> list[str]:
    """The names of the tensors in a .safetensors file; `Rejected` where it is torn or is none."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except Exception as error:  # whatever safetensors raises
        wrong = f"truncated, or not a safetensors file: {reason(error)}"
        raise Rejected(f"{path}: {wrong} (has {path.stat().st_size:,} bytes)") from None


def load_torch(path: Path) -> Any:
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
    names = {name for name in names if re.fullmatch(r"[\w.]+", name)}
    needs = f"needs {some(names)}" if names else "is no torch file, or holds code, or is corrupt"
    return f" {needs}; {CONVERT}"


def refuse(path: Path, expected: str) -> NoReturn:
    """Raise `Rejected` for a file that stands where `expected` should be, saying what it is."""
    if path.suffix not in SUFFIXES:
        raise Rejected(f"{path} is a file, expected {expected}")
    load_torch(path)
    raise Rejected(f"{path} holds only tensors, but not as they are read here: expected {expected}")


def first_foreign(folder: Path) -> Path | None:
    """The first file of a folder that is called like one of torch's or numpy's, or None."""
    paths = (path for path in sorted(folder.glob("*")) if path.suffix in SUFFIXES)
    return next(filter(Path.is_file, paths), None)


@contextmanager
def tensors_only() -> Iterator[None]:
    """Inside, torch.load reads tensors only, whoever calls it and whatever the environment says."""
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORCE_NO)}
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def check_complete(report: dict[str, Any], source: Path) -> None:
    """Raise `Rejected` where transformers' loading info says that the weights are not the model's.

    It would leave what is missing at random values. Tied weights do not count as missing.
    """
    shapes = [f"{k} {list(a)} for {list(b)}" for k, a, b in report["mismatched_keys"]]
    wrong = {
        "missing": report["missing_keys"],
        "unexpected": [k for k in report["unexpected_keys"] if not re.search(CONSTANTS, k)],
        "of another shape": shapes,
    }
    check_names(wrong, source, "its config")


def check_names(wrong: dict[str, Collection[str]], source: Path, config: str) -> None:
    """Raise `Rejected` where tensors are `wrong` by what a config calls for; it names them."""
    lines = [f"{what}: {some(names)}" for what, names in wrong.items() if names]
    if lines:
        raise Rejected(f"{source}: its tensors are not those of {config} ({'; '.join(lines)})")


def some(names: Iterable[str]) -> str:
    """The first few names, and how many there are more."""
    names = sorted(names)
    more = len(names) - NAMED
    return ", ".join(map(shown, names[:NAMED])) + (f" and {more:,} more" if more > 0 else "")


def shown(name: str) -> str:
    """A name that comes out of a file, for a message: on one line and not too long."""
    name = name if name.isprintable() else repr(name)
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}..."


def check_finite(named: Iterable[tuple[str, "Tensor"]], source: object) -> None:
    """Raise `Rejected` for the first of the (name, tensor) pairs that has a value not finite."""
    for name, tensor in named:
        # A sum is finite only if all are; one that overflows is looked at again.
        if tensor.is_floating_point() and not tensor.detach().sum().isfinite():
            n_odd = int((~tensor.detach().isfinite()).sum())
            if n_odd:
                wrong = f"{shown(name)} has {n_odd:,} of {tensor.numel():,} NaN or infinite"
                raise Rejected(f"{source}: its weights are not all finite: {wrong}")


@contextmanager
def as_rejected(source: object, what: str, done: str = "loaded") -> Iterator[None]:
    """Whatever the libraries raise on an input that does not fit, as one line of `Rejected`."""
    try:
        yield
    except Fault:
        raise
    except Exception as error:  # of any kind: it is their input that is refused
        if out_of_memory(error):
            raise Unavailable(f"{source}: not enough memory for its {what}") from None
        raise Rejected(f"{source}: its {what} cannot be {done} ({reason(error)})") from None
