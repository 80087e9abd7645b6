"""CE and KL, clean, spliced and ablated, against SAELens' own evaluation on a plain bridge."""

import pytest
import torch
from sae_lens.evals import get_recons_loss
from sae_lens.training.activation_scaler import ActivationScaler
from transformer_lens.model_bridge import TransformerBridge

from bench.harness.evaluate import HeldOut, ablated, clean_side, mean, measure
from bench.loading.text import Windows
from bench.problem.problem import Adapted
from tests.helpers import tiny

SPECIAL = (1, 2)
SITES = [
    "blocks.1.hook_resid_post",
    "blocks.2.hook_resid_pre",
    "blocks.1.hook_mlp_out",
    "blocks.1.mlp.hook_out",
    "blocks.2.attn.hook_z",
]


def windows():
    """Two documents of two windows, a BOS put first and an EOS somewhere."""
    tokens = tiny.windows(4, seed=9)
    tokens[:, 0], tokens[1:3, 5] = 1, 2
    return Windows(tokens, ["a", "a", "b", "b"])


def theirs(family, sae, site, tokens, ignored):
    """[windows, seq - 1] losses by SAELens; a plain bridge, none of our files in between."""
    plain = TransformerBridge.boot_transformers(
        family, hf_model=tiny.hf_model(family), tokenizer=bos_tokenizer(), device="cpu"
    ).eval()
    with torch.no_grad():
        return get_recons_loss(
            sae,
            plain,
            ActivationScaler(),
            tokens,
            compute_kl=True,
            compute_ce_loss=True,
            ignore_tokens=ignored,
            hook_name=site,
        )


def bos_tokenizer():
    tokenizer = tiny.tokenizer()
    tokenizer.init_kwargs["add_bos_token"] = True
    return tokenizer


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("rule", ["all", "not-special"])
def test_our_ce_and_kl_are_saelens(family, site, rule, tmp_path):
    whole = tiny.problem(family, spliced=rule, scored=rule, special=SPECIAL)
    problem = type(whole)(
        whole.bridge, whole.saes, [site], whole.train, spliced=rule, scored=rule, special=SPECIAL
    )
    held = windows()
    side = clean_side(problem, held, tmp_path / "side.safetensors")
    bare = Adapted(saes=problem.saes)
    ours = {
        "ce_loss_without_sae": side.ce_clean,
        "ce_loss_with_sae": measure(problem, side, bare).ce,
        "kl_div_with_sae": measure(problem, side, bare).kl,
    }
    ours["ce_loss_with_ablation"], ours["kl_div_with_ablation"] = ablated(problem, side)
    ignored = list(SPECIAL) if rule == "not-special" else None
    expected = theirs(family, problem.saes[0], site, held.tokens, ignored)
    counted = ~torch.isin(held.tokens[:, :-1], torch.tensor(SPECIAL if ignored else ()))
    for name, values in ours.items():
        for document, rows in zip(values, (slice(0, 2), slice(2, 4)), strict=True):
            kept = expected[name][rows, : counted.shape[1]]  # theirs has a KL of the last position
            dense = kept[counted[rows]].double().mean().item()
            assert document == pytest.approx(dense, rel=1e-5), name


def test_documents_count_by_scored_token(tmp_path):
    problem = tiny.problem(spliced="not-special", scored="not-special", special=SPECIAL)
    held = windows()
    side = clean_side(problem, held, tmp_path / "side.safetensors")
    assert isinstance(side, HeldOut) and len(side.ce_clean) == 2
    once = clean_side(problem, held, tmp_path / "side.safetensors")
    assert once.ce_clean == side.ce_clean
    score = measure(problem, side, Adapted(saes=problem.saes))
    assert min(score.kl) > 0 and mean(score.ce) > 0
