"""Our adapters against PEFT: the same logits, gradients and CE, there and back again."""

import json

import pytest
import torch

from bench import peft_format
from bench.errors import Rejected, Usage
from bench.evaluate import measure
from bench.problem import Adapted
from bench.seen import flat
from methods import lora
from tests import tiny
from tests.test_lora import TOKENS, dense_head, spliced_logits
from tests.test_methods import hold_out

peft = pytest.importorskip("peft", reason="pip install 'splicebench[speed]'")
MODEL_TYPES = {"gemma3": "gemma3_text"}
RANK, ALPHA = 3, 6.0


def trained(problem, **settings):
    """Adapters away from their start -> (config, ModuleDict, hooks)."""
    config = lora.Config(rank=RANK, alpha=ALPHA, **settings)
    adapters, hooks = lora.build(problem, config)
    torch.manual_seed(2)
    for adapter in adapters.values():
        torch.nn.init.normal_(adapter.b, std=0.2)
    return config, adapters, hooks


def pairs_of(adapters):
    named = {peft_format.linear_name(name): one for name, one in adapters.items()}
    return {name: (one.a.detach(), one.b.detach()) for name, one in named.items()}


def save(folder, family, adapters):
    fields = {"rank": RANK, "alpha": ALPHA, "dropout": 0.0, "base_model": family}
    model_type = MODEL_TYPES.get(family, family)
    peft_format.save(folder, pairs_of(adapters), model_type, **fields)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("layers", ["all", "after"])
def test_peft_gives_the_same_logits_and_gradients(family, layers, tmp_path):
    problem = tiny.problem(family)
    _, adapters, hooks = trained(problem, layers=layers)
    save(tmp_path, family, adapters)
    plain = peft.PeftModel.from_pretrained(tiny.hf_model(family), tmp_path, is_trainable=True)
    adapted = Adapted(saes=problem.saes, hooks=hooks)
    final = problem.final(problem.clean(TOKENS, adapted), adapted)
    ours = dense_head(problem.head, flat(final))
    theirs = flat(spliced_logits(plain.base_model.model, family, problem.saes[0]))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
    (ours * upstream).sum().backward()
    (theirs * upstream).sum().backward()
    grads = {n.replace(".default", ""): p.grad for n, p in plain.named_parameters()}
    named = {peft_format.linear_name(name): one for name, one in adapters.items()}
    gradients = {name: (one.a.grad, one.b.grad) for name, one in named.items()}
    expected = peft_format.tensors(gradients, MODEL_TYPES.get(family, family))
    assert expected
    for name, gradient in expected.items():
        found = grads[name]
        if "c_attn.lora_B" in name:  # PEFT also has a gradient where ours is always zero
            blocks = torch.block_diag(*[torch.ones(tiny.WIDTH, RANK)] * 3)
            found = found * blocks
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_peft_gives_the_same_ce(family, tmp_path):
    problem = tiny.problem(family)
    held_out = hold_out(problem)
    _, adapters, hooks = trained(problem)
    save(tmp_path, family, adapters)
    ours = measure(problem, held_out, Adapted(saes=problem.saes, hooks=hooks)).ce
    plain = peft.PeftModel.from_pretrained(tiny.hf_model(family), tmp_path)
    sae, tokens = problem.saes[0], held_out.tokens
    with torch.no_grad():
        logits = spliced_logits(plain.base_model.model, family, sae, tokens)
    assert ours == pytest.approx(tiny.ce_by_document(logits, tokens, 2), rel=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("targets", [tuple(lora.LINEARS), ("q", "v"), ("o", "down")])
def test_there_and_back_again(family, targets, tmp_path):
    problem = tiny.problem(family)
    _, adapters, _ = trained(problem, targets=targets)
    save(tmp_path, family, adapters)
    back = peft_format.load(tmp_path)
    assert back.keys() == pairs_of(adapters).keys()
    config = lora.Config(rank=RANK, alpha=ALPHA, targets=targets, init=str(tmp_path))
    lora.check(config, problem.site_names, problem.n_blocks)
    again, _ = lora.build(problem, config)
    for name, adapter in adapters.items():
        assert torch.equal(again[name].a, adapter.a) and torch.equal(again[name].b, adapter.b)


def test_pefts_own_adapter_is_a_start(tmp_path):
    problem = tiny.problem("llama")
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=["q_proj", "down_proj"],
        layers_to_transform=[2, 3],
        init_lora_weights=False,
    )
    model = peft.get_peft_model(tiny.hf_model("llama"), config)
    model.save_pretrained(tmp_path)
    targets = ("q", "down")
    ours = lora.Config(rank=RANK, alpha=ALPHA, targets=targets, init=str(tmp_path))
    _, hooks = lora.build(problem, ours)
    adapted = Adapted(saes=problem.saes, hooks=hooks)
    with torch.no_grad():
        final = problem.final(problem.clean(TOKENS, adapted), adapted)
        theirs = spliced_logits(model.base_model.model, "llama", problem.saes[0])
    torch.testing.assert_close(dense_head(problem.head, flat(final)), flat(theirs))


def test_an_adapter_that_does_not_fit_is_refused(tmp_path):
    problem = tiny.problem("llama")
    _, adapters, _ = trained(problem)
    save(tmp_path, "llama", adapters)

    def built(**settings):
        config = lora.Config(**{"rank": RANK, "alpha": ALPHA, "init": str(tmp_path), **settings})
        lora.check(config, problem.site_names, problem.n_blocks)
        return lora.build(problem, config)

    built()
    with pytest.raises(ValueError, match="has rank 3: --set lora.rank=3"):
        built(rank=4)
    with pytest.raises(ValueError, match="has alpha 6: --set lora.alpha=6"):
        built(alpha=1.0)
    with pytest.raises(ValueError, match=r"adapts other maps: --set lora.targets=q\+k\+v"):
        built(targets=("q",))
    with pytest.raises(ValueError, match=r"adapts other layers: --set lora.layers=2\+3"):
        built(layers="all")
    (tmp_path / "o").mkdir()
    _, adapters, _ = trained(problem, targets=("q",))
    save(tmp_path / "o", "llama", adapters)
    with pytest.raises(ValueError, match="adapts other maps: --set lora.targets=q$"):
        built(init=str(tmp_path / "o"))
    with pytest.raises(Usage, match="no adapter at"):
        built(init=str(tmp_path / "nope"))
    config = json.loads((tmp_path / peft_format.CONFIG).read_text())
    (tmp_path / peft_format.CONFIG).write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(Rejected, match="expected plain LoRA, without biases, use_dora"):
        built()
