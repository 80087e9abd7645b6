"""`python -m bench check`: each thing that can be wrong is caught by a line that says which."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from transformer_lens.hook_points import HookPoint

from bench.config.spec import Spec
from bench.config.specs import SPECS
from bench.errors import Rejected
from bench.evals import check, diagnose
from bench.loading import sae_metadata, saes
from bench.problem.problem import Adapted
from bench.runs import setup
from tests.helpers import tiny

K = 6
TOKENS = tiny.windows(60, seed=5)


def activations(problem, site):
    """The clean activations at `site`, without the first position: [tokens, WIDTH]."""
    caught = {}

    def keep(value, hook):
        caught["x"] = value

    problem.clean(TOKENS, Adapted(saes=problem.saes))
    with problem.points.attached([(site, keep)]), torch.no_grad():
        problem.bridge(TOKENS, use_cache=False)
    return caught["x"][:, 1:].flatten(0, 1)


def fitted(problem, site=tiny.SITE):
    """A TopK SAE trained on the activations at `site`, for a second."""
    x = activations(problem, site)
    told = SAEMetadata(hook_name=site, prepend_bos=False, spliced_positions="not-first")
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=tiny.WIDTH, d_sae=128, k=K, metadata=told))
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(128, tiny.WIDTH), dim=-1))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_dec.copy_(x.mean(0))
    adam = torch.optim.Adam(sae.parameters(), lr=1e-2)
    for _ in range(300):
        (sae(x) - x).square().sum(-1).mean().backward()
        adam.step()
        adam.zero_grad()
    return sae


def thresholded(problem, scale):
    """A JumpReLU SAE along the principal axes, for activations `scale` times as large."""
    x = scale * activations(problem, tiny.SITE)
    axes = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:16]
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=tiny.WIDTH, d_sae=32, metadata=SAEMetadata()))
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([axes, -axes]))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_dec.copy_(x.mean(0))
        sae.threshold.fill_(0.3 * x.std())
    return sae


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """SAEs that fit the tiny model: one as it should be, the others with one thing wrong each."""
    top, problem = tmp_path_factory.mktemp("saes"), tiny.problem()
    saes.save(fitted(problem), top / "good")
    saes.save(fitted(problem, "blocks.3.hook_resid_post"), top / "other")
    saes.save(thresholded(problem, 8.0), top / "scale")
    for name, source in (("no-metadata", "good"), ("relu", "good"), ("other-unsaid", "other")):
        shutil.copytree(top / source, top / name)
    for name in ("no-metadata", "relu", "other-unsaid", "scale"):
        config = json.loads((top / name / "cfg.json").read_text())
        config["metadata"] = {}
        if name == "relu":
            config["architecture"] = "standard"
            del config["k"], config["rescale_acts_by_decoder_norm"]
        (top / name / "cfg.json").write_text(json.dumps(config))
    wide = tiny.sae(width=40)[0]
    saes.save(wide, top / "wide")
    return top


def test_a_good_one_passes(small, folders):
    for name in ("good", "no-metadata"):
        code, out, err = small("check", sae=folders / name)
        assert code == 0, err
        assert "nothing found that speaks against it" in out
        assert "hook points fired once" in out and "cosine" in out


def test_the_share_of_the_way_from_ablation_is_named_as_saelens_names_it():
    measured = {"ce_clean": 3.0, "ce_spliced": 3.5, "ce_ablated": 11.0}
    measured |= {"ce_full_clean": [3.0, 3.2], "ce_full_spliced": [3.5, 3.8]}
    measured |= {"kl_spliced": 0.6, "kl_ablated": 8.0}
    said = check.losses(SimpleNamespace(spec=Spec(), measured=measured))
    assert "ce_loss_score 0.938, kl_div_score 0.925; gap 0.5500 on the validation set" in said
    assert "score" not in check.losses(
        SimpleNamespace(spec=Spec(), measured=measured | {"ce_ablated": 2.9})
    )


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("other", {}, "wrong layer: the SAE was trained at blocks.3.hook_resid_post, --site is"),
        ("other-unsaid", {}, "at blocks.3.hook_resid_post"),
        ("wide", {}, "d_in 40, the model's site has width 32"),
        ("good", {"prepend_bos": "true"}, "wrong BOS rule: the SAE was trained without a BOS"),
        ("good", {"spliced": "all"}, "wrong positions: the SAE was trained on 'not-first'"),
        ("relu", {}, "wrong kind: declared 'standard'"),
        ("scale", {}, "wrong scale:"),
    ],
)
def test_what_is_wrong_is_said(small, folders, name, changes, line):
    code, out, err = small("check", sae=folders / name, **changes)
    assert code == 3 and line in out + err, out + err
    assert err.count("\n") == 1 and "Traceback" not in out + err


def test_compare_refuses_what_check_would(small, folders, tmp_path):
    arguments = ("compare", "--methods", "none", "--out", tmp_path)
    code, _, err = small(*arguments, sae=folders / "other")
    assert code == 3 and "wrong layer" in err and "--force" in err
    assert not list(tmp_path.glob("*.jsonl"))
    code, out, err = small(*arguments, "--force", sae=folders / "other")
    assert code == 0 and "forced: wrong layer" in out, err
    (record,) = tmp_path.glob("*.jsonl")
    header = json.loads(record.read_text().splitlines()[0])
    assert "wrong layer" in header["forced"][0] and header["ce_ablated"] > 0


def test_an_sae_worse_than_nothing_is_refused():
    measured = {"ce_clean": 3.0, "ce_spliced": 9.5, "ce_ablated": 9.4}
    (line,) = setup.doubts_of(Spec(), [{}], measured)
    assert line == "the SAE explains nothing: CE spliced 9.5000, with the site set to 0 9.4000"
    assert not setup.doubts_of(Spec(), [{}], {**measured, "ce_spliced": 9.3})
    # A model that is better off without the site has nothing to say about its SAE.
    assert not setup.doubts_of(Spec(), [{}], {**measured, "ce_clean": 9.45})


def test_the_first_position_is_found_out():
    problem = tiny.problem(spliced="all")
    sae = fitted(problem)
    problem.saes[0] = sae
    assert not [line for line in diagnose.findings(problem, 0, TOKENS) if "positions" in line]
    rows = problem.rows(TOKENS, "all")
    here = torch.randn(len(rows), tiny.WIDTH)
    here[rows % 30 == 0] *= 1000
    line = diagnose._first_position(sae, here, rows % 30 == 0, 30)
    assert "at the first position of a window; try --spliced not-first" in line


TOLD = {"hook_name": "blocks.15.hook_resid_post", "prepend_bos": False}


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({}, None),
        (TOLD, None),
        ({"hook_name": "blocks.16.hook_resid_pre"}, None),
        ({"hook_name": "blocks.15.hook_out"}, None),
        ({"hook_name": "blocks.15.hook_mlp_out"}, "wrong site"),
        ({"hook_name": "blocks.14.hook_mlp_out"}, "wrong layer"),
        ({"exclude_special_tokens": True}, "wrong positions: the SAE never saw special tokens"),
        ({"seqpos_slice": [5, None]}, None),  # the first one is left out here anyway
        ({"normalize_activations": "expected_average_only_in"}, "wrong scale: the SAE wants"),
        ({"normalize_activations": "layer_norm"}, None),
        ({"prepend_bos": True}, "wrong BOS rule: the SAE was trained with a BOS put first"),
        ({"model_name": "gpt2-small"}, None),  # a package has a name of its own
        ({"model_name": "package:gemma3-270m"}, "wrong model"),
        ({"model_from_pretrained_kwargs": {}}, None),
        ({"model_from_pretrained_kwargs": {"center_writing_weights": True}}, "wrong weights"),
    ],
)
def test_metadata_against_the_spec(told, line):
    lines = sae_metadata.disagreements(Spec(), told)
    assert (not lines) if line is None else (len(lines) == 1 and line in lines[0])


PROCESSED = {
    "fold_ln": [],
    "center_unembed": [],
    "fold_value_biases": ["blocks.1.attn.hook_z"],
    "center_writing_weights": [tiny.SITE, "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"],
}
"""Processing -> the sites whose activations it changes."""


@pytest.mark.parametrize("switch", PROCESSED)
def test_processing_that_changes_what_a_site_sees_is_told(switch):
    """The table is TransformerLens' own: the sites are looked at on a GPT-2."""
    sites = [*PROCESSED["fold_value_biases"], *PROCESSED["center_writing_weights"]]
    tokens, off = tiny.windows(2), dict.fromkeys([*PROCESSED, "fold_ln"], False)
    plain, processed = tiny.bridge("gpt2"), tiny.bridge("gpt2")
    for bridge in (plain, processed):
        draw = torch.Generator().manual_seed(5)
        for name, parameter in bridge.original_model.named_parameters():
            if name.endswith("bias"):  # a new GPT-2's are 0
                parameter.data.normal_(generator=draw)
    processed.enable_compatibility_mode(**off | {switch: True}, disable_warnings=True)
    _, before = plain.run_with_cache(tokens, names_filter=lambda name: name in sites)
    _, after = processed.run_with_cache(tokens, names_filter=lambda name: name in sites)
    changed = [site for site in sites if not torch.allclose(before[site], after[site], atol=1e-4)]
    assert changed == PROCESSED[switch]
    for site in sites:
        spec = replace(Spec(), site=site)
        lines = sae_metadata.disagreements(
            spec, {"model_from_pretrained_kwargs": {switch: True}}, "gpt2"
        )
        assert lines or site not in changed
        assert not lines or PROCESSED[switch]


