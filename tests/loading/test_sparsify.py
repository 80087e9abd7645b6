"""sparsify's checkpoints against sparsify's own formula."""

import json

import pytest
import torch
from safetensors.torch import save_file

from bench.errors import Rejected, Usage
from bench.loading import sae_sources, saes
from tests.helpers import tiny

K, LATENTS = 5, 96
X = torch.randn(30, tiny.WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """A checkpoint as sparsify writes it: `layers.1`, decoder [latents, d_in]."""
    return write(tmp_path / "layers.1")


def write(folder, **changes):
    torch.manual_seed(0)
    folder.mkdir()
    tensors = {
        "encoder.weight": torch.randn(LATENTS, tiny.WIDTH),
        "encoder.bias": torch.randn(LATENTS) / 10,
        "W_dec": torch.randn(LATENTS, tiny.WIDTH),
        "b_dec": torch.randn(tiny.WIDTH),
    }
    save_file(tensors, folder / "sae.safetensors")
    config = {
        "expansion_factor": 3,
        "normalize_decoder": True,
        "num_latents": LATENTS,
        "k": K,
        "multi_topk": False,
        "d_in": tiny.WIDTH,
    }
    (folder / "cfg.json").write_text(json.dumps({**config, **changes}))
    return folder


def by_formula(folder, x):
    """Top k of relu((x - b_dec) W^T + b), times W_dec, plus b_dec."""
    from safetensors.torch import load_file

    t = load_file(folder / "sae.safetensors")
    pre = torch.relu((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"])
    top = pre.topk(K, sorted=False)
    latents = torch.zeros_like(pre).scatter_(-1, top.indices, top.values)
    return latents, latents @ t["W_dec"] + t["b_dec"]


def test_it_is_what_sparsify_computes(folder):
    converted = sae_sources.locate(str(folder))
    sae = saes.load(converted, tiny.WIDTH)
    latents, made = by_formula(folder, X)
    torch.testing.assert_close(sae.encode(X), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.decode(sae.encode(X)), made, rtol=1e-5, atol=1e-5)
    metadata = saes.metadata(converted)
    assert metadata["hook_name"] == "blocks.1.hook_resid_post" and metadata["prepend_bos"] is True
    assert metadata.get("model_name") is None  # the cache is shared by all models
    assert sae_sources.locate(str(folder)) == converted


def test_names_of_sites():
    assert sae_sources.site("layers.12") == "blocks.12.hook_resid_post"
    assert sae_sources.site("layers.12.mlp") == "blocks.12.mlp.hook_out"
    assert sae_sources.site("model.layers.3") == "blocks.3.hook_resid_post"
    assert sae_sources.site("h.3.attn") == "blocks.3.attn.hook_out"
    with pytest.raises(Rejected, match="hook point 'embed_tokens'"):
        sae_sources.site("embed_tokens")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signed": True}, "signed is True, expected a plain TopK SAE"),
        ({"transcode": True}, "transcode is True, expected a plain TopK SAE"),
        ({"activation": "groupmax"}, "activation is 'groupmax', expected a plain TopK SAE"),
        ({"skip_connection": True}, "skip_connection is True, expected a plain TopK SAE"),
        ({"k": None}, "not a sparsify config"),
    ],
)
def test_what_is_no_topk_autoencoder_is_refused(tmp_path, changes, message):
    with pytest.raises(Rejected, match=message):
        sae_sources.locate(str(write(tmp_path / "layers.2", **changes)))


def test_a_torn_checkpoint_is_refused(folder):
    path = folder / "sae.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(Rejected, match="not a sparsify autoencoder"):
        sae_sources.locate(str(folder))


def test_sources_that_are_not_there():
    wrong = "unknown SAELens release 'gpt2-small-res-j': did you mean 'gpt2-small-res-jb'"
    with pytest.raises(Usage, match=wrong):
        sae_sources.check_source("saelens:gpt2-small-res-j:blocks.8.hook_resid_pre")
    with pytest.raises(Usage, match="did you mean 'blocks.8.hook_resid_pre'"):
        sae_sources.check_source("saelens:gpt2-small-res-jb:blocks.8.hook_resid_pr")
    with pytest.raises(Usage, match="expected own, fresh, a folder"):
        sae_sources.check_source("sparsify:EleutherAI/x")
