"""Our adapters against PEFT: the same logits, gradients and CE, there and back again."""

import dataclasses
import json
import re

import pytest
import torch

from bench.errors import Rejected, Usage
from bench.harness.evaluate import measure
from bench.loading import peft_format
from bench.problem.objectives import flat
from bench.problem.problem import Adapted
from methods import lora
from tests.helpers import tiny
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
        of_peft = grads[name]
        if "c_attn.lora_B" in name:  # PEFT also has a gradient where ours is always zero
            blocks = torch.block_diag(*[torch.ones(tiny.WIDTH, RANK)] * 3)
            of_peft = of_peft * blocks
        scale = gradient.abs().max().item()
        torch.testing.assert_close(of_peft, gradient, rtol=1e-4, atol=1e-4 * scale)


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
    rewrite(tmp_path, use_dora=True)
    with pytest.raises(Rejected, match="use_dora is true, expected plain LoRA"):
        built()


def rewrite(folder, **changes):
    """Change fields of an adapter's config."""
    path = folder / peft_format.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def pefts_own(folder, **settings):
    """Save an adapter of PEFT's on the tiny Llama, as trained nowhere."""
    shape = {"r": 4, "lora_alpha": ALPHA, "target_modules": ["q_proj", "down_proj"]}
    torch.manual_seed(3)
    peft.get_peft_model(
        tiny.hf_model("llama"), peft.LoraConfig(**shape, **settings)
    ).save_pretrained(folder)


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal"])
def test_a_start_that_leaves_the_models_weights_alone_is_plain(start, tmp_path):
    pefts_own(tmp_path, init_lora_weights=start)
    theirs = peft.PeftModel.from_pretrained(tiny.hf_model("llama"), tmp_path)
    problem = tiny.problem("llama")
    config = lora.Config(
        rank=4, alpha=ALPHA, targets=("q", "down"), layers="all", init=str(tmp_path)
    )
    _, hooks = lora.build(problem, config)
    with torch.no_grad():
        with problem.points.attached(hooks):
            ours = problem.bridge(TOKENS, use_cache=False)
        torch.testing.assert_close(ours, theirs(TOKENS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora", "mica"])
def test_a_start_that_changes_the_models_weights_is_refused(start, tmp_path):
    pefts_own(tmp_path, init_lora_weights=start)
    line = f'init_lora_weights is "{start}", expected plain LoRA.*then writes true'
    with pytest.raises(Rejected, match=line):
        peft_format.load(tmp_path)


OFF = {
    "alora_invocation_tokens": [5],
    "arrow_config": {"top_k": 2},
    "corda_config": {"corda_method": "ipm"},
    "ensure_weight_tying": True,
    "eva_config": {"rho": 2.0},
    "exclude_modules": ["v_proj"],
    "kasa_config": {"beta": 1e-4},
    "layer_replication": [[0, 2], [1, 4]],
    "loftq_config": {"loftq_bits": 4},
    "lora_bias": True,
    "lora_ga_config": {"scale": "stable"},
    "megatron_config": {"hidden_size": 8},
    "modules_to_save": ["lm_head"],
    "monteclora_config": {"samples": 8},
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "trainable_token_indices": [1, 2],
    "use_bdlora": {"nblocks": 2},
    "use_dora": True,
    "use_qalora": True,
    "use_rslora": True,
    "velora_config": {"scale": 1.0},
}
"""Fields that somebody has looked at, with a value that makes an adapter more than B A."""


YOUNGER = {"monteclora_config", "kasa_config", "velora_config"}
"""Those that the oldest PEFT which is admitted does not have yet."""


def test_every_field_of_pefts_is_known():
    known = {*peft_format.READ, *peft_format.HARMLESS, *peft_format.PLAIN, *OFF}
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert not fields - known and known - fields in (set(), YOUNGER)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *OFF.items(),
        ("bias", "all"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "eva"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "corda"),
        ("layers_pattern", "encoder"),
        ("of_a_later_version", 0),
        ("of_a_later_version", "fast"),
    ],
)
def test_a_field_that_is_not_understood_is_refused_by_name(field, value, tmp_path):
    pefts_own(tmp_path)
    rewrite(tmp_path, of_a_later_version=None, another=False, third={}, peft_version="99")
    assert peft_format.load(tmp_path)
    rewrite(tmp_path, **{field: value})
    message = re.escape(f"{field} is {json.dumps(value)}, expected plain LoRA")
    with pytest.raises(Rejected, match=message):
        peft_format.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"peft_type": "ADALORA"}, "peft_type is 'ADALORA', expected 'LORA'"),
        ({"rank_pattern": {"attn.c_attn": 12}}, "for all, has rank_pattern and alpha_pattern"),
        ({"alpha_pattern": {"attn.c_attn": 18.0}}, "for all, has rank_pattern and alpha_pattern"),
        ({"target_modules": None}, "no target_modules"),
        ({"r": "many"}, "not the config of a LoRA adapter"),
    ],
)
def test_a_config_that_does_not_say_which_adapter_is_refused(changes, line, tmp_path):
    pefts_own(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(Rejected, match=line):
        peft_format.load(tmp_path)
