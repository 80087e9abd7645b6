"""The fast path against the plain one: restart, splice, counts, micro-batches."""

import pytest
import torch

from bench.errors import Usage
from bench.harness.evaluate import predictions
from bench.problem.hooks import start_block
from bench.problem.losses import Head, evaluate
from bench.problem.objectives import flat
from bench.problem.problem import Adapted, copy_of
from methods import lora
from tests.helpers import tiny

TOKENS = tiny.windows(3, seed=5)


def adapters(problem, layers):
    """Adapters that change something: B is not zero."""
    torch.manual_seed(1)
    trained, hooks = lora.build(problem, lora.Config(rank=3, layers=layers))
    for adapter in trained.values():
        torch.nn.init.normal_(adapter.b, std=0.2)
    return Adapted(saes=problem.saes, hooks=hooks, state={"adapters": trained})


def full_pass(problem, adapted):
    """Final hidden states [tokens, d_model] of one whole pass, through the bridge's own hooks."""

    def splice(value, hook):
        out = value.clone()
        out[:, 1:] = adapted.saes[0](value[:, 1:])
        return out

    caught = []
    hooks = [(tiny.SITE, splice), *adapted.hooks]
    hooks.append(("ln_final.hook_out", lambda value, hook: caught.append(value)))
    with torch.no_grad():
        logits = problem.bridge.run_with_hooks(TOKENS, fwd_hooks=hooks, use_cache=False)
    return caught[0], logits


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("layers", ["after", "all", "0", "3"])
def test_restart_equals_the_full_pass(family, layers):
    problem = tiny.problem(family)
    adapted = adapters(problem, layers)
    with torch.no_grad():
        final = problem.final(problem.clean(TOKENS, adapted), adapted)
    expected, _ = full_pass(problem, adapted)
    torch.testing.assert_close(final, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_clean_pass_is_the_models_own(family):
    problem = tiny.problem(family)
    clean = problem.clean(TOKENS, Adapted(saes=problem.saes))
    plain = tiny.hf_model(family)
    with torch.no_grad():
        expected = plain(TOKENS).logits
    logits = problem.head.logits(flat(clean.final)).view_as(expected)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    rows, targets = predictions(problem, TOKENS)
    ours, _ = evaluate(flat(clean.final)[rows], targets, problem.head)
    dense = torch.nn.functional.cross_entropy(
        expected[:, 1:-1].flatten(0, 1), TOKENS[:, 2:].flatten(), reduction="none"
    )
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-5)


def test_a_bias_of_the_unembedding_is_kept():
    bridge = tiny.bridge("llama")
    assert Head.of(bridge).bias is None
    bridge.unembed.bias.data.fill_(0.5)
    assert Head.of(bridge).bias is not None


def test_the_first_position_is_not_spliced():
    problem = tiny.problem(spliced="not-first")
    everywhere = tiny.problem(spliced="all")
    bare = Adapted(saes=problem.saes)
    clean = problem.clean(TOKENS, bare)
    with torch.no_grad():
        kept, lost = problem.final(clean, bare), everywhere.final(clean, bare)
    torch.testing.assert_close(kept[:, 0], clean.final[:, 0])
    assert not torch.allclose(lost[:, 0], clean.final[:, 0], atol=1e-3)


def test_micro_batches_add_up():
    gradients = []
    for micro_batch in (4, 1):
        problem = tiny.problem(batch_size=4, micro_batch=micro_batch)
        saes = copy_of(problem.saes)
        problem.backward(tiny.windows(4), Adapted(saes=saes))
        gradients.append([parameter.grad for parameter in saes.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_known_reconstructions_are_not_computed_twice():
    problem = tiny.problem(batch_size=3)
    saes = copy_of(problem.saes)
    calls = []
    encode = saes[0].encode
    saes[0].encode = lambda x: calls.append(1) or encode(x)
    both = problem.backward(TOKENS, Adapted(saes=saes), lambda s: s.reconstructions[0].sum() + s.kl)
    alone = problem.backward(TOKENS, Adapted(saes=saes), lambda s: s.kl)
    assert len(calls) == 2
    assert both != alone


def test_a_clean_pass_with_hooks_on_is_refused():
    problem = tiny.problem()
    problem.points["blocks.2.hook_out"].add_hook(lambda value, hook: value)
    with pytest.raises(AssertionError, match=r"blocks\.2\.hook_out"):
        problem.sites(TOKENS)
    problem.bridge.reset_hooks()


def test_unknown_names_and_silent_hook_points():
    problem = tiny.problem("gpt2")
    with pytest.raises(Usage, match="did you mean 'blocks.1.hook_resid_post'"):
        problem.points["blocks.1.hook_resid_pos"]
    silent = Adapted(problem.saes, hooks=[("blocks.2.attn.qkv.hook_in", lambda value, hook: None)])
    with pytest.raises(RuntimeError, match="never fired: blocks.2.attn.qkv.hook_in"):
        problem.final(problem.clean(TOKENS, silent), silent)
    problem.points.assert_none_attached()


def test_where_a_pass_can_restart():
    assert start_block("blocks.1.hook_resid_post", 4) == 2
    assert start_block("blocks.1.hook_out", 4) == 2
    assert start_block("blocks.1.hook_resid_pre", 4) == 1
    assert start_block("blocks.2.mlp.out.hook_out", 4) == 2
    assert start_block("hook_embed", 4) == 0
    assert start_block("ln_final.hook_out", 4) == 4
