"""Chunked KL and CE against dense ones, finite differences, and what a KL must satisfy."""

import pytest
import torch
from jaxtyping import TypeCheckError

from bench.problem import losses
from bench.problem.losses import Head, evaluate, kl, teacher_of

TOKENS, WIDTH, VOCABULARY = 23, 16, 101


@pytest.fixture(
    params=[(None, False), (30.0, False), (2.0, True)], ids=["plain", "cap", "cap+bias"]
)
def case(request, monkeypatch):
    """(head, clean, adapted, targets) with chunks of five tokens, gone over by two."""
    softcap, with_bias = request.param
    monkeypatch.setattr(losses, "CHUNK_BYTES", {"cpu": 4 * 5 * VOCABULARY})
    monkeypatch.setattr(losses, "SWEEP_BYTES", {"cpu": 4 * 2 * VOCABULARY})
    monkeypatch.setattr(losses, "CHUNK_TOKENS", 1)
    torch.manual_seed(0)
    bias = torch.randn(VOCABULARY) if with_bias else None
    head = Head(torch.randn(VOCABULARY, WIDTH), bias, softcap)
    clean, adapted = torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, WIDTH)
    return head, clean, adapted, torch.randint(VOCABULARY, (TOKENS,))


def dense_logits(head, hidden):
    logits = hidden @ head.weight.T + (0 if head.bias is None else head.bias)
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def dense_kl(head, clean, adapted):
    log_p, log_q = (dense_logits(head, h).log_softmax(-1) for h in (clean, adapted))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def gradient(loss, hidden):
    hidden = hidden.clone().requires_grad_(True)
    value = loss(hidden)
    (value * torch.linspace(0.5, 2, len(value))).sum().backward()
    return value.detach(), hidden.grad


def test_kl_equals_dense(case):
    head, clean, adapted, _ = case
    ours, our_gradient = gradient(lambda h: kl(clean, h, head), adapted)
    dense, dense_gradient = gradient(lambda h: dense_kl(head, clean, h), adapted)
    torch.testing.assert_close(ours, dense, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(our_gradient, dense_gradient, rtol=1e-5, atol=1e-5)


def test_evaluation_equals_each_alone(case):
    head, clean, adapted, targets = case
    entropies, kls = evaluate(adapted, targets, head, teacher_of(clean, head))
    torch.testing.assert_close(kls, kl(clean, adapted, head), rtol=1e-5, atol=1e-5)
    logits = dense_logits(head, adapted)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(entropies, expected, rtol=1e-6, atol=1e-6)
    assert evaluate(adapted, targets, head)[1] is None


def test_gradient_is_the_finite_difference(case):
    head, clean, adapted, _ = case
    direction = torch.randn_like(adapted)
    _, found = gradient(lambda h: kl(clean, h, head), adapted)
    weights, step = torch.linspace(0.5, 2, TOKENS).double(), 1e-6
    wide = Head(
        *(None if x is None else x.double() for x in (head.weight, head.bias)), head.softcap
    )

    def at(shift):
        moved = adapted.double() + shift * direction.double()
        return (dense_kl(wide, clean.double(), moved) * weights).sum()

    expected = (at(step) - at(-step)) / (2 * step)
    torch.testing.assert_close((found * direction).sum().double(), expected, rtol=1e-4, atol=1e-4)


def test_shapes_are_checked_here(case):
    """As `tests/__init__.py` has it: a wrong one is an error, not a number."""
    head, clean, adapted, _ = case
    with pytest.raises(TypeCheckError, match="clean|adapted"):
        kl(clean[1:], adapted, head)


def test_kl_is_a_divergence(case):
    head, clean, adapted, _ = case
    assert (kl(clean, adapted, head) > 0).all()
    torch.testing.assert_close(kl(clean, clean, head), torch.zeros(TOKENS), rtol=0, atol=1e-6)
    assert not torch.allclose(kl(clean, adapted, head), kl(adapted, clean, head), rtol=1e-2)


def test_no_gradient_reaches_the_clean_side(case):
    head, clean, adapted, _ = case
    clean.requires_grad_(True)
    kl(clean, adapted.requires_grad_(True), head).sum().backward()
    assert clean.grad is None and adapted.grad is not None


def test_no_chunk_is_larger_than_allowed(case, monkeypatch):
    head, clean, adapted, targets = case
    seen = []
    raw = Head.raw
    monkeypatch.setattr(
        Head, "raw", lambda self, hidden: seen.append(len(hidden)) or raw(self, hidden)
    )
    kl(clean, adapted.requires_grad_(True), head).sum().backward()
    evaluate(adapted.detach(), targets, head, teacher_of(clean, head))
    assert max(seen) * VOCABULARY * 4 <= losses.CHUNK_BYTES["cpu"]
    assert sum(seen) >= 4 * TOKENS


def test_low_precision_states_give_float32_losses(case):
    head, clean, adapted, _ = case
    adapted = adapted.bfloat16().requires_grad_(True)
    value = kl(clean.bfloat16(), adapted, head)
    value.sum().backward()
    assert value.dtype == torch.float32 and adapted.grad.dtype == torch.bfloat16
