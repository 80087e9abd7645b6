"""Low-rank pairs on TransformerLens' linear maps <-> a PEFT adapter of the Hugging Face model.

A pair is `{"blocks.L.attn.q": (A [rank, d_in], B [d_out, rank])}`. GPT-2 has one map for q, k
and v, so there the three pairs go into one of three times the rank, B block-diagonal.
"""

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import Rejected, Usage
from bench.loading import weights

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
LINEARS = {theirs: ours for names in (NAMES, GPT2_NAMES) for ours, theirs in names.items()}
"""All of these names -> TransformerLens' name."""
FUSED, PARTS = "attn.c_attn", ("attn.q", "attn.k", "attn.v")
CONFIG, WEIGHTS, OLDER = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
READ: tuple[str, ...] = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern")
READ += ("target_modules", "layers_to_transform")
"""Fields of an adapter's config that are used or checked here."""
HARMLESS: tuple[str, ...] = ("auto_mapping", "base_model_name_or_path", "fan_in_fan_out")
HARMLESS += ("inference_mode", "lora_dropout", "megatron_core", "peft_version", "revision")
HARMLESS += ("qalora_group_size", "runtime_config", "task_type")
"""Fields that change nothing of what a trained adapter adds, whatever their value."""
PLAIN = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
    "layers_pattern": ("layers", "h", ["layers"], ["h"]),
}
"""Values of other fields with which an adapter is B A and no more; empty values are so too."""
STARTED = ": one that changed the model's weights too; PEFT converts it when saving, with "
STARTED += "path_initial_model_for_weight_conversion, and then writes true"

Pair = tuple["Tensor", "Tensor"]
Place = tuple[int, str]
"""(A, B); a block and the name of a linear map in it, as the model calls that."""
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
    return {
        f"{prefix}.{block}.{linear}.lora_{letter}.weight": weight.contiguous()
        for (block, linear), pair in _by_place(pairs, model_type).items()
        for letter, weight in zip("AB", pair, strict=True)
    }


def _by_place(pairs: Pairs, model_type: str) -> dict[Place, Pair]:
    """The pairs by their place in the model; GPT-2's q, k and v are put together."""
    if model_type not in FAMILIES:
        raise Rejected(f"the names of a '{model_type}' model's linear maps are not known here")
    names = GPT2_NAMES if model_type == "gpt2" else NAMES
    placed, parts = dict[Place, Pair](), dict[int, Pairs]()
    for name, pair in pairs.items():
        _, block, linear = name.split(".", 2)
        if linear in names:
            placed[int(block), names[linear]] = pair
        else:
            parts.setdefault(int(block), {})[linear] = pair
    return placed | {(block, FUSED): _fuse(pairs) for block, pairs in parts.items()}


def _fuse(parts: Pairs) -> Pair:
    import torch

    none = tuple(map(torch.zeros_like, next(iter(parts.values()))))
    a, b = zip(*(parts.get(part, none) for part in PARTS), strict=True)
    return torch.cat(a), torch.block_diag(*b)


def settings(
    pairs: Pairs, model_type: str, *, rank: int, alpha: float, dropout: float, base_model: str
) -> dict[str, Any]:
    """The adapter_config.json that makes PEFT put exactly these pairs where they were trained."""
    blocks, linears = map(set, zip(*_by_place(pairs, model_type), strict=True))
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
        "target_modules": sorted(linears),
        "layers_to_transform": sorted(blocks),
        "rank_pattern": {FUSED: 3 * rank} if FUSED in linears else {},
        "alpha_pattern": {FUSED: 3 * alpha} if FUSED in linears else {},
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
    config = weights.read_json(path, "the config of a LoRA adapter", r=int, lora_alpha=float)
    if config.get("peft_type") != "LORA":
        raise Rejected(f"{path}: peft_type is {config.get('peft_type')!r}, expected 'LORA'")
    _check_plain(path, config)
    patterns = [config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}]
    fused = [{FUSED: 3 * config["r"]}, {FUSED: 3 * config["lora_alpha"]}]
    if patterns not in ([{}, {}], fused):
        wrong = f"has rank_pattern and alpha_pattern {weights.shown(json.dumps(patterns))}"
        raise Rejected(f"{path}: expected one rank and alpha for all, {wrong}")
    if not config.get("target_modules"):  # PEFT would take the family's usual ones instead
        raise Rejected(f"{path}: no target_modules, expected the names of the adapted maps")
    return config


