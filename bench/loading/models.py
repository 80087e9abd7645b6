"""Spec -> frozen TransformerBridge: from a folder, a GGUF file, the hub, or random weights."""

import hashlib
import json
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config.shapes import SHAPES
from bench.config.spec import Spec
from bench.errors import Rejected, Usage
from bench.io.files import cache_root, new_text, sha256_of_file
from bench.loading import hub, packages
from bench.loading.peft_format import FAMILIES
from bench.loading.weights import as_rejected, check_no_adapter, read_json
from bench.loading.weights import load as load_whole

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILES = ["*.json", "*.safetensors", "*.txt", "tokenizer.model"]
"""What is fetched of a model on the hub; nothing that could run code."""
STAND_IN = "stand-in"
"""The name of a tokenizer that no file was read for."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def locate(model: str, weights: str = "pretrained") -> Path:
    """The folder of `model`: config, safetensors, tokenizer.

    `model` is `package:NAME`, a folder, a .gguf file, or the hub's `OWNER/NAME`. With random
    weights the config is enough. Those in `bench.config.shapes` need no hub and no tokenizer.
    """
    if model.startswith("package:") or packages.is_file(model):
        return packages.locate(model)
    if not hub.is_id(model):
        return _local_folder(model)
    if weights == "pretrained":
        return hub.fetch(model, FILES, needs=("config.json", "*.safetensors"))
    if model not in SHAPES:
        files = [name for name in FILES if "safetensors" not in name]
        return hub.fetch(model, files, needs=("config.json",))
    folder = cache_root() / "models" / f"shape-{model.replace('/', '--')}"
    new_text(folder / "config.json", json.dumps(SHAPES[model], indent=1))
    return folder


def check_source(model: str, weights: str = "pretrained") -> None:
    """Raise what `locate` would raise, without converting, fetching or loading anything."""
    if model.startswith("package:"):
        packages.packaged(model)
    elif packages.is_file(model):
        packages.check_file(model)
    elif not hub.is_id(model):
        _local_folder(model)
    elif weights == "pretrained" or model not in SHAPES:
        hub.reach(model)


def _local_folder(model: str) -> Path:
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        known = ", ".join(f"package:{name}" for name in packages.PACKAGES)
        raise Usage(
            f"no model at '{model}': expected a folder with config.json, a .gguf file, "
            f"OWNER/NAME on the hub, or one of {known}"
        )
    check_no_adapter(folder)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json as a dict."""
    return read_json(folder / "config.json", "a model's config", model_type=str)


def n_blocks(config: dict[str, Any]) -> int:
    """How many blocks the model of this config has."""
    for field in ("num_hidden_layers", "n_layer"):
        if isinstance(config.get(field), int):
            return config[field]
    raise Rejected("the model's config names no number of layers (num_hidden_layers, n_layer)")


def check_config(config: dict[str, Any], spec: Spec) -> None:
    """Raise `Rejected` for a family whose hook points and linear maps nobody has checked.

    Raises `Usage` where a window is longer than the model's context, or where centring would
    change what the model computes: it wants LayerNorm.
    """
    family = config["model_type"]
    if family not in FAMILIES:
        raise Rejected(f"the model is a '{family}', expected one of {', '.join(FAMILIES)}")
    if spec.center_writing_weights and family != "gpt2":
        raise Usage(f"--center-writing-weights true: for GPT-2's SAEs, this is a '{family}'")
    for field in ("max_position_embeddings", "n_positions"):
        if isinstance(config.get(field), int) and config[field] < spec.seq_len:
            raise Usage(f"--seq-len {spec.seq_len}: the model's context is {config[field]} tokens")


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer beside the model; a stand-in that knows BOS and EOS where there is none."""
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in TOKENIZERS):
        return _stand_in(read_config(folder))
    with as_rejected(folder, "tokenizer"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase", text: str) -> None:
    """Raise `Rejected` where a text is to be read and the model came without a tokenizer."""
    if tokenizer.name_or_path == STAND_IN and text != "random":
        raise Rejected(f"no tokenizer beside the model: the text '{text}' cannot be read")


def _stand_in(config: dict[str, Any]) -> "PreTrainedTokenizerBase":
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    ids: dict[str, Any] = {name: config.get(f"{name}_id") for name in ("bos_token", "eos_token")}
    tokens = {name: f"<{number}>" for name, number in ids.items() if isinstance(number, int)}
    vocabulary = {token: ids[name] for name, token in tokens.items()} or {"<0>": 0}
    words = Tokenizer(WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    return PreTrainedTokenizerFast(tokenizer_object=words, name_or_path=STAND_IN, **tokens)


def special_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids of BOS, EOS, PAD and their like: what the rule `not-special` leaves out."""
    from sae_lens.util import get_special_token_ids

    return get_special_token_ids(tokenizer)


