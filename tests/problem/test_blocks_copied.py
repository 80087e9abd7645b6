"""`full` trains an own copy of the blocks: against the gradients of the plain model."""

import pytest
import torch

from bench.problem.hooks import HookPoints
from bench.problem.problem import Adapted
from methods import lora
from tests.helpers import tiny
from tests.test_lora import spliced_logits

TOKENS = tiny.windows(3, seed=5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_gradients_are_those_of_the_plain_model(family):
    problem = tiny.problem(family)
    blocks, weights = problem.copy_of_blocks()
    assert list(blocks) == [2, 3]
    adapted = Adapted(saes=problem.saes, blocks=blocks, state={"weights": weights})
    problem.backward(TOKENS, adapted)
    plain = tiny.hf_model(family)
    with torch.no_grad():
        clean = plain(TOKENS).logits[:, 1:].log_softmax(-1)
    ours = spliced_logits(plain, family, problem.saes[0], TOKENS)[:, 1:].log_softmax(-1)
    (clean.exp() * (clean - ours)).sum(-1).mean().backward()
    theirs = gradients(plain, family)
    assert weights.keys() == theirs.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight.grad, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


def gradients(plain, family):
    """The gradients of blocks 2 and 3, named as `Blocks.copies` names its weights."""
    found = {}
    layers = plain.transformer.h if family == "gpt2" else plain.model.layers
    for number in (2, 3):
        for name, weight in layers[number].named_parameters():
            name, gradient = f"{number}-{name}".replace(".", "-"), weight.grad
            if "c_attn" in name:
                for part, third in zip("qkv", gradient.chunk(3, dim=-1), strict=True):
                    # the bridge keeps its parts as a Linear does: [out, in]
                    found[name.replace("c_attn", part)] = third.T if third.ndim == 2 else third
            else:
                found[name.replace("attn-c_proj", "attn-o")] = gradient
    return found


def test_a_copy_can_be_made_after_a_pass():
    problem = tiny.problem()
    adapters, hooks = lora.build(problem, lora.Config())
    problem.backward(TOKENS, Adapted(saes=problem.saes, hooks=hooks, state={"a": adapters}))
    problem.copy_of_blocks()


def test_every_weight_of_a_block_counts_once():
    for family in tiny.FAMILIES:
        problem, plain = tiny.problem(family), tiny.hf_model(family)
        _, weights = problem.copy_of_blocks()
        layers = plain.transformer.h if family == "gpt2" else plain.model.layers
        expected = sum(p.numel() for layer in layers[2:] for p in layer.parameters())
        assert sum(p.numel() for p in weights.parameters()) == expected


def test_a_hook_inside_a_copied_block_goes_to_the_copy():
    problem = tiny.problem()
    blocks, _ = problem.copy_of_blocks()
    seen = []

    def zero(value, hook):
        seen.append(hook)
        return value * 0

    hooks = [("blocks.3.mlp.hook_out", zero)]
    adapted = Adapted(saes=problem.saes, hooks=hooks, blocks=blocks)
    with torch.no_grad():
        clean = problem.clean(TOKENS, adapted)
        ours = problem.final(clean, adapted)
        theirs = problem.final(clean, Adapted(saes=problem.saes, hooks=hooks))
    torch.testing.assert_close(ours, theirs)
    points = HookPoints(problem.bridge)
    assert seen[0] is not points["blocks.3.mlp.hook_out"] and seen[1] is not seen[0]
