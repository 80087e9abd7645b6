"""Low-rank pairs on TransformerLens' linear maps <-> a PEFT adapter of the Hugging Face model.

A pair is `{"blocks.L.attn.q": (A [rank, d_in], B [d_out, rank])}`. GPT-2 has one map for q, k
and v, so there the three pairs go into one of three times the rank, B block-diagonal.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import Rejected, Usage
from bench.loading import tensors_only, weights

if TYPE_CHECKING:
    from torch import Tensor

NAMES = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.in": "mlp.up_proj",
    "mlp.out": "mlp.down_proj",
}
"""TransformerLens' name of a linear map -> its name in Llama, Gemma and their like."""
FAMILIES = ("gpt2", "llama", "gemma2", "gemma3_text")
"""Types of the models that are held to Hugging Face and PEFT by the tests."""
GPT2_NAMES = {"attn.o": "attn.c_proj", "mlp.in": "mlp.c_fc", "mlp.out": "mlp.c_proj"}
FUSED, PARTS = "attn.c_attn", ("attn.q", "attn.k", "attn.v")
CONFIG, WEIGHTS, OLDER = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
READ = (
    "peft_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "layers_to_transform",
)
"""Fields of an adapter's config that are used or checked here."""
HARMLESS = (
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
)
"""Fields that change nothing of what a trained adapter adds, whatever their value."""
PLAIN = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
    "layers_pattern": ("layers", "h", ["layers"], ["h"]),
}
"""Values of other fields with which an adapter is B A and no more; nothing at all is one too."""


Pair, Place = tuple["Tensor", "Tensor"], tuple[int, str]
"""(A, B); a block and a linear map of it."""
Pairs = dict[str, Pair]


def module_name(linear: str) -> str:
    """The linear map's name as the name of a torch module, which has no dots."""
    return linear.replace(".", "-")


def linear_name(module: str) -> str:
    """`module_name`, undone."""
    return module.replace("-", ".")


def tensors(pairs: Pairs, model_type: str) -> dict[str, "Tensor"]:
    """The pairs as PEFT names and stores them."""
    prefix = "base_model.model." + ("transformer.h" if model_type == "gpt2" else "model.layers")
    named = {}
    for block, linear, pair in _by_block(pairs, model_type):
        for letter, weight in zip("AB", pair, strict=True):
            named[f"{prefix}.{block}.{linear}.lora_{letter}.weight"] = weight.contiguous()
    return named


def _by_block(pairs: Pairs, model_type: str) -> Iterator[tuple[int, str, Pair]]:
    """(block, its linear map as the model calls it, (A, B)), GPT-2's q, k and v put together."""
    if model_type not in FAMILIES:
        raise Rejected(f"the names of a '{model_type}' model's linear maps are not known here")
    fused = {}
    for name, pair in pairs.items():
        _, block, linear = name.split(".", 2)
        if model_type != "gpt2":
            yield int(block), NAMES[linear], pair
        elif linear in PARTS:
            fused.setdefault(int(block), {})[linear] = pair
        else:
            yield int(block), GPT2_NAMES[linear], pair
    for block, parts in fused.items():
        yield block, FUSED, _fuse(parts)


def _fuse(parts: Pairs) -> Pair:
    import torch

    a, b = next(iter(parts.values()))
    none = torch.zeros_like(a), torch.zeros_like(b)
    whole = [parts.get(part, none) for part in PARTS]
    return torch.cat([a for a, _ in whole]), torch.block_diag(*(b for _, b in whole))


def settings(
    pairs: Pairs, model_type: str, *, rank: int, alpha: float, dropout: float, base_model: str
) -> dict[str, Any]:
    """The adapter_config.json that makes PEFT put exactly these pairs where they were trained."""
    placed = [(block, linear) for block, linear, _ in _by_block(pairs, model_type)]
    fused = any(linear == FUSED for _, linear in placed)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": model_type == "gpt2",
        "target_modules": sorted({linear for _, linear in placed}),
        "layers_to_transform": sorted({block for block, _ in placed}),
        "rank_pattern": {FUSED: 3 * rank} if fused else {},
        "alpha_pattern": {FUSED: 3 * alpha} if fused else {},
    }


def save(folder: Path, pairs: Pairs, model_type: str, **fields: Any) -> None:
    """Write a PEFT adapter; `fields` are those of `settings`."""
    from safetensors.torch import save_file

    config = json.dumps(settings(pairs, model_type, **fields), indent=1)
    (folder / CONFIG).write_text(config + "\n", encoding="utf-8")
    save_file(tensors(pairs, model_type), folder / WEIGHTS, metadata={"format": "pt"})