def load(
    folder: Path, spec: Spec, tokenizer: "PreTrainedTokenizerBase", shard: bool = False
) -> "TransformerBridge":
    """The frozen bridge over the model in `folder`, in eval mode, as the spec wants it.

    The model is loaded by transformers and handed over with its `tokenizer`, so that no hub is
    ever asked. Frozen after bridging, because the bridge adds parameters of its own.
    """
    import torch

    from bench import devices
    from bench.distributed import group
    from bench.loading import cpu_kernels

    cpu_kernels.install()
    cpu_kernels.keep_freed()
    devices.set_precision(spec.device, spec.dtype)
    settings = {"dtype": getattr(torch, spec.dtype), "attn_implementation": "eager"}
    with as_rejected(folder, "model"):
        if spec.weights == "random":
            hf_model = _random(folder, settings, "cpu" if shard else spec.device)
        else:
            hf_model = load_whole(folder, settings)
        if shard and hf_model.config.model_type == "gpt2":
            raise Usage("--shard-model: not for GPT-2, whose q, k and v are parts of one matrix")
        if shard:
            group.shard(hf_model.model.layers, spec.device)
        hf_model = hf_model.to(spec.device)
        return bridge(hf_model, tokenizer, spec.device, spec.center_writing_weights)


def _random(folder: Path, settings: dict[str, Any], device: str) -> "PreTrainedModel":
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.random.fork_rng(), torch.device(device):  # a GPU draws billions in a second
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, **settings).eval()


def bridge(
    hf_model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    device: str = "cpu",
    center_writing_weights: bool = False,
) -> "TransformerBridge":
    """The frozen `TransformerBridge` over a loaded model, in eval mode.

    `tokenizer` is left as it is.
    """
    from transformer_lens.model_bridge import TransformerBridge

    from bench.loading import attention, compiled

    name = hf_model.config.name_or_path or hf_model.config.model_type
    # A copy, because the bridge changes it: one without a BOS gets the EOS as its BOS. The bridge
    # re-creates a tokenizer that does not say it puts a BOS first. The harness feeds token ids, so
    # the copy is only a label, and says so.
    tokenizer = deepcopy(tokenizer)
    tokenizer.init_kwargs["add_bos_token"] = True
    model = TransformerBridge.boot_transformers(
        name, hf_model=hf_model, tokenizer=tokenizer, device=device, dtype=hf_model.dtype
    )
    if center_writing_weights:  # TransformerLens' own; the rest of its processing stays off
        model.enable_compatibility_mode(
            fold_ln=False,
            center_writing_weights=True,
            center_unembed=False,
            fold_value_biases=False,
            disable_warnings=True,
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    attention.fuse(model.eval())
    if compiled.wanted():
        compiled.compile_blocks(model)
    return model


def fingerprint(folder: Path) -> str:
    """sha256 of the model's config and weights."""
    paths = [folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.bin")]
    parts = (bytes.fromhex(sha256_of_file(path)) for path in sorted(paths))
    return hashlib.sha256(b"".join(parts)).hexdigest()
