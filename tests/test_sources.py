"""Where models and texts come from: the hub in one try, random weights, streams, centred GPT-2."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from sae_lens import SAE
from transformers import AutoConfig, AutoModelForCausalLM

from bench import agree, hub, models, sae_sources, sparsify, streams, text
from bench.errors import Unavailable, Usage
from bench.evaluate import predictions
from bench.losses import cross_entropy
from bench.problem import Adapted, Problem
from bench.record import read
from bench.seen import flat
from bench.specs import SPECS, named
from tests import tiny
from tests.test_sparsify import write as write_sparsify

ROOT = Path(__file__).parent.parent
JB = "gpt2-small-res-jb:blocks.8.hook_resid_pre"
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "", "HF_HUB_OFFLINE": "0"}


@pytest.fixture
def online(monkeypatch, tmp_path):
    """The hub's client is not told to stay offline, and has nothing in its cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--spec", "gpt2-small"], {}, "cannot reach the hub for 'openai-community/gpt2'"),
        (["--spec", "gemma-2-2b"], {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set and"),
        (["--text", "pile-uncopyrighted"], {}, "cannot reach the hub for 'monology/pile"),
        (["--sae", "sparsify:a/b:layers.3"], {}, "cannot reach the hub for 'a/b'"),
        (["--sae", f"saelens:{JB}"], {}, "cannot reach the hub for 'jbloom/GPT2-Small-SAEs"),
    ],
)
def test_no_hub_is_said_at_once(arguments, environment, message, tmp_path):
    tiny.write_model(tmp_path / "model")
    if "--spec" not in arguments:
        arguments = [*arguments, "--model", str(tmp_path / "model")]
    command = [sys.executable, "-m", "bench", "compare", "--out", str(tmp_path / "o"), *arguments]
    cache = {"HF_HOME": str(tmp_path / "hf"), "SPLICEBENCH_CACHE": str(tmp_path / "cache")}
    environment = {**os.environ, **NO_HUB, **cache, **environment}
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 4, done.stderr
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert time.perf_counter() - started < 5


def test_the_l0_that_a_release_states():
    assert sae_sources.expected_l0(f"saelens:{JB}") == 60
    assert sae_sources.expected_l0("own") is None


def test_gated_and_missing_repositories(online, monkeypatch):
    import httpx2 as httpx

    def refusing(error):
        def repo_info(self, *args, **kwargs):
            request = httpx.Request("GET", "https://hub")
            raise error("no", response=httpx.Response(403, request=request))

        return repo_info

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refusing(GatedRepoError))
    with pytest.raises(Unavailable, match="licence at https://huggingface.co/a/b and set HF_TOKEN"):
        hub.reach("a/b")
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refusing(RepositoryNotFoundError))
    with pytest.raises(Usage, match="'a/b': neither a folder here nor a model that the hub shows"):
        hub.reach("a/b")


@pytest.fixture
def stand_in(online, monkeypatch, folder, tmp_path):
    """A hub with a model, sparsify's SAEs and a SAELens release."""
    write_sparsify(tmp_path / "layers.1")
    repositories = {"org/model": folder / "model", "org/saes": tmp_path}
    monkeypatch.setattr(hub, "reach", lambda name, kind="model": True)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **settings: str(repositories[name])
    )
    releases = {"rel": {"repo_id": "org/rel", "saes": [{"id": "one/two", "l0": 5.0}]}}
    monkeypatch.setattr(sae_sources, "_releases", lambda: releases)
    sae = tiny.sae_of_kind("jumprelu")[0]
    sae.cfg.metadata.hook_name, sae.cfg.metadata.prepend_bos = tiny.SITE, False
    monkeypatch.setattr(SAE, "from_pretrained", lambda release, part, **settings: sae)


def test_a_model_and_saes_from_the_hub(stand_in, small, tmp_path, monkeypatch):
    arguments = ("compare", "--methods", "lora", "--model", "org/model", "--out", tmp_path)
    code, out, err = small(*arguments, "--force", sae="sparsify:org/saes:layers.1")
    assert code == 0, err
    assert "fetching sparsify:org/saes:layers.1" in out
    monkeypatch.delattr(huggingface_hub, "snapshot_download")  # the SAE is cached by now
    code, out, err = small("check", sae="sparsify:org/saes:layers.1")
    assert "fetching" not in out and "wrong BOS rule: the SAE was trained with a BOS" in out
    code, out, err = small("check", sae="saelens:rel:one/two")
    assert "jumprelu SAE saelens:rel:one/two" in out and "(its release says 5)" in out, err
    headers = [read(path).header for path in tmp_path.glob("lora-*.jsonl")]
    assert [header["sae"]["source"] for header in headers] == ["sparsify:org/saes:layers.1"]


