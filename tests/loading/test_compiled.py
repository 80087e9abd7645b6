"""Compiled blocks give what the others give, and one compiled block stands for all."""

import pytest
import torch
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from bench.errors import Usage
from bench.loading import compiled
from bench.problem.problem import Adapted
from tests.helpers import tiny

TOKENS = tiny.windows(3, seed=5)


def test_the_clean_pass_and_a_step(monkeypatch):
    """Without the code generator, which takes half a minute: what is generated is PyTorch's."""
    made, whole = [], tiny.problem()

    def keep(graph, inputs):
        made.append(graph)
        return graph.forward

    # What `compile_blocks` sets is taken back.
    monkeypatch.setattr(GeneralizedComponent, "__getattr__", GeneralizedComponent.__getattr__)
    forward = torch.compile(compiled.BlockBridge.forward, backend=keep, fullgraph=True)
    monkeypatch.setattr(compiled, "_compiled", lambda: forward)
    problem = tiny.problem()
    compiled.compile_blocks(problem.bridge)
    problem._blocks.prepare(TOKENS)  # which passes with a mask
    made.clear()
    adapted = [Adapted(saes=one.saes) for one in (problem, whole)]
    ours, expected = (
        one.clean(TOKENS, bare).final for one, bare in zip((problem, whole), adapted, strict=True)
    )
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert len(made) == 1
    ours, expected = (
        one.final(one.clean(TOKENS, bare), bare)
        for one, bare in zip((problem, whole), adapted, strict=True)
    )
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert len(made) == 1


def test_a_word_that_says_nothing(monkeypatch):
    assert not compiled.wanted()
    monkeypatch.setenv("SPLICEBENCH_COMPILE", "blocks")
    assert compiled.wanted()
    monkeypatch.setenv("SPLICEBENCH_COMPILE", "all")
    with pytest.raises(Usage, match="SPLICEBENCH_COMPILE"):
        compiled.wanted()
