"""Fused attention and norms give what the bridge's own give, and step aside where they must."""

import pytest
import torch

from bench.loading import attention, norms
from bench.problem.problem import Adapted, copy_of
from tests.helpers import tiny

TOKENS = tiny.windows(3, seed=5)


def unfused(bridge):
    """The same bridge with TransformerLens' own attention and norms."""
    ours = (*attention.FUSED.values(), norms.FusedNorm)
    fused = [part for part in bridge.modules() if isinstance(part, ours)]
    assert fused
    for part in fused:
        theirs = (c for c in type(part).__mro__ if c.__module__.startswith("transformer_lens"))
        part.__class__ = next(theirs)
    return bridge


@pytest.mark.parametrize(
    ("family", "fused"),
    [
        ("llama", attention.FusedRotary),
        ("gpt2", attention.FusedJoint),
        ("gemma2", attention.FusedCapped),
    ],
)
def test_which_attention_is_fused(family, fused):
    kinds = {type(block.attn) for block in tiny.bridge(family).blocks}
    assert kinds == {fused}


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2"])
@pytest.mark.parametrize("padded", [False, True])
def test_output_with_and_without_a_mask(family, padded):
    mask = torch.ones_like(TOKENS)
    if padded:
        mask[0, -4:] = 0
    fused, plain = tiny.bridge(family), unfused(tiny.bridge(family))
    with torch.no_grad():
        ours, expected = (
            model(TOKENS, attention_mask=mask, use_cache=False) for model in (fused, plain)
        )
    rows = mask.bool()
    torch.testing.assert_close(ours[rows], expected[rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2"])
def test_gradients(family):
    gradients = []
    for change in (lambda bridge: bridge, unfused):
        problem = tiny.problem(family)
        change(problem.bridge)
        saes = copy_of(problem.saes)
        problem.backward(TOKENS, Adapted(saes=saes))
        gradients.append([parameter.grad for parameter in saes.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_hook_on_the_pattern_sees_it_and_can_change_it(family):
    bridge, seen = tiny.bridge(family), []
    with torch.no_grad():
        before = bridge(TOKENS, use_cache=False)
        name = "blocks.2.attn.hook_pattern"
        looked = bridge.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda p, hook: seen.append(p))])
        zeroed = bridge.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda p, hook: p * 0)])
    assert seen[0].shape == (len(TOKENS), 4, tiny.SEQ, tiny.SEQ)
    torch.testing.assert_close(looked, before, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(zeroed, before, atol=1e-2)


@pytest.mark.parametrize("point", ["hook_scale", "hook_normalized"])
def test_a_hook_inside_a_norm_sees_and_changes_it(point):
    bridge = tiny.bridge("llama")
    name = f"blocks.2.ln1.{point}"
    with torch.no_grad():
        before = bridge(TOKENS)
        _, cache = bridge.run_with_cache(TOKENS)
        halved = bridge.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda v, hook: v / 2)])
    assert name in cache and not torch.allclose(halved, before, atol=1e-2)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_are_those_of_transformers(family, dtype):
    """Exact where they are left to transformers; weights that are trained get their gradient."""
    torch.manual_seed(0)
    model = tiny.bridge(family)  # kept: TransformerLens' hooks on a norm hold its attention weakly
    norm = model.blocks[0].ln1.to(dtype)
    x = torch.randn(2, 5, norm.weight.numel(), dtype=dtype)
    expected = norm.original_component(x)
    assert isinstance(norm, norms.FusedNorm)
    close = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(norm(x), expected, **close)
    norm.original_component.weight.requires_grad_(True)
    norm(x).sum().backward()
    assert norm.original_component.weight.grad is not None


def test_an_output_that_moves_is_refused(monkeypatch, capsys):
    def wrong(q, k, v, mask, scale=None):
        return torch.zeros_like(q).transpose(1, 2).flatten(2)

    monkeypatch.setattr(attention, "_attend", wrong)
    bridge = tiny.bridge("llama")
    assert "not fused: the output moved" in capsys.readouterr().out
    assert not isinstance(bridge.blocks[0].attn, attention.FusedRotary)


def test_another_version_of_transformer_lens_is_left_alone(monkeypatch, capsys):
    monkeypatch.setattr(attention, "version", lambda name: "3.10.0")
    bridge = tiny.bridge("llama")
    assert "written for TransformerLens 3.9" in capsys.readouterr().out
    assert not isinstance(bridge.blocks[0].attn, attention.FusedRotary)
