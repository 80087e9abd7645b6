"""The backward pass of causal attention on a CPU, against PyTorch's own."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from bench.loading import causal, cpu_kernels


@pytest.mark.parametrize("seq", [7, 16, 21])
def test_gradients_are_those_of_pytorch(seq, monkeypatch):
    """In pieces of 8 queries: less than one piece, whole ones, and a rest."""
    monkeypatch.setattr(causal, "ROWS", 8)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, seq, n, 4).transpose(1, 2).requires_grad_(True) for n in (6, 2, 2))
    upstream = torch.randn(2, 6, seq, 4)
    ours = causal.attend(q, k, v, 0.3)
    expected = scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(ours, expected)
    pairs = (torch.autograd.grad(z, (q, k, v), upstream) for z in (ours, expected))
    for gradient, reference in zip(*pairs, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-6)


def test_where_it_is_used(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "install", lambda: "oneDNN")
    q, k = torch.randn(1, 4, causal.LEAST, 2, requires_grad=True), torch.randn(1, 2, 1, 2)
    assert causal.pays(q, k)
    assert not causal.pays(q.detach(), k)  # no gradient: nothing to gain
    assert not causal.pays(q, q) and not causal.pays(q[:, :, 1:], k)
    assert not causal.pays(q.bfloat16(), k)
    with torch.no_grad():
        assert not causal.pays(q, k)
    monkeypatch.setattr(cpu_kernels, "install", lambda: "blas")
    assert not causal.pays(q, k)
