"""A model's weights as they lie in its folder: whole, all of them there, finite; or refused."""

import json
import re
from contextlib import contextmanager

from bench import tensors_only
from bench.errors import Fault, Rejected, Unavailable, out_of_memory, reason

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
CONSTANTS = r"\.attn\.masked_bias$"
"""Not weights: what older GPT-2 checkpoints keep of the attention's mask."""
NAMED, LONGEST = 5, 120
"""So many tensors are named in a message, by so many letters."""


def load(folder, settings):
    """The Hugging Face model in `folder`, loaded by transformers with these `settings`.

    Raises `Rejected` where an adapter lies beside it, where a file is torn or holds more than
    tensors, where a tensor is missing, unexpected or of another shape, and where a weight is not
    finite.
    """
    from transformers import AutoModelForCausalLM

    check_no_adapter(folder)
    check_files(folder)
    model, told = AutoModelForCausalLM.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # they are told below
        output_loading_info=True,
        **settings,
    )
    check_complete(told, folder)
    check_finite(model.named_parameters(), folder)
    return model


def check_no_adapter(folder):
    """Raise `Rejected` for a model's folder with an adapter in it.

    Where PEFT is installed transformers would make it part of the model, elsewhere not.
    """
    if (folder / ADAPTER).exists():
        raise Rejected(
            f"{folder}: has an {ADAPTER}, expected a model without an adapter; merge it into the "
            "weights, or give its folder as --init-adapter"
        )


def check_files(folder):
    """Raise `Rejected` for files of weights that are torn, or that hold more than tensors."""
    for path in sorted(folder.glob("model*.safetensors")):
        check_safetensors(path)
    if not any((folder / name).is_file() for name in ("model.safetensors", INDEX)):
        for path in sorted(folder.glob("pytorch_model*.bin")):
            tensors_only.load(path)


def check_safetensors(path):
    """Raise `Rejected` for a .safetensors file that is torn or is none."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
    except Exception as error:  # whatever safetensors raises
        size, whole = path.stat().st_size, _whole_size(path)
        if size < whole:
            told = f"truncated (want at least {whole:,} bytes, has {size:,})"
        else:
            told = f"not a safetensors file ({reason(error)})"
        raise Rejected(f"{path}: {told}") from None


def _whole_size(path):
    """How many bytes a .safetensors file must have by its own header."""
    try:
        with path.open("rb") as file:
            n_header, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
            if size < 8:
                return 8
            if n_header > size:
                return 8 + n_header if n_header < 100_000_000 else 0  # no header is larger
            header = json.loads(file.read(n_header))
        ends = [one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"]
        return 8 + n_header + max(ends, default=0)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return 0


def check_complete(told, source):
    """Raise `Rejected` where transformers' loading info says that the weights are not the model's.

    It would leave what is missing at random values. Tied weights do not count as missing.
    """
    reshaped = [f"{name} {list(a)} for {list(b)}" for name, a, b in told["mismatched_keys"]]
    unexpected = [name for name in told["unexpected_keys"] if not re.search(CONSTANTS, name)]
    wrong = {
        "missing": told["missing_keys"],
        "unexpected": unexpected,
        "of another shape": reshaped,
    }
    found = listed(wrong)
    if found:
        raise Rejected(f"{source}: its tensors are not those of its config ({found})")


def listed(wrong):
    """`missing: a, b; unexpected: c` of a dict of names; what has none is left out."""
    return "; ".join(f"{what}: {some(names)}" for what, names in wrong.items() if names)


def some(names):
    """The first few names, and how many there are more."""
    names = sorted(names)
    more = len(names) - NAMED
    return ", ".join(map(shown, names[:NAMED])) + (f" and {more:,} more" if more > 0 else "")


def shown(name):
    """A name that comes out of a file, for a message: on one line and not too long."""
    name = name if name.isprintable() else repr(name)
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}..."


def check_finite(named, source):
    """Raise `Rejected` for the first of the (name, tensor) pairs that has a value not finite."""
    for name, tensor in named:
        # A sum is finite only if all are; one that overflows is looked at again.
        if tensor.is_floating_point() and not tensor.detach().sum().isfinite():
            n_odd = int((~tensor.detach().isfinite()).sum())
            if n_odd:
                told = f"{shown(name)} has {n_odd:,} of {tensor.numel():,} NaN or infinite"
                raise Rejected(f"{source}: its weights are not all finite: {told}")


@contextmanager
def as_rejected(source, what, done="loaded"):
    """Whatever the libraries raise on an input that does not fit, as one line of `Rejected`."""
    try:
        yield
    except Fault:
        raise
    except Exception as error:  # of any kind: it is their input that is refused
        if out_of_memory(error):
            raise Unavailable(f"{source}: not enough memory for its {what}") from None
        raise Rejected(f"{source}: its {what} cannot be {done} ({reason(error)})") from None
