"""Attention with a softcap gives what the bridge's own gives, and holds less."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from bench.loading import attention, softcap
from bench.problem.problem import Adapted, copy_of
from tests.helpers import tiny

CAP, SCALE, SEQ = 2.0, 0.4, 50
TOKENS = tiny.windows(3, seed=5)


def heads(batch=2, dtype=torch.float64, seq=SEQ, device="cpu", d=8):
    """q, k and v of four heads, two of keys."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, n, seq, d) for n in (4, 2, 2)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [x.to(device, dtype).requires_grad_(True) for x in made]


def plainly(q, k, v, mask, scale, cap, window=None):
    """The same with every score at once."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    far = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    hidden = (far < 0) | (far >= (window or q.shape[2]))
    scores = cap * torch.tanh(q @ k.mT * scale / cap)
    scores = scores.masked_fill(hidden.to(q.device), -torch.inf)
    return torch.softmax(scores if mask is None else scores + mask, -1) @ v


def there_and_back(function, *settings, **how):
    qkv = heads(**how)
    z = function(*qkv, *settings)
    return [z.detach(), *torch.autograd.grad((z * z.detach().cos()).sum(), qkv)]


def padding():
    mask = torch.zeros(2, 1, SEQ, SEQ, dtype=torch.float64)
    mask[1, :, 20:, :20] = -torch.inf
    return mask


@pytest.mark.parametrize("rows", [7, 16, 64])
@pytest.mark.parametrize("window", [None, 1, 9, SEQ])
@pytest.mark.parametrize("mask", [None, padding()])
def test_output_and_gradients(mask, window, rows):
    ours = there_and_back(softcap.in_pieces, mask, SCALE, CAP, window, rows)
    expected = there_and_back(plainly, mask, SCALE, CAP, window)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_finite_differences():
    qkv = heads(batch=1, seq=6, d=3)
    assert torch.autograd.gradcheck(
        lambda *heads: softcap.in_pieces(*heads, None, SCALE, CAP, 4, 2), qkv
    )


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("mask", [None, padding()])
def test_flex_attention_is_asked_for_the_same(mask, window, monkeypatch):
    monkeypatch.setattr(softcap, "_flex", lambda: flex_attention)
    with torch.no_grad():
        ours = softcap.flexible(*(x.detach() for x in heads()), mask, SCALE, CAP, window)
        expected = plainly(*heads(), mask, SCALE, CAP, window)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_flex_attention_on_a_gpu(dtype, allowed):
    how = {"dtype": dtype, "seq": 1024, "device": "cuda", "d": 64}
    ours = there_and_back(softcap.flexible, None, SCALE, CAP, 300, **how)
    expected = there_and_back(plainly, None, SCALE, CAP, 300, **how)
    for one, other in zip(ours, expected, strict=True):
        assert (one - other).norm() < allowed * other.norm()


def largest(function, *settings):
    """The most numbers of a tensor that is kept for the backward pass."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()), lambda n: n):
        function(*heads(seq=256), None, SCALE, CAP)
    return max(sizes)


def test_no_score_is_kept():
    assert largest(softcap.in_pieces) == 2 * 4 * 256 * 8
    assert largest(plainly) == 2 * 4 * 256 * 256


def test_gemma2_in_whole():
    """Blocks with a window and without, against the bridge's own way, gradients too."""
    gradients = []
    for change in (lambda bridge: bridge, own_way):
        problem = tiny.problem("gemma2")
        assert {type(block.attn) for block in problem.bridge.blocks} == {attention.FusedCapped}
        change(problem.bridge)
        saes = copy_of(problem.saes)
        problem.backward(TOKENS, Adapted(saes=saes))
        gradients.append([problem.last_loss, *(p.grad for p in saes.parameters())])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def own_way(bridge):
    for block in bridge.blocks:
        block.attn.__class__ = attention.PositionEmbeddingsAttentionBridge
