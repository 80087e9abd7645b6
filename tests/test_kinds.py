"""Every kind of SAE: spliced, trained end to end, saved and loaded, with the same outputs."""

import pytest
import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    MatchingPursuitSAE,
    MatchingPursuitSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)

from bench.config import method
from bench.errors import Rejected
from bench.harness.drive import drive
from bench.harness.evaluate import measure
from bench.harness.meter import Meter
from bench.loading import saes
from bench.problem import sae as sae_forms
from bench.problem.batches import Batches
from bench.problem.problem import Adapted, copy_of
from tests.helpers import tiny
from tests.test_methods import check_promises, hold_out

X = torch.randn(40, tiny.WIDTH, generator=torch.Generator().manual_seed(3))
NORMALISED = "topk on layer-normed activations"
UNTRAINED = {"gated": {"b_gate"}}
"""A gate is a step, and passes no gradient to what decides it alone."""


@pytest.fixture(scope="module", params=[*tiny.KINDS, NORMALISED])
def problem(request):
    if request.param != NORMALISED:
        return tiny.problem(kind=request.param)
    problem = tiny.problem()
    settings = {**problem.saes[0].cfg.to_dict(), "normalize_activations": "layer_norm"}
    sae = SAE.from_dict(settings)  # as OpenAI's for GPT-2
    sae.load_state_dict(problem.saes[0].state_dict())
    problem.saes = torch.nn.ModuleList([sae]).requires_grad_(False).eval()
    return problem


def last(problem, label, steps=6):
    """The adapted model at the end of a short run."""
    entry = method.entry(label)
    torch.manual_seed(0)
    batches = Batches(problem.train, problem.batch_size, steps, seed=0)
    meter = Meter(problem.bridge)
    *_, (_, adapted) = drive(entry.module, problem, batches, entry.config, meter)
    return adapted


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_an_own_copy_has_the_same_outputs(kind):
    (lent,) = tiny.sae_of_kind(kind)
    (copy,) = copy_of([lent])
    torch.testing.assert_close(copy.decode(copy.encode(X)), lent(X), rtol=0, atol=1e-6)
    copy.decode(copy.encode(X)).square().sum().backward()
    without = {name for name, p in copy.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == UNTRAINED.get(kind, set())
    assert all(parameter.grad is None for parameter in lent.parameters())


@pytest.mark.parametrize("label", ["e2e", "e2e:loss=kl+mse", "lora"])
def test_every_method_keeps_its_promises(problem, label):
    check_promises(problem, hold_out(problem), method.entry(label))


@pytest.mark.parametrize("lr", [6e-3, 0.3])
def test_thresholds_are_trained_and_never_negative(lr):
    problem = tiny.problem(kind="jumprelu")
    with torch.no_grad():
        problem.saes[0].threshold[:20] = 0.01
    before = problem.saes[0].threshold.clone()
    trained = last(problem, f"e2e:lr={lr}").saes[0]
    assert ((trained.threshold - before).abs() > 1e-3).float().mean() > 0.5
    assert (trained.threshold >= 0).all()
    if lr > 0.1:
        assert (trained.threshold == 0).any()  # it was needed
    assert torch.equal(problem.saes[0].threshold, before)


def test_the_gradient_of_a_threshold_is_that_of_the_estimator():
    """d loss / d threshold = - threshold / bandwidth * upstream, inside the window (2407.14435)."""
    lent = tiny.sae_of_kind("jumprelu")[0]
    (copy,) = copy_of([lent])
    upstream = torch.randn(len(X), copy.cfg.d_sae, generator=torch.Generator().manual_seed(4))
    (copy.encode(X) * upstream).sum().backward()
    width = sae_forms.BANDWIDTH * lent.threshold[lent.threshold > 0].median()
    pre = (X - lent.b_dec * lent.cfg.apply_b_dec_to_input) @ lent.W_enc + lent.b_enc
    inside = (pre - lent.threshold).abs() < width / 2
    expected = -(lent.threshold / width * inside * upstream).sum(0)
    torch.testing.assert_close(copy.threshold.grad, expected, rtol=1e-4, atol=1e-5)


def test_what_e2e_trained_is_the_same_after_export(problem, tmp_path):
    adapted, held_out = last(problem, "e2e:lr=0.01"), hold_out(problem)
    saes.save(adapted.saes[0], tmp_path)
    reloaded = SAE.load_from_disk(tmp_path)
    assert type(reloaded) is type(problem.saes[0])
    torch.testing.assert_close(reloaded(X), adapted.saes[0](X), rtol=1e-5, atol=1e-6)
    loaded = saes.load_all([tmp_path], [(tiny.WIDTH,)])
    ours = measure(problem, held_out, adapted)
    theirs = measure(problem, held_out, Adapted(saes=loaded))
    assert theirs.ce == pytest.approx(ours.ce, abs=1e-5)
    assert theirs.l0 == pytest.approx(ours.l0)


MATRYOSHKA = (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig)


@pytest.mark.parametrize(
    ("made", "of", "more"),
    [
        (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {}),
        (*MATRYOSHKA, {"matryoshka_widths": [16, 32, 64]}),
    ],
)
def test_batchtopk_comes_in_its_threshold_form(tmp_path, made, of, more):
    torch.manual_seed(0)
    training = made(of(d_in=tiny.WIDTH, d_sae=64, k=4, **more))
    training.topk_threshold.fill_(0.7)
    saes.save(training, tmp_path)
    loaded = saes.load(tmp_path, tiny.WIDTH)
    assert loaded.cfg.architecture() == "jumprelu"
    assert loaded.threshold.unique().tolist() == pytest.approx([0.7])
    latents = loaded.encode(X)
    assert (latents[latents > 0] > 0.7).all()
    torch.testing.assert_close(loaded.encode(X[:1]), latents[:1])  # whatever else is in the batch


def test_a_negative_threshold_is_refused(tmp_path):
    lent = tiny.sae_of_kind("jumprelu")[0]
    with torch.no_grad():
        lent.threshold[3] = -0.1
    saes.save(lent, tmp_path)
    with pytest.raises(Rejected, match="thresholds below 0"):
        saes.load(tmp_path, tiny.WIDTH)


def test_what_cannot_be_spliced_in_is_refused_by_its_name(tmp_path):
    torch.manual_seed(0)
    config = MatchingPursuitSAEConfig(d_in=tiny.WIDTH, d_sae=64)
    saes.save(MatchingPursuitSAE(config), tmp_path)
    with pytest.raises(Rejected, match="kind 'matching_pursuit', expected one of topk, jumprelu"):
        saes.load(tmp_path, tiny.WIDTH)


def test_reconstruction_alone_trains_topk_only():
    with pytest.raises(Rejected, match="mse trains topk SAEs, this one is 'jumprelu'"):
        sae_forms.to_training(tiny.sae_of_kind("jumprelu")[0])
