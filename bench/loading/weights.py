"""A model's weights as they lie in its folder: whole, all of them there, finite; or refused."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import Fault, Rejected, Unavailable, out_of_memory, reason
from bench.loading import tensors_only

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


def load(folder: Path, settings: dict[str, Any]) -> "PreTrainedModel":
    """The Hugging Face model in `folder`, loaded by transformers with these `settings`.

    Raises `Rejected` where an adapter lies beside it, where a file is torn or holds more than
    tensors, where a tensor is missing, unexpected or of another shape, and where a weight is not
    finite.
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
        raise Rejected(
            f"{folder}: has an {ADAPTER}, expected a model without an adapter; merge it into the "
            "weights, or give its folder as --init-adapter"
        )


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
            tensors_only.load(path)
        if (folder / TORCH_INDEX).is_file():
            _check_index(folder / TORCH_INDEX, "pytorch_model*.bin", tensors_only.load)


def _check_index(index: Path, pattern: str, names: Callable[[Path], Iterable[str]]) -> None:
    """Raise `Rejected` where the files of a folder do not hold what its index says they do.

    `names(path)` gives the names in a file. transformers takes a tensor from whatever file has it.
    """
    folder, places, holders = index.parent, _places(index), {}
    for file in {path.name for path in folder.glob(pattern)} | set(places.values()):
        for name in names(folder / file) if (folder / file).is_file() else ():
            holders.setdefault(name, []).append(file)
    for name in sorted(holders.keys() | places.keys()):
        has, says = sorted(holders.get(name, [])), places.get(name)
        if has != [says]:
            there, said = " and ".join(has) or "no file", says or "nothing of it"
            raise Rejected(
                f"{folder}: {shown(name)} is in {shown(there)}, the index says {shown(said)}"
            )


def _places(index: Path) -> dict[str, str]:
    """An index's `weight_map`: the file of each tensor."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = set(places.values())
        plain = all(isinstance(file, str) for file in files)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        plain = False
    if not plain:
        raise Rejected(f"{index}: not an index, expected a weight_map of names to files")
    for file in files:
        if file != Path(file).name:
            raise Rejected(f"{index}: names {shown(repr(file))}, expected a file beside it")
    return places


def names_in(path: Path) -> list[str]:
    """The names of the tensors in a .safetensors file; `Rejected` where it is torn or is none."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except Exception as error:  # whatever safetensors raises
        wrong = f"truncated, or not a safetensors file: {reason(error)}"
        raise Rejected(f"{path}: {wrong} (has {path.stat().st_size:,} bytes)") from None


def check_complete(report: dict[str, Any], source: Path) -> None:
    """Raise `Rejected` where transformers' loading info says that the weights are not the model's.

    It would leave what is missing at random values. Tied weights do not count as missing.
    """
    reshaped = [f"{name} {list(a)} for {list(b)}" for name, a, b in report["mismatched_keys"]]
    unexpected = [name for name in report["unexpected_keys"] if not re.search(CONSTANTS, name)]
    wrong = {
        "missing": report["missing_keys"],
        "unexpected": unexpected,
        "of another shape": reshaped,
    }
    if any(wrong.values()):
        raise Rejected(f"{source}: its tensors are not those of its config ({listed(wrong)})")


def listed(wrong: dict[str, Collection[str]]) -> str:
    """`missing: a, b; unexpected: c` of a dict of names; what has none is left out."""
    return "; ".join(f"{what}: {some(names)}" for what, names in wrong.items() if names)


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
