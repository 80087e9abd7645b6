"""LoRA over hook points against a dense W + scale * B A in the plain Hugging Face model."""

import pytest
import torch

from bench.problem.objectives import flat
from bench.problem.problem import Adapted
from methods import lora
from tests.helpers import tiny

TOKENS = tiny.windows(3, seed=5)
CASES = [(f, t) for f in tiny.FAMILIES for t in lora.LINEARS if (f, t) != ("gpt2", "gate")]


def dense_weight(model, family, block, target):
    """(the parameter, a view of it as [d_out, d_in]) of a linear map in the plain model."""
    if family != "gpt2":
        layer = model.model.layers[block]
        part = layer.self_attn if target in "qkvo" else layer.mlp
        weight = getattr(part, f"{target}_proj").weight
        return weight, lambda tensor: tensor
    layer = model.transformer.h[block]
    if target in "qkv":
        at = "qkv".index(target) * tiny.WIDTH
        return layer.attn.c_attn.weight, lambda tensor: tensor[:, at : at + tiny.WIDTH].T
    linear = {"o": layer.attn.c_proj, "up": layer.mlp.c_fc, "down": layer.mlp.c_proj}[target]
    return linear.weight, lambda tensor: tensor.T


def spliced_logits(model, family, sae, tokens=TOKENS, block=1):
    """Logits of the plain model with the SAE after a block, first position left out."""

    def splice(module, inputs, output):
        value = output[0] if isinstance(output, tuple) else output
        out = torch.cat([value[:, :1], sae(value[:, 1:])], dim=1)
        return (out, *output[1:]) if isinstance(output, tuple) else out

    layers = model.transformer.h if family == "gpt2" else model.model.layers
    handle = layers[block].register_forward_hook(splice)
    try:
        return model(tokens).logits
    finally:
        handle.remove()


def dense_head(head, hidden):
    logits = hidden @ head.weight.T
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


@pytest.mark.parametrize(("family", "target"), CASES)
def test_lora_equals_a_dense_update(family, target):
    problem, plain = tiny.problem(family), tiny.hf_model(family)
    config = lora.Config(rank=3, alpha=6.0, targets=(target,), layers="all")
    adapters, hooks = lora.build(problem, config)
    assert len(adapters) == tiny.BLOCKS
    torch.manual_seed(2)
    weights = []
    for block, adapter in enumerate(adapters.values()):
        torch.nn.init.normal_(adapter.b, std=0.2)
        weight, view = dense_weight(plain, family, block, target)
        with torch.no_grad():
            view(weight).add_(2.0 * adapter.b @ adapter.a)
        weights.append((weight, view))
    adapted = Adapted(saes=problem.saes, hooks=hooks)
    final = problem.final(problem.clean(TOKENS, adapted), adapted)
    ours = dense_head(problem.head, flat(final))
    dense = flat(spliced_logits(plain, family, problem.saes[0]))
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-5)

    upstream = torch.randn_like(dense)
    (ours * upstream).sum().backward()
    (dense * upstream).sum().backward()
    for adapter, (weight, view) in zip(adapters.values(), weights, strict=True):
        gradient = view(weight.grad)
        expected_a = 2.0 * adapter.b.T @ gradient
        expected_b = 2.0 * gradient @ adapter.a.T
        for found, expected in ((adapter.a.grad, expected_a), (adapter.b.grad, expected_b)):
            scale = expected.abs().max().item()
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * scale)


def test_layers():
    def layers(text, site="blocks.1.hook_resid_post"):
        return lora.chosen_layers(text, [site], 4)

    assert layers("after") == [2, 3]
    assert layers("after", "blocks.1.hook_resid_pre") == [1, 2, 3]
    assert layers("after", "blocks.1.hook_mlp_out") == [2, 3]
    assert layers("next") == [2]
    assert layers("all") == [0, 1, 2, 3]
    assert layers("3,0") == layers("3+0") == [0, 3]
    with pytest.raises(ValueError, match="the model has layers 0 to 3"):
        layers("4")
    with pytest.raises(ValueError, match="no block comes after"):
        layers("after", "blocks.3.hook_resid_post")


def test_a_family_without_gate():
    adapters, _ = lora.build(tiny.problem("gpt2"), lora.Config(layers="next"))
    assert len(adapters) == 6
    with pytest.raises(ValueError, match="targets gate matched no linear map"):
        lora.build(tiny.problem("gpt2"), lora.Config(targets=("gate",)))


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    adapter = lora.LowRank(8, 8, lora.Config(rank=2, dropout=0.5), "cpu")
    torch.nn.init.normal_(adapter.b)
    x = torch.randn(4, 8)
    assert not torch.equal(adapter(x), adapter(x))
    adapter.eval()
    assert torch.equal(adapter(x), adapter(x))
