"""The examples, as a user runs them, on a tiny model."""

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import splicebench as sb
from tests.helpers import tiny

EXAMPLES = Path(__file__).parent.parent / "examples"
RULES = {"seq_len": tiny.SEQ, "batch_size": 2, "curve_docs": 2, "curve_tokens": 48, "sae_k": 4}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A tiny model and text in a folder that commands run in, and `sb.compare` on them."""
    tiny.write_model(tmp_path / "model")
    tiny.write_text(tmp_path / "text", documents=60, characters=1_500)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))
    text = {"text": str(tmp_path / "text"), **RULES, "sae_width": 2}
    monkeypatch.setattr(sb, "compare", partial(sb.compare, **text))
    return tmp_path


def test_from_saelens_to_peft_and_back(world, monkeypatch, capfd):
    pytest.importorskip("peft")
    place = importlib.util.spec_from_file_location("example", EXAMPLES / "saelens_to_peft.py")
    example = importlib.util.module_from_spec(place)
    place.loader.exec_module(example)

    def bench(*words):
        of_text = {"--text": world / "text", "--seq-len": tiny.SEQ} if words[0] == "check" else {}
        run(*words, *(part for flag in of_text.items() for part in flag))

    run = example.bench
    changes = {
        "MODEL": str(world / "model"),
        "SITE": tiny.SITE,
        "CONTEXT": tiny.SEQ,
        "bench": bench,
        "texts": lambda: [p.read_text() for p in sorted((world / "text").glob("*.txt"))],
        "model_and_tokenizer": lambda: tuple(
            kind.from_pretrained(world / "model") for kind in (AutoModelForCausalLM, AutoTokenizer)
        ),
    }
    for name, value in changes.items():
        monkeypatch.setattr(example, name, value)
    monkeypatch.setattr(sys, "argv", ["saelens_to_peft.py", "--tokens", "2048", "--steps", "2"])
    example.main()
    said = capfd.readouterr().out
    assert f"sb.load: {torch.Size([1, tiny.SEQ, tiny.VOCABULARY])}" in said
    assert "nothing found that speaks against it" in said and "lora:init" in said


def test_the_notebook(world, monkeypatch):
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(EXAMPLES)
    tiny_model = {"model": str(world / "model"), "site": tiny.SITE}
    monkeypatch.setattr(sb, "compare", partial(sb.compare, **tiny_model))
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            text = "".join(line for line in cell["source"] if not line.startswith("%"))
            exec(text.replace("../runs/tour", str(world / "runs")), names)
    assert names["latents"].shape[1] == 2 * tiny.WIDTH
    assert not names["results"].failed and len(names["results"].runs) == 3
    assert names["axes"].images[0].get_array().shape == (12, names["latents"].shape[0] - 1)
