"""Models and SAEs that a user holds -> folders, as runs load them, named by what is in them."""

import hashlib
import json
import os
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import SAE, TrainingSAE
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from bench.errors import Usage
from bench.io.files import new_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WRAPPED = "_original_component."
"""What a bridge puts into the names of the weights of the model that it was made over."""
OF_ELSEWHERE = ("_name_or_path", "transformers_version", "device")
"""Fields of a config that do not say what a model or an SAE is."""


def placed(model: Any) -> dict[str, str]:
    """The spec's `device` and `dtype` as a model that is held has them; {} for a path."""
    if not isinstance(model, PreTrainedModel | TransformerBridge):
        return {}
    weight = next(iter(model.parameters()))
    dtype = "bfloat16" if weight.dtype == torch.bfloat16 else "float32"
    return {"device": weight.device.type, "dtype": dtype}


def as_paths(held: dict[str, list[Any]], tokenizer: Any, folder: Path) -> dict[str, Any]:
    """`model` and `sae`, each a list of paths and objects -> paths as the spec has them."""
    paths = {}
    if "sae" in held:
        paths["sae"] = "+".join(_sae(sae, folder) for sae in held["sae"])
    if "model" in held:
        (model,) = held["model"]
        paths["model"] = _model(model, tokenizer, folder)
    return paths


def _model(model: Any, tokenizer: "PreTrainedTokenizerBase | None", folder: Path) -> str:
    """The folder of a model; as its author has saved it, whatever bridges were made over it."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    if isinstance(model, TransformerBridge):
        tokenizer = tokenizer or model.tokenizer
        processed, model = getattr(model, "_weights_processed", False), model.original_model
    else:
        processed = False
    if not isinstance(model, PreTrainedModel):
        expected = "expected a path, a Hugging Face model or a TransformerBridge"
        raise Usage(f"model is a {type(model).__name__}: {expected}")
    if processed or any(getattr(part, "compatibility_mode", False) for part in model.modules()):
        raise Usage("model: its weights were processed by TransformerLens; load it anew")
    if tokenizer is None:
        raise Usage("model: expected its tokenizer as well: tokenizer=...")
    plain = _plain(model)
    target = folder / f"model-{_digest(plain, plain.config.to_dict(), _said(tokenizer))}"
    if not target.exists():
        with new_folder(target) as new:
            plain.save_pretrained(new)
            tokenizer.save_pretrained(new)
    return str(target)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same model without what a bridge added; it shares the weights."""
    with torch.device("meta"):
        plain = type(model)(deepcopy(model.config))
    weights = {name.replace(WRAPPED, ""): w for name, w in model.state_dict().items()}
    names = plain.state_dict().keys()
    if missing := sorted(names - weights.keys()):
        raise Usage(f"model: no weights '{missing[0]}': expected those of a {type(model).__name__}")
    plain.load_state_dict({name: weights[name] for name in names}, assign=True)
    inner, outer = plain.get_input_embeddings().weight, plain.get_output_embeddings().weight
    if plain.config.tie_word_embeddings and not torch.equal(inner, outer):
        raise Usage("model: its embeddings differ and its config ties them; set it to False")
    plain.tie_weights()
    return plain


def _said(tokenizer: "PreTrainedTokenizerBase") -> list[Any]:
    """What makes a tokenizer: its special tokens, its rules or its vocabulary."""
    rules = getattr(tokenizer, "backend_tokenizer", None)
    return [tokenizer.special_tokens_map, rules.to_str() if rules else tokenizer.get_vocab()]


def _sae(sae: Any, folder: Path) -> str:
    """The folder of an SAE, as SAELens saves it."""
    if isinstance(sae, str | os.PathLike):
        return os.fspath(sae)
    if not isinstance(sae, SAE):
        raise Usage(f"sae is a {type(sae).__name__}: expected a path or a SAELens SAE")
    target = folder / f"sae-{_digest(sae, sae.cfg.to_dict())}"
    if not target.exists():
        for parameter in sae.parameters():  # some loaders transpose, and safetensors refuses
            parameter.data = parameter.data.contiguous()
        save = sae.save_inference_model if isinstance(sae, TrainingSAE) else sae.save_model
        with new_folder(target) as new:
            save(new)
    return str(target)


def _digest(module: torch.nn.Module, config: dict[str, Any], *more: Any) -> str:
    """Names what a config, weights and whatever else say."""
    config = {name: value for name, value in config.items() if name not in OF_ELSEWHERE}
    found = hashlib.sha256(json.dumps([config, *more], sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]
