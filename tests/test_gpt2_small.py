"""The true shape of GPT-2 small from a folder: check, two methods, records, export. No network.

`pytest -m hub` runs the same on the real weights and a SAELens release, where the hub is at hand.
"""

import pytest
import torch
from sae_lens import SAE
from transformers import GPT2Config, GPT2LMHeadModel

import bench
from bench.errors import Fault
from bench.io.record import read
from bench.loading import hub
from tests.helpers import tiny
from tests.test_lora import spliced_logits

SHORT = {
    "--seq-len": 32,
    "--batch-size": 2,
    "--steps": 3,
    "--curve-docs": 2,
    "--curve-tokens": 128,
    "--val-docs": 4,
    "--val-tokens": 256,
}
FLAGS = [str(item) for pair in SHORT.items() for item in pair]

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """12 blocks of 768, 50,257 tokens, random weights; the tokenizer knows a few of them."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_from_a_folder_to_the_export(command, folder, gpt2, tmp_path):
    text = ("--text", folder / "text", "--model", gpt2, "--site", "blocks.8.hook_resid_post")
    sae = ("--sae-tokens", 1280, "--sae-width", 2)
    code, out, err = command("check", *text, *sae, *FLAGS)
    assert code in (0, 3), err  # an SAE of 1,280 tokens may be a poor one
    assert "768 -> 1,536" in out and "fired once in a pass" in out and "CE clean" in out
    code, out, err = command(
        "compare", "--methods", "lora:rank=4,e2e", *text, *sae, *FLAGS, "--out", tmp_path, "--force"
    )
    assert code == 0, err
    runs = {run.header["method"]: run for run in map(read, tmp_path.glob("*.jsonl"))}
    for method in ("lora", "e2e"):
        assert runs[method].status == "finished" and runs[method].rows[-1]["backwards"] == 3
        assert runs[method].header["model"]["type"] == "gpt2"
        assert runs[method].rows[-1]["kl"] != runs[method].rows[0]["kl"]
        code, _, err = command("export", runs[method].path, "--to", tmp_path / f"{method}-export")
        assert code == 0, err
    assert SAE.load_from_disk(tmp_path / "e2e-export").cfg.d_in == 768
    check_the_adapter_in_peft(runs["lora"].path, tmp_path / "lora-export", gpt2)


def check_the_adapter_in_peft(record, exported, gpt2):
    """PEFT's logits with the exported SAE in a hook are those of the run, loaded again here."""
    peft = pytest.importorskip("peft", reason="pip install 'splicebench[speed]'")
    ours, tokens = bench.load(record), torch.randint(3, 40, (2, 32))
    plain = peft.PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(gpt2), exported)
    sae = SAE.load_from_disk(exported / "sae")
    with torch.no_grad():
        theirs = spliced_logits(plain.base_model.model, "gpt2", sae, tokens, block=8)
        torch.testing.assert_close(ours(tokens), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.hub
@pytest.mark.parametrize("spec", ["gpt2-small", "gpt2-small-jb"])
def test_on_the_real_weights(command, monkeypatch, spec, tmp_path):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    try:
        hub.reach("openai-community/gpt2")
    except Fault as fault:
        pytest.skip(str(fault))
    code, out, err = command("check", "--spec", spec)
    assert code == 0, out + err
    code, out, err = command("compare", "--spec", spec, "--steps", 4, "--out", tmp_path)
    assert code == 0, out + err
    for run in map(read, tmp_path.glob("*.jsonl")):
        assert run.status == "finished"
        assert run.header["ce_clean"] < run.header["ce_spliced"] < run.header["ce_ablated"]
