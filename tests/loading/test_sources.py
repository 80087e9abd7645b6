"""Where models and SAEs come from: the hub and its stand-in, random weights, centred GPT-2."""

import json
import re
from fnmatch import fnmatch

import huggingface_hub
import pytest
import torch
from sae_lens import SAE
from transformers import AutoConfig, AutoModelForCausalLM

from bench.config.spec import block_of
from bench.config.specs import SPECS, named
from bench.errors import Rejected, Unavailable
from bench.harness.evaluate import predictions
from bench.io.record import read
from bench.loading import documents, hub, models, sae_metadata, sae_sources, weights
from bench.problem.losses import evaluate
from bench.problem.objectives import flat
from bench.problem.problem import Adapted, Problem
from tests.helpers import tiny
from tests.loading.test_sparsify import write as write_sparsify

SECOND = {"id": "one/three"}


def test_the_l0_that_a_release_states():
    bloom = "saelens:gpt2-small-res-jb:blocks.8.hook_resid_pre"
    assert sae_sources.expected_l0(bloom) == 60
    assert sae_sources.expected_l0("own") is None


@pytest.fixture
def stand_in(online, monkeypatch, folder, tmp_path):
    """A hub with a model, sparsify's SAEs and a SAELens release."""
    write_sparsify(tmp_path / "layers.1")
    repositories = {"org/model": folder / "model", "org/saes": tmp_path}
    monkeypatch.setattr(hub, "reach", lambda name, kind="model": True)

    def download(name, allow_patterns, **settings):
        assert allow_patterns
        for unsafe in ("modeling.py", "pytorch_model.bin", "model.pt", "model.pkl"):
            assert not any(fnmatch(unsafe, pattern) for pattern in allow_patterns)
        return str(repositories[name])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    releases = {
        "rel": {"repo_id": "org/rel", "saes": [{"id": "one/two", "l0": 5.0}, {"id": "one/three"}]}
    }
    monkeypatch.setattr(sae_sources, "_releases", lambda: releases)
    sae = tiny.sae_of_kind("jumprelu")[0]
    sae.cfg.metadata.hook_name, sae.cfg.metadata.prepend_bos = tiny.SITE, False
    sae.W_enc.data = sae.W_enc.data.T.contiguous().T  # as some of SAELens' loaders leave it
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


def test_a_hook_point_that_sparsify_does_not_have(stand_in, small, monkeypatch):
    files = ["layers.1/sae.safetensors", "layers.1.mlp/sae.safetensors", "plots/cfg.json", "a.md"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name: files)
    code, _, err = small("check", sae="sparsify:org/saes:layers.9")
    assert code == 2 and err.count("\n") == 1
    assert "unknown hook point of org/saes 'layers.9'" in err
    assert err.endswith("expected one of layers.1, layers.1.mlp\n")
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name: ["a.md"])
    code, _, err = small("check", sae="sparsify:org/saes:layers.9")
    assert code == 2 and "'org/saes' on the hub shows no sparsify hook point, 'layers.9'" in err


def test_half_a_hook_point_in_the_cache_and_no_hub(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "reach", lambda name, kind="model": False)
    (tmp_path / "layers.1" / "sae.safetensors").unlink()
    with pytest.raises(Unavailable, match=r"no whole layers.1 of 'org/saes' in the hub's cache"):
        sae_sources.locate("sparsify:org/saes:layers.1")


@pytest.mark.parametrize("name", documents.STREAMS)
def test_a_stream_comes_from_the_repository_that_is_asked(name, monkeypatch, tmp_path):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path))
    asked = []
    monkeypatch.setattr(hub, "reach", lambda *name, **kind: asked.append((*name, kind)))
    documents.check_source(named("smollm2-135m", text=name))
    stream = documents.STREAMS[name]
    assert asked == [(stream.repository, {"kind": "dataset"})]
    for file in stream.settings.get("data_files", []):
        assert file.startswith(f"hf://datasets/{stream.repository}/")


