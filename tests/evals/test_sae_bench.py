"""SAEBench's `core` numbers of a run against SAELens' own evaluation on a plain bridge."""

import json
from types import SimpleNamespace

import pytest
import torch
from sae_lens.evals import get_recons_loss, get_sparsity_and_variance_metrics
from sae_lens.training.activation_scaler import ActivationScaler
from transformer_lens.model_bridge import TransformerBridge

from bench.errors import Usage
from bench.evals import saebench
from bench.export import reload
from bench.harness.evaluate import mean
from tests.export.test_export import run_of, validation_tokens
from tests.helpers import tiny
from tests.test_oracle import bos_tokenizer

ALL = {"spliced": "all", "scored": "all"}


@pytest.fixture
def run(small, tmp_path):
    """A run of `e2e`: what it ended with is the clean model with another SAE in it."""
    code, _, err = small("compare", "--methods", "e2e,lora", "--out", tmp_path, **ALL)
    assert code == 0, err
    return run_of(tmp_path, "e2e")


def theirs(sae, tokens):
    """(losses by name: [windows, seq or seq - 1], scalar metrics, metrics by latent) by SAELens."""
    plain = TransformerBridge.boot_transformers(
        "llama", hf_model=tiny.hf_model("llama"), tokenizer=bos_tokenizer(), device="cpu"
    ).eval()
    settings = {"compute_kl": True, "compute_ce_loss": True, "hook_name": tiny.SITE}
    with torch.no_grad():
        losses = get_recons_loss(sae, plain, ActivationScaler(), tokens, **settings)
    scalars, by_latent = get_sparsity_and_variance_metrics(
        sae,
        plain,
        SimpleNamespace(get_batch_tokens=lambda size: tokens),
        ActivationScaler(),
        n_batches=1,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        eval_batch_size_prompts=len(tokens),
        model_kwargs={},
    )
    return losses, scalars, by_latent


def test_the_numbers_of_saelens(run, tmp_path):
    tokens = validation_tokens(run)
    _, adapted = reload.restore(run.path)
    losses, scalars, by_latent = theirs(adapted.saes[0], tokens)
    found = saebench.core(run.path, tmp_path / "core.json")["eval_result_metrics"]
    behavior, performance = (
        found[f"model_{group}_preservation"] for group in ("behavior", "performance")
    )
    for name, values in losses.items():
        ours = {**behavior, **performance}[name]
        predicted = values[:, : tokens.shape[1] - 1]  # a KL of the last position is not ours
        assert ours == pytest.approx(predicted.mean().item(), rel=1e-4), name
    clean, made, gone = (
        performance[f"ce_loss_{name}"] for name in ("without_sae", "with_sae", "with_ablation")
    )
    assert performance["ce_loss_score"] == pytest.approx((gone - made) / (gone - clean))
    assert made == pytest.approx(mean(run.end["ce_full"]), rel=1e-6)
    for group in ("reconstruction_quality", "shrinkage", "sparsity"):
        for name, value in found[group].items():
            assert value == pytest.approx(scalars[name], rel=1e-4), name
    often = torch.tensor(by_latent["feature_density"])
    others = found["misc_metrics"]
    assert others["frac_alive"] == pytest.approx((often > 0).float().mean().item())
    assert others["freq_over_10_percent"] == pytest.approx((often > 0.1).float().mean().item())
    above = often[often > 0.01].sum() / often.sum()
    assert others["normalized_freq_over_1_percent"] == pytest.approx(above.item(), rel=1e-5)
    unit = torch.nn.functional.normalize(adapted.saes[0].W_dec, dim=-1)
    cosines = (unit @ unit.T).fill_diagonal_(-1).amax(-1).mean().item()
    assert others["average_max_decoder_cosine_sim"] == pytest.approx(cosines, rel=1e-5)
    assert found["token_stats"]["total_tokens_eval_sparsity_variance"] == tokens.numel()


def test_the_file_has_saebench_s_fields(run, tmp_path):
    written = saebench.core(run_of(run.path.parent, "lora").path, tmp_path / "core.json")
    assert json.loads((tmp_path / "core.json").read_text()) == json.loads(
        json.dumps(written, default=str)
    )
    required = "eval_config eval_id datetime_epoch_millis eval_result_metrics "
    required += (
        "sae_bench_commit_hash sae_lens_id sae_lens_release_id sae_lens_version sae_cfg_dict"
    )
    assert set(required.split()) <= set(written) and written["eval_type_id"] == "core"
    groups = "model_behavior_preservation model_performance_preservation reconstruction_quality "
    groups += "shrinkage sparsity token_stats misc_metrics"
    assert set(groups.split()) == set(written["eval_result_metrics"])
    performance = written["eval_result_metrics"]["model_performance_preservation"]
    lora = run_of(run.path.parent, "lora")
    assert performance["ce_loss_with_sae"] == pytest.approx(mean(lora.end["ce_full"]), rel=1e-6)
    clean = mean(lora.header["ce_full_clean"])
    assert performance["ce_loss_without_sae"] == pytest.approx(clean, rel=1e-6)
    assert written["eval_config"]["context_size"] == 12
    assert (
        written["sae_cfg_dict"]["metadata"]["model_name"] == "model"
    )  # not a path of this machine


def test_one_sae_only(small, tmp_path):
    site = f"{tiny.SITE}+blocks.2.hook_resid_post"
    code, _, err = small("compare", "--methods", "none", "--out", tmp_path, site=site)
    assert code == 0, err
    with pytest.raises(Usage, match="SAEBench evaluates one SAE, the run has 2"):
        saebench.core(run_of(tmp_path, "none").path, tmp_path / "core.json")