def test_processing_that_is_not_known_is_told():
    (line,) = sae_metadata.disagreements(
        Spec(), {"model_from_pretrained_kwargs": {"revision": "step1"}}
    )
    assert line == "wrong weights: the SAE was trained with revision=step1 of its model"
    assert not sae_metadata.disagreements(
        Spec(), {"model_from_pretrained_kwargs": {"center_writing_weights": True}}, "llama"
    )
    harmless = {"fold_ln": True, "center_unembed": True, "dtype": "float16", "first": None}
    assert not sae_metadata.disagreements(Spec(), {"model_from_pretrained_kwargs": harmless})


def test_one_point_has_two_names_outside_gemma():
    spec = replace(Spec(), site="blocks.15.mlp.hook_out", spliced="all")
    told = {"hook_name": "blocks.15.hook_mlp_out"}
    assert not sae_metadata.disagreements(spec, told, "llama")
    assert "wrong site" in sae_metadata.disagreements(spec, told, "gemma2")[0]
    (line,) = sae_metadata.disagreements(spec, {"seqpos_slice": [5, None]}, "llama")
    assert "never saw the first 5 of a window" in line


def test_a_linear_map_that_never_fires_is_found(monkeypatch):
    problem = tiny.problem()
    assert "hook points fired once" in diagnose.fired(problem)
    monkeypatch.setattr(diagnose, "expected_points", lambda problem: ["blocks.0.attn.dead"])
    problem.points._points["blocks.0.attn.dead"] = HookPoint()
    with pytest.raises(Rejected, match="'blocks.0.attn.dead' fired 0 times"):
        diagnose.fired(problem)


def test_many_latents_are_looked_at_in_parts(monkeypatch):
    problem = tiny.problem()
    x, sae = activations(problem, tiny.SITE), problem.saes[0]
    whole = diagnose.unexplained(sae, x)
    monkeypatch.setattr(diagnose, "LATENTS_AT_ONCE", 64 * sae.cfg.d_sae)
    assert len(x) > 64 and diagnose.unexplained(sae, x) == pytest.approx(whole, rel=1e-6)


def test_names_of_models():
    told = {"model_name": "gpt2-small"}
    assert not sae_metadata.disagreements(SPECS["gpt2-small"], told)
    assert not sae_metadata.disagreements(SPECS["gemma-2-2b"], {"model_name": "gemma-2-2b"})
    (line,) = sae_metadata.disagreements(SPECS["llama-3.2-1b"], told)
    assert line == "wrong model: the SAE was trained on gpt2-small, not meta-llama/Llama-3.2-1B"
