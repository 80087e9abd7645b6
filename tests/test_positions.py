"""Which positions are spliced and scored: the rule `not-special`, in training and from disk."""

import pytest
import torch

from bench.config import method
from bench.errors import Rejected
from bench.harness.evaluate import clean_side
from bench.loading.text import Windows
from bench.problem.batches import Batches
from bench.problem.clean_cache import CleanCache
from bench.problem.objectives import flat
from bench.problem.problem import Adapted
from tests.helpers import tiny

SPECIAL = (1, 2)
TOKENS = tiny.windows(4, seed=5)
TOKENS[:, 0], TOKENS[0, 3:9], TOKENS[2, 7] = 1, 2, 2


def problem(**settings):
    rules = {"spliced": "not-special", "scored": "not-special", "special": SPECIAL}
    return tiny.problem(**{**rules, **settings})


def test_special_tokens_are_left_as_they_are():
    one = problem()
    rows = one.rows(TOKENS, "not-special")
    assert rows.tolist() == [i for i, t in enumerate(TOKENS.flatten()) if t not in SPECIAL]
    seen = {}
    point = one.points[tiny.SITE]
    clean = one.clean(TOKENS, Adapted(saes=one.saes))
    one.points.assert_none_attached()

    def keep(value, hook):
        seen["spliced"] = value

    one.final(clean, Adapted(saes=one.saes, hooks=[(tiny.SITE, keep)]))
    given, put = flat(clean.sites[0]), flat(seen["spliced"])
    torch.testing.assert_close(put[rows], one.saes[0](given[rows]))
    special = torch.isin(TOKENS.flatten(), torch.tensor(SPECIAL))
    assert torch.equal(put[special], given[special])
    assert not point.fwd_hooks


@pytest.mark.parametrize("label", ["lora", "e2e", "e2e:loss=kl+mse"])
def test_micro_batches_do_not_change_the_gradient(label):
    entry, gradients = method.entry(label), []
    for micro_batch in (4, 1):
        one = problem(batch_size=4, micro_batch=micro_batch)
        torch.manual_seed(0)
        adapted = next(entry.module.train(one, Batches(one.train), entry.config))
        loss = one.backward(TOKENS, adapted)
        modules = [m for m in adapted.state.values() if isinstance(m, torch.nn.Module)]
        found = [p.grad for m in modules for p in m.parameters() if p.grad is not None]
        gradients.append([loss, *found])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


def test_a_window_of_special_tokens_alone_adds_nothing():
    one = problem(batch_size=2, micro_batch=1)
    adapted = next(
        method.entry("e2e").module.train(one, Batches(one.train), method.entry("e2e").config)
    )
    only = torch.full((1, tiny.SEQ), 2)
    with_it = one.backward(torch.cat([TOKENS[1:2], only]), adapted)
    without = one.backward(TOKENS[1:2], adapted)
    assert with_it.item() == pytest.approx(without.item(), rel=1e-6) and with_it.isfinite()


def test_the_clean_cache_knows_the_rule(tmp_path):
    losses = []
    for folder in (None, tmp_path, tmp_path):
        one = problem(batch_size=4)
        one.clean_cache = folder and CleanCache(folder)
        adapted = next(
            method.entry("e2e").module.train(one, Batches(one.train), method.entry("e2e").config)
        )
        losses.append(one.backward(TOKENS, adapted).item())
    assert losses[1] == losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_a_document_without_a_scored_position_is_refused(tmp_path):
    held = Windows(torch.cat([TOKENS[1:2], torch.full((1, tiny.SEQ), 2)]), ["a", "b"])
    with pytest.raises(Rejected, match="document 'b': no scored position"):
        clean_side(problem(), held, tmp_path / "x.safetensors")


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("label", ["lora", "e2e", "e2e:loss=kl+mse", "mse"])
def test_a_bfloat16_model_with_float32_adapters(family, label):
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        one = tiny.problem(family, dtype=dtype)
        entry = method.entry(label)
        torch.manual_seed(0)
        batches = Batches(one.train, one.batch_size, 1, seed=0)
        _, adapted = entry.module.train(one, batches, entry.config)
        losses[dtype] = one.last_loss
        modules = [m for m in adapted.state.values() if isinstance(m, torch.nn.Module)]
        parameters = [p for m in modules for p in m.parameters()]
        assert parameters and all(p.dtype == torch.float32 for p in parameters)
    assert losses[torch.bfloat16].dtype == torch.float32
    torch.testing.assert_close(*losses.values(), rtol=0.1, atol=0.0)