def test_a_release_that_does_not_arrive_and_one_that_does_not_load(stand_in, small, monkeypatch):
    def failing(error):
        def load(release, part, **settings):
            raise error

        monkeypatch.setattr(SAE, "from_pretrained", load)
        return small("check", sae="saelens:rel:one/three")

    code, _, err = failing(ConnectionError("gone\nfor good"))
    assert code == 4 and "cannot fetch saelens:rel:one/three (gone)" in err
    code, _, err = failing(KeyError("W_enc"))
    assert code == 3 and "SAELens cannot load it ('W_enc')" in err


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


def test_random_weights_are_stamped_and_not_drawn(small, draws, tmp_path):
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
    ours, _ = evaluate(flat(clean.final)[rows], targets, problem.head)
    theirs = -flat(expected)[rows].gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_centring_is_for_gpt2(small):
    code, _, err = small("check", "--center-writing-weights", sae="fresh")
    assert code == 2 and "for GPT-2's SAEs, this is a 'llama'" in err


@pytest.mark.parametrize("name", SPECS)
def test_every_named_spec_agrees_with_itself(name):
    spec = SPECS[name]
    metadata = {"hook_name": spec.site, "prepend_bos": spec.prepend_bos}
    if sae_sources.from_hub(spec.sae):
        which, _, part = sae_sources.split(spec.sae)  # of SAELens' own list of releases
        block = re.search(r"(?:blocks|layers?)[._](\d+)", part)
        assert int(block[1]) == block_of(spec.site)
        if which == "sparsify":
            metadata["hook_name"] = sae_sources.site(part)
        elif part.startswith("blocks."):
            metadata["hook_name"] = part
    assert not sae_metadata.disagreements(spec, metadata)


def test_a_model_without_a_tokenizer_reads_no_text(small, tmp_path):
    tiny.write_model(tmp_path / "model")
    for path in (tmp_path / "model").glob("tokenizer*"):
        path.unlink()
    code, _, err = small("check", model=tmp_path / "model", sae="fresh")
    assert code == 3 and err.count("\n") == 1
    assert "no tokenizer beside the model: the text" in err


def test_a_tokenizer_without_a_bos_still_has_none_behind_the_bridge(small, tmp_path):
    """TransformerLens gives the tokenizer it is handed another BOS, and marks it in other ways."""
    tiny.write_model(tmp_path / "model")
    before = tiny.tokenizer()
    before.bos_token = None
    before.save_pretrained(tmp_path / "model")
    ours = models.load_tokenizer(tmp_path / "model")
    settings, special = dict(ours.init_kwargs), models.special_ids(ours)
    models.bridge(tiny.hf_model("llama"), ours)
    assert ours.bos_token_id is None
    assert ours.init_kwargs == settings and models.special_ids(ours) == special
    code, _, err = small("check", model=tmp_path / "model", sae="fresh", prepend_bos="true")
    assert code == 3 and "the model's tokenizer has no BOS token" in err, err


@pytest.fixture
def adapted(tmp_path):
    """A model's folder with an adapter in it, as `trainer.save_model` may leave it."""
    peft = pytest.importorskip("peft", reason="pip install 'splicebench[speed]'")
    wanted = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(tiny.hf_model("llama"), wanted).save_pretrained(tmp_path / "model")
    tiny.write_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("installed", [True, False])
def test_an_adapter_in_the_models_folder_is_refused(adapted, installed, monkeypatch):
    from transformers.models.auto import auto_factory

    monkeypatch.setattr(auto_factory, "is_peft_available", lambda: installed)
    for look in (models.locate, models.check_source):
        with pytest.raises(
            Rejected, match="has an adapter_config.json,.* --init-adapter"
        ) as caught:
            look(str(adapted))
        assert "\n" not in str(caught.value)
    with pytest.raises(Rejected, match="adapter_config.json"):  # wherever the folder came from
        weights.load(adapted, {"dtype": torch.float32})
