"""The examples, as a user runs them, on a tiny model."""

import importlib.util
import json
import os
import subprocess
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


CHECK = """
print([results.failed, len(results.runs), *latents.shape, *axes.images[0].get_array().shape])
"""


def test_the_notebook(world):
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    lines = [line for c in cells if c["cell_type"] == "code" for line in [*c["source"], "\n"]]
    text = "".join(line for line in lines if not line.startswith("%"))
    settings = {**sb.compare.keywords, "model": str(world / "model"), "site": tiny.SITE}
    script = world / "tour.py"
    script.write_text(
        "from functools import partial\nimport splicebench as sb\n"
        f"sb.compare = partial(sb.compare, **{settings!r})\n"
        f"{text.replace('../runs/tour', str(world / 'runs'))}{CHECK}"
    )
    search = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    run = subprocess.run(
        [sys.executable, script], cwd=EXAMPLES, env=search, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    failed, runs, tokens, latents, *drawn = json.loads(run.stdout.splitlines()[-1])
    assert failed == {} and runs == 3
    assert latents == 2 * tiny.WIDTH and drawn == [12, tokens - 1]