def read_config(folder: str | Path) -> dict[str, Any]:
    """An adapter's config; `Rejected` where it is none, or not plain LoRA on linear maps."""
    path = Path(folder).expanduser() / CONFIG
    if not path.is_file():
        raise Usage(f"no adapter at '{folder}': expected a folder with {CONFIG}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config["r"], config["lora_alpha"] = int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Rejected(f"{path}: not the config of a LoRA adapter ({error!r})") from None
    if config.get("peft_type") != "LORA":
        raise Rejected(f"{path}: peft_type is {config.get('peft_type')!r}, expected 'LORA'")
    _check_plain(path, config)
    for field, usual in (("rank_pattern", config["r"]), ("alpha_pattern", config["lora_alpha"])):
        if config.get(field) and config[field] != {FUSED: 3 * usual}:
            raise Rejected(f"{path}: expected one rank and alpha for all, has {field}")
    if bool(config.get("rank_pattern")) != bool(config.get("alpha_pattern")):
        raise Rejected(f"{path}: rank_pattern and alpha_pattern, expected both or neither")
    if not config.get("target_modules"):  # PEFT would take the family's usual ones instead
        raise Rejected(f"{path}: no target_modules, expected the names of the adapted maps")
    return config


def _check_plain(path: Path, config: dict[str, Any]) -> None:
    """Raise `Rejected` for a field that may make an adapter more than B A, known here or not."""
    for field, value in config.items():
        plain = [*PLAIN.get(field, ()), None, False, "", [], {}]
        is_plain = any(type(value) is type(one) and value == one for one in plain)
        if field in (*READ, *HARMLESS) or is_plain:
            continue
        message = f"{path}: {weights.shown(field)} is {_short(value)}, expected plain LoRA"
        if field == "init_lora_weights":
            message += (
                ": one that changed the model's weights too; PEFT converts it when saving, with "
                "path_initial_model_for_weight_conversion, and then writes true"
            )
        raise Rejected(message)


def _short(value: object) -> str:
    """A value of a config, as JSON has it, on one line that is not too long."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def sha256(folder: str | Path) -> str:
    """The hash of an adapter's config and weights; `Usage` where it is none."""
    read_config(folder)
    digest = hashlib.sha256()
    for path in (Path(folder).expanduser() / CONFIG, _weights(folder)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _weights(folder: str | Path) -> Path:
    """The file of an adapter's weights, in whichever format; `Usage` where there is none."""
    for name in (WEIGHTS, OLDER):
        path = Path(folder).expanduser() / name
        if path.is_file():
            return path
    raise Usage(f"no adapter at '{folder}': no {WEIGHTS}")


def load(folder: str | Path) -> Pairs:
    """The pairs of a PEFT adapter, as they were before `save`.

    Raises `Rejected` where its tensors are not finite, or are not pairs on linear maps known here,
    as its config calls for them.
    """
    from safetensors.torch import load_file

    config, path = read_config(folder), _weights(folder)
    if path.name == OLDER:
        tensors_only.refuse(path, WEIGHTS)
    weights.check_safetensors(path)
    tensors = load_file(path)
    if not tensors:
        raise Rejected(f"{path}: no tensors in it")
    weights.check_finite(tensors.items(), path)
    whole = _by_place(path, tensors)
    _check_places(path, config, whole)
    linears = {hf: ours for names in (NAMES, GPT2_NAMES) for ours, hf in names.items()}
    pairs = {}
    for (block, linear), (a, b) in whole.items():
        parts = {linears[linear]: (a, b)} if linear != FUSED else _split(path, a, b)
        pairs |= {f"blocks.{block}.{part}": pair for part, pair in parts.items()}
    return pairs


def _by_place(path: Path, tensors: dict[str, "Tensor"]) -> dict[Place, Pair]:
    """(block, the linear map as the model calls it) -> (A, B) of an adapter's tensors."""
    known, whole = (*NAMES.values(), *GPT2_NAMES.values(), FUSED), {}
    for name in tensors:
        match = re.fullmatch(r"base_model\.model\.\w+\.\w+\.(\d+)\.(.+)\.lora_[AB]\.weight", name)
        if not match or match[2] not in known:
            shown = weights.shown(name)
            raise Rejected(f"{path}: '{shown}' is no low-rank pair on a linear map known here")
        names = [re.sub(r"lora_[AB]\.weight$", f"lora_{letter}.weight", name) for letter in "AB"]
        for letter, other in zip("AB", names, strict=True):
            if other not in tensors:
                raise Rejected(f"{path}: '{name}' has no lora_{letter}")
        a, b = (tensors[one] for one in names)
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
            shapes = f"{list(a.shape)} and {list(b.shape)}"
            raise Rejected(f"{path}: '{name}' and its other half have the shapes {shapes}")
        whole[int(match[1]), match[2]] = a, b
    return whole


def _check_places(path: Path, config: dict[str, Any], whole: dict[Place, Pair]) -> None:
    """Raise `Rejected` where tensors are missing or too many by what an adapter's config lists."""
    layers, targets = config.get("layers_to_transform"), config.get("target_modules")
    layers = [layers] if isinstance(layers, int) else layers
    if not isinstance(layers, list) or not layers:
        layers = [block for block, _ in whole]
    if not isinstance(targets, list):
        return  # a pattern, or a name for all
    if not all(isinstance(one, int) for one in layers):
        raise Rejected(f"{path.parent / CONFIG}: layers_to_transform is {layers}, expected numbers")
    wanted = {(block, str(target)) for block in layers for target in targets}
    missing, unexpected = set(wanted), []
    for block, linear in whole:
        places = {(block, target) for target in targets if f".{linear}".endswith(f".{target}")}
        if not places & wanted:
            unexpected.append(f"layer {block} {linear}")
        missing -= places
    missing = [f"layer {block} {target}" for block, target in missing]
    wrong = weights.listed({"missing": missing, "unexpected": unexpected})
    if wrong:
        raise Rejected(f"{path}: its tensors are not those of {CONFIG} ({wrong})")


def _split(path: Path, a: "Tensor", b: "Tensor") -> Pairs:
    """Undo `_fuse`; a part that is all zero was not adapted."""
    import torch

    rank, width = len(a) // 3, len(b) // 3
    parts = {}
    for i, part in enumerate(PARTS):
        columns = slice(i * rank, (i + 1) * rank)
        parts[part] = a[columns], b[i * width : (i + 1) * width, columns]
    if len(a) % 3 or not torch.equal(torch.block_diag(*(b for _, b in parts.values())), b):
        raise Rejected(f"{path}: its c_attn is not made of separate pairs for q, k and v")
    return {part: pair for part, pair in parts.items() if pair[0].any() or pair[1].any()}