def _check_plain(path: Path, config: dict[str, Any]) -> None:
    """Raise `Rejected` for a field that may make an adapter more than B A, known here or not."""
    for field, value in config.items():
        text = json.dumps(value)  # in which false is not 0
        plain: list[Any] = [*PLAIN.get(field, ()), None, False, "", [], {}]
        if field in (*READ, *HARMLESS) or text in map(json.dumps, plain):
            continue
        hint = STARTED if field == "init_lora_weights" else ""
        wrong = f"{weights.shown(field)} is {weights.shown(text)}, expected plain LoRA{hint}"
        raise Rejected(f"{path}: {wrong}")


def sha256(folder: str | Path) -> str:
    """The hash of an adapter's config and weights; `Usage` where it is none."""
    read_config(folder)
    paths = Path(folder).expanduser() / CONFIG, _weights(folder)
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _weights(folder: str | Path) -> Path:
    """The file of an adapter's weights, in whichever format; `Usage` where there is none."""
    paths = [Path(folder).expanduser() / name for name in (WEIGHTS, OLDER)]
    for path in filter(Path.is_file, paths):
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
        weights.refuse(path, WEIGHTS)
    weights.names_in(path)
    tensors = load_file(path)
    if not tensors:
        raise Rejected(f"{path}: no tensors in it")
    weights.check_finite(tensors.items(), path)
    placed, pairs = _placed(path, tensors), Pairs()
    _check_places(path, config, placed)
    for (block, linear), (a, b) in placed.items():
        parts = {LINEARS[linear]: (a, b)} if linear != FUSED else _split(path, a, b)
        pairs |= {f"blocks.{block}.{part}": pair for part, pair in parts.items()}
    return pairs


def _placed(path: Path, tensors: dict[str, "Tensor"]) -> dict[Place, Pair]:
    """An adapter's tensors as pairs by place."""
    halves: dict[Place, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"base_model\.model\.\w+\.\w+\.(\d+)\.(.+)\.lora_([AB])\.weight", name)
        if not match or match[2] not in (*LINEARS, FUSED):
            name = weights.shown(name)
            raise Rejected(f"{path}: '{name}' is no low-rank pair on a linear map known here")
        halves.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor
    for (block, linear), pair in halves.items():
        shapes = {letter: list(half.shape) for letter, half in sorted(pair.items())}
        if list(map(len, shapes.values())) != [2, 2] or shapes["A"][0] != shapes["B"][1]:
            wrong = f"layer {block} {linear} has {shapes}"
            raise Rejected(f"{path}: {wrong}, expected A [rank, d_in] and B [d_out, rank]")
    return {place: (pair["A"], pair["B"]) for place, pair in halves.items()}


def _check_places(path: Path, config: dict[str, Any], places: Collection[Place]) -> None:
    """Raise `Rejected` where tensors are missing or too many by what an adapter's config lists."""
    layers, targets = config.get("layers_to_transform"), config["target_modules"]
    if not isinstance(targets, list):
        return  # a pattern, or a name for all
    layers = [layers] if isinstance(layers, int) else layers
    if not isinstance(layers, list) or not layers:
        layers = [block for block, _ in places]
    wanted = {f"layer {layer} {target}" for layer in layers for target in targets}
    adapted = {
        f"layer {block} {linear}": {
            f"layer {block} {t}" for t in targets if f".{linear}".endswith(f".{t}")
        }
        for block, linear in places
    }
    missing = wanted.difference(*adapted.values())
    unexpected = [place for place, names in adapted.items() if not names & wanted]
    weights.check_names({"missing": missing, "unexpected": unexpected}, path, CONFIG)


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
