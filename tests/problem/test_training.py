"""Step sizes, a training that goes on from another, what is frozen, low-rank pairs, weights."""

import copy

import pytest
import torch

from bench.config import method
from bench.config.method_files import names
from bench.errors import Fault
from bench.harness.evaluate import Gauge, measure
from bench.loading import saes as saved
from bench.problem.batches import Batches
from bench.problem.objectives import (
    Seen,
    flat,
    kl_with_and_without,
    reconstruction,
    unchanged,
    weights_of,
)
from bench.problem.problem import Adapted
from bench.problem.sae import center
from bench.problem.training import Descent, schedule
from tests.helpers import tiny
from tests.test_methods import hold_out


def trained(problem, label, steps, seed=0, skip=0):
    """The last `Adapted` of a run of `steps` batches, those after the first `skip`."""
    entry = method.entry(label)
    batches = Batches(problem.train, problem.batch_size, skip + steps, seed)
    batches.cursor = skip
    torch.manual_seed(0)
    *_, adapted = entry.module.train(problem, batches, entry.config)
    return adapted


def test_step_sizes_rise_stay_and_fall():
    factor = schedule(10, 0.2, 0.3)
    found = [round(factor(step), 3) for step in range(10)]
    assert found == [0.5, 1, 1, 1, 1, 1, 1, 1, 0.667, 0.333]
    assert [schedule(4, 0.0, 1.0)(step) for step in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [schedule(4, 0.0, 0.0)(step) for step in range(5)] == [1, 1, 1, 1, 0]
    assert schedule(0, 0.5, 0.5)(0) == 0  # a run without steps, as one that is loaded again


@pytest.mark.parametrize("field", ["warmup", "decay"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_shares_of_a_run_lie_between_0_and_1(field, value):
    with pytest.raises(ValueError, match=f"{field} must be in"):
        Descent(lr=1.0, **{field: value})


@pytest.mark.parametrize("label", [n for n in names() if n not in ("none", "ridge")])
def test_every_gradient_method_has_the_schedule(label):
    """The first of three steps of a rise over the whole run is a third of the step size."""
    entry = method.entry(f"{label}:warmup=1")
    problem = tiny.problem()
    batches = Batches(problem.train, problem.batch_size, 3, seed=0)
    steps = entry.module.train(problem, batches, entry.config)
    adam = next(steps).state["adam"]
    whole = [group["initial_lr"] for group in adam.param_groups]
    rates = []
    for _ in steps:
        rates.append([group["lr"] for group in adam.param_groups])
    assert rates[0] == pytest.approx([lr * 2 / 3 for lr in whole])
    assert rates[1] == pytest.approx(whole)


def test_mse_goes_on_as_if_there_had_been_no_break(tmp_path):
    """Ten steps are five and five more from what the first five have kept, bit by bit."""
    problem = tiny.problem()
    whole = trained(problem, "mse:decay=0:dead_after=3", 10)
    first = trained(problem, "mse:decay=0:dead_after=3", 5)
    assert first.keep == ("saes", "adam", "idle")
    saved.save(first.saes[0], tmp_path)
    saved.save_state({part: first.state[part].state_dict() for part in first.keep}, tmp_path)

    again = tiny.problem()
    again.saes = saved.load_all([tmp_path], [(tiny.WIDTH,)])
    again.kept_state = lambda: saved.kept_state(tmp_path)
    kept = trained(again, "mse:decay=0:dead_after=3:adam=kept", 5, skip=5)
    for name, value in whole.saes[0].state_dict().items():
        assert torch.equal(kept.saes[0].state_dict()[name], value), name
    new = trained(again, "mse:decay=0:dead_after=3", 5, skip=5)
    assert not torch.allclose(new.saes[0].b_dec, whole.saes[0].b_dec, atol=1e-6)


def test_a_training_that_has_ended_keeps_no_adam(tmp_path):
    adapted = trained(tiny.problem(), "mse", 3)
    assert not adapted.keep
    saved.save(adapted.saes[0], tmp_path / "sae")
    with pytest.raises(Fault, match="kept no state"):
        saved.kept_state(tmp_path / "sae")
    (tmp_path / "sae" / saved.STATE).write_bytes(b"no such thing")
    with pytest.raises(Fault, match="cannot be read"):
        saved.kept_state(tmp_path / "sae")


@pytest.mark.parametrize("label", ["e2e", "mse"])
def test_a_frozen_parameter_stays(label):
    problem = tiny.problem()
    adapted = trained(problem, f"{label}:freeze=W_dec", 3)
    assert torch.equal(adapted.saes[0].W_dec, problem.saes[0].W_dec)
    assert not torch.equal(adapted.saes[0].W_enc, problem.saes[0].W_enc)
    with pytest.raises(Fault, match="parameter of the SAE 'W_doc'.*W_dec"):
        trained(problem, f"{label}:freeze=W_doc", 3)


def test_frozen_thresholds_stay_and_free_ones_move():
    problem = tiny.problem(kind="jumprelu")
    frozen = trained(problem, "e2e:freeze=threshold", 3).saes[0]
    free = trained(problem, "e2e", 3).saes[0]
    assert torch.equal(frozen.threshold, problem.saes[0].threshold)
    assert not torch.equal(free.threshold, problem.saes[0].threshold)


def test_an_sae_that_was_never_trained_starts_at_the_mean():
    problem = tiny.problem()
    sae, activations = copy.deepcopy(problem.saes[0]), torch.randn(40, tiny.WIDTH)
    before = sae.b_dec.clone()
    center(sae, activations)
    assert torch.equal(sae.b_dec, before)
    sae.b_dec.data.zero_()
    center(sae, activations)
    assert torch.equal(sae.b_dec, activations.mean(0))


def test_e2e_from_scratch_starts_as_mse_does():
    problem = tiny.problem()
    problem.saes[0].b_dec.zero_()
    seen = Seen(problem, problem.train[:2], Adapted(saes=problem.saes))
    steps = trained(problem, "e2e:lr=1e-12", 1)
    batch = next(iter(Batches(problem.train, problem.batch_size, 1, 0)))
    site = Seen(problem, batch, Adapted(saes=problem.saes)).sites[0]
    assert torch.allclose(steps.saes[0].b_dec, site.mean(0), atol=1e-6)
    assert seen.sites[0].shape[1] == tiny.WIDTH


def test_lora_without_the_sae_is_the_clean_model_at_first_and_keep_adds_its_kl():
    problem = tiny.problem()
    entry = method.entry("lora:keep=2")
    adapted = next(entry.module.train(problem, Batches(problem.train, 2, 1, 0), entry.config))
    seen = Seen(problem, problem.train[:2], adapted)
    assert seen.kl_without_saes.item() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        for name, weight in adapted.state["adapters"].named_parameters():
            if name.endswith(".b"):
                weight.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    seen = Seen(problem, problem.train[:2], adapted)
    clean = problem.clean(problem.train[:2], Adapted(saes=problem.saes))
    log_p, log_q = (
        problem.head.logits(hidden).log_softmax(-1)[:, :]
        for hidden in (seen.clean_final, seen._scored(problem.final(clean, adapted, [unchanged])))
    )
    dense = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert dense > 1e-3
    assert seen.kl_without_saes.item() == pytest.approx(dense.item(), rel=1e-4)
    both = kl_with_and_without(2.0)(seen)
    assert both.item() == pytest.approx((seen.kl + 2 * dense).item(), rel=1e-4)


def test_low_rank_pairs_have_the_gradient_of_the_dense_weights_and_fold():
    """dL/dB = scale * dL/dW A^T, with the dense gradient from e2e's own copy of the SAE."""
    problem = tiny.problem()
    entry = method.entry("sae_lora:rank=3:alpha=6")
    torch.manual_seed(0)
    adapted = next(entry.module.train(problem, Batches(problem.train, 2, 1, 0), entry.config))
    dense = copy.deepcopy(problem.saes).requires_grad_(True)
    tokens = problem.train[:2]
    problem.backward(tokens, adapted)
    problem.backward(tokens, Adapted(saes=dense, state={"saes": dense}))
    for name in ("W_enc", "W_dec"):
        pair = adapted.saes[0].sae.parametrizations[name][0]
        expected = 2.0 * getattr(dense[0], name).grad @ pair.a.T
        assert torch.allclose(pair.b.grad, expected, rtol=1e-3, atol=1e-6)
        assert pair.a.grad is not None and not pair.a.grad.any()  # as B is 0
    after = trained(problem, "sae_lora:rank=3", 4).saes[0]
    folded, x = after.folded(), torch.randn(16, tiny.WIDTH)
    assert type(folded) is type(problem.saes[0]) and not hasattr(folded, "parametrizations")
    assert torch.allclose(reconstruction(folded, x), reconstruction(after, x), atol=1e-6)
    assert not torch.equal(folded.W_enc, problem.saes[0].W_enc)
    assert torch.equal(folded.b_dec, problem.saes[0].b_dec)


def test_weighted_losses_see_no_giant():
    """One token of a thousandfold norm decides the plain loss, and nearly nothing weighted."""
    problem = tiny.problem()
    sae, x = problem.saes[0], torch.randn(64, tiny.WIDTH)
    x[0] *= 1000
    gauge = Gauge(sae)
    gauge(x, x)
    made, w = reconstruction(sae, x).double(), x.double().square().sum(-1).reciprocal()
    mean = (w[:, None] * x.double()).sum(0) / w.sum()
    errors = (x.double() - made).square().sum(-1)
    weighted = (w * errors).sum() / (w * (x.double() - mean).square().sum(-1)).sum()
    assert gauge.fvu_weighted == pytest.approx(weighted.item(), rel=1e-5)
    plain = errors.sum() / (x.double() - x.double().mean(0)).square().sum()
    assert gauge.fvu == pytest.approx(plain.item(), rel=1e-5)
    fires = (sae.encode(x) > 0).any(0)
    assert gauge.dead == pytest.approx(1 - fires.double().mean().item())
    assert weights_of(x).mean().item() == pytest.approx(1)
    assert weights_of(x)[0] < 1e-4 * weights_of(x)[1:].mean()


def test_weighted_ridge_is_the_weighted_regression():
    from methods.ridge import Ridge

    torch.manual_seed(0)
    y, x, w = torch.randn(200, 5), torch.randn(200, 5), torch.rand(200, 1) + 0.1
    ridge = Ridge(5)
    ridge.add(y, x, w)
    ridge.solve(1e-9)
    wide = torch.cat([y, torch.ones(200, 1)], 1).double()
    root = w.sqrt().double()
    expected = torch.linalg.lstsq(root * wide, root * x.double()).solution
    assert torch.allclose(ridge.w.double(), expected, atol=1e-4)


def test_kl_by_document_is_that_of_dense_logits():
    problem = tiny.problem()
    held_out = hold_out(problem)
    score = measure(problem, held_out, Adapted(saes=problem.saes))
    clean = problem.clean(held_out.tokens, Adapted(saes=problem.saes))
    spliced = problem.final(clean, Adapted(saes=problem.saes))
    log_p, log_q = (
        problem.head.logits(flat(hidden)).log_softmax(-1) for hidden in (clean.final, spliced)
    )
    by_token = (log_p.exp() * (log_p - log_q)).sum(-1).view(held_out.tokens.shape)
    by_window = by_token[:, 1:-1].mean(1)
    assert score.kl == pytest.approx(by_window.view(2, 2).mean(1).tolist(), rel=1e-4)