def test_what_may_be_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_id("google/gemma-2-2b")
    (tmp_path / "models").mkdir()
    for path in ("models/nope", "./a/b", "/a/b", "gpt2", "a/b/c", "../a"):
        assert not hub.is_id(path)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("openai-community/gpt2", 124_439_808),
        ("google/gemma-2-2b", 2_614_341_888),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
    ],
)
def test_shapes_are_the_true_ones(name, parameters, tmp_path, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path))
    folder = models.locate(name, weights="random")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    assert sum(p.numel() for p in model.parameters()) == parameters
    tokenizer = models.load_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    assert tokenizer.bos_token_id == config["bos_token_id"]
    assert set(models.special_ids(tokenizer)) == {config["bos_token_id"], config["eos_token_id"]}


def test_random_weights_are_stamped_and_not_drawn(small, tmp_path):
    arguments = ("compare", "--methods", "lora", "--out", tmp_path, "--weights", "random")
    code, out, err = small(*arguments, sae="fresh", text="random")
    assert code == 0, err
    assert "Random weights: a CE means nothing" in out
    assert not list(tmp_path.glob("*.png"))
    (path,) = tmp_path.glob("lora-*.jsonl")
    run = read(path)
    assert run.header["weights"] == "random" and run.header["split"] == "random"
    code, out, _ = small("check", "--weights", "random", sae="fresh", text="random")
    assert "no CE means anything" in out


def test_random_tokens_need_random_weights(small):
    assert named("smollm2-135m", weights="random").text == "random"
    code, _, err = small("check", text="random")
    assert code == 2 and "only with --weights random" in err


def test_a_stream_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))
    lines = [json.dumps({"raw_content": f"{n} " + "abc " * 50}) for n in range(40)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    files = {"data_files": [str(tmp_path / "t.jsonl")]}
    stream = streams.Stream("a/b", "json", "raw_content", files)
    monkeypatch.setitem(streams.STREAMS, "pile-uncopyrighted", stream)
    spec = named(
        "smollm2-135m",
        text="pile-uncopyrighted",
        stream_tokens=1_000,
        seq_len=12,
        curve_docs=1,
        curve_tokens=12,
        val_docs=2,
        val_tokens=24,
    )
    found = text.load(spec, tiny.tokenizer(), tiny.VOCABULARY)
    documents = {d for part in (found.train, found.curve, found.validation) for d in part.documents}
    assert len(documents) == 20  # 1,000 tokens of 4 characters, 202 characters each
    (tmp_path / "t.jsonl").unlink()
    text.check_source(spec)
    again = text.load(spec, tiny.tokenizer(), tiny.VOCABULARY)
    assert torch.equal(again.train.tokens, found.train.tokens)


def test_a_stream_that_breaks_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "t.jsonl").write_text('{"other": 1}\n')
    stream = streams.Stream("a/b", "json", "text", {"data_files": [str(tmp_path / "t.jsonl")]})
    monkeypatch.setitem(streams.STREAMS, "pile-uncopyrighted", stream)
    with pytest.raises(Unavailable, match="cannot stream a/b"):
        streams.file("pile-uncopyrighted", 10)
    assert not list((tmp_path / "cache" / "streams").glob("*"))


def test_centring_changes_the_residual_and_nothing_else():
    hf_model = tiny.hf_model("gpt2")
    with torch.no_grad():
        for parameter in hf_model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        tokens = tiny.windows(3, seed=5)
        expected = hf_model(tokens).logits.log_softmax(-1)
    bridge = models.bridge(hf_model, tiny.tokenizer(), center_writing_weights=True)
    problem = Problem(bridge, tiny.sae(), [tiny.SITE], tiny.windows(8), batch_size=2)
    clean = problem.clean(tokens, Adapted(saes=problem.saes))
    assert clean.sites[0].mean(-1).abs().max() < 1e-5
    rows, targets = predictions(problem, tokens)
    ours = cross_entropy(flat(clean.final)[rows], targets, problem.head)
    theirs = -flat(expected)[rows].gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_centring_is_for_gpt2(small):
    code, _, err = small("check", "--center-writing-weights", sae="fresh")
    assert code == 2 and "for GPT-2's SAEs, this is a 'llama'" in err


@pytest.mark.parametrize("name", SPECS)
def test_every_named_spec_agrees_with_itself(name):
    spec = SPECS[name]
    told = {"hook_name": spec.site, "prepend_bos": spec.prepend_bos}
    if spec.sae.startswith("sparsify:"):
        told["hook_name"] = sparsify.site(spec.sae.rpartition(":")[2])
    assert not agree.disagreements(spec, told)
