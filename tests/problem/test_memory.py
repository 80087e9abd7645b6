"""Memory that runs out: the same step in smaller parts, told in the record, or one line."""

import pytest
import torch

from bench.config import method
from bench.problem.batches import Batches
from bench.runs import worker
from tests.helpers import tiny
from tests.helpers.killed import runs_of
from tests.test_methods import curve, hold_out


def tight(problem, most):
    """The model has no room for more than `most` windows with a gradient."""

    def refuse(module, positional, keywords):
        hidden = positional[0] if positional else keywords["hidden_states"]
        if torch.is_grad_enabled() and len(hidden) > most:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    for block in problem.bridge.blocks:
        block.register_forward_pre_hook(refuse, with_kwargs=True)


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("label", ["lora", "e2e", "joint", "mse"])
def test_smaller_micro_batches_give_the_same_numbers(label, most):
    problem, entry = tiny.problem(batch_size=6), method.entry(label)
    whole, _ = curve(problem, hold_out(problem), entry)
    other = tiny.problem(batch_size=6)
    tight(other, most)
    parts, _ = curve(other, hold_out(other), entry)
    for one, two in zip(whole, parts, strict=True):
        assert two["ce"] == pytest.approx(one["ce"], abs=1e-6)
        assert two["tokens"] == one["tokens"]
    if label == "mse":  # no block after the site is run with a gradient: there was room
        assert other.micro.halvings == []
        return
    sizes = {3: [3], 1: [3, 1]}[most]
    assert other.micro.halvings == [{"micro_batch": n, "loss_changed": False} for n in sizes]
    assert parts[-1]["backwards"] == whole[-1]["backwards"] * 6 // most


def test_a_loss_of_the_whole_batch_says_that_it_changed():
    problem, entry = tiny.problem(batch_size=6), method.entry("e2e:loss=kl+mse")
    tight(problem, 3)
    curve(problem, hold_out(problem), entry)
    assert problem.micro.halvings == [{"micro_batch": 3, "loss_changed": True}]


def test_gradients_that_were_there_before_stay():
    problem = tiny.problem(batch_size=4)
    adapted = next(
        method.entry("e2e").module.train(
            problem, Batches(problem.train), method.entry("e2e").config
        )
    )
    weight, tokens, calls = adapted.saes[0].W_dec, tiny.windows(4), []

    def loss(seen):
        calls.append(len(seen.tokens))
        if len(seen.tokens) > 1 and len(calls) > 1 and calls[-2] != 4:
            raise MemoryError
        return seen.kl

    problem.backward(tokens, adapted)
    once = weight.grad.clone()
    problem.micro.size = 2
    problem.backward(tokens, adapted, loss)
    torch.testing.assert_close(weight.grad, 2 * once)


def test_what_a_pass_did_before_memory_ran_out_is_taken_back():
    problem = tiny.problem(batch_size=4)
    adapted = next(
        method.entry("lora:dropout=0.5").module.train(problem, Batches(problem.train), lora(0.5))
    )
    problem.micro.size = 2
    tokens, calls = tiny.windows(4), []

    def loss(seen):
        calls.append(len(seen.tokens))
        if len(calls) == 2:
            raise MemoryError
        return seen.kl

    torch.manual_seed(3)
    problem.backward(tokens, adapted, loss)
    once = [p.grad.clone() for p in adapted.state["adapters"].parameters()]
    assert calls == [2, 2, 1, 1, 1, 1]
    adapted.state["adapters"].zero_grad()
    torch.manual_seed(3)
    problem.backward(tokens, adapted)
    for before, parameter in zip(once, adapted.state["adapters"].parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, before)


def lora(dropout):
    return method.entry(f"lora:dropout={dropout}").config


def test_a_run_says_that_memory_ran_out(bench, tmp_path, monkeypatch):
    plant_memory(monkeypatch, most=1)
    code, out, err = bench("--methods", "e2e:loss=kl+mse", "--out", tmp_path)
    assert code == 0, err
    (run,) = runs_of(tmp_path, "e2e")
    assert run.end["memory"] == [{"micro_batch": 1, "loss_changed": True, "step": 0}]
    assert {row["micro_batch"] for row in run.rows} == {1}
    assert run.rows[-1]["backwards"] == 2 * 4  # what ran out did so in the warm-up, off the clock
    assert "micro-batch" in out


def test_one_window_that_is_too_much_ends_that_run_alone(bench, tmp_path, monkeypatch):
    plant_memory(monkeypatch, most=0)
    code, out, err = bench("--methods", "lora,ridge", "--out", tmp_path)
    assert code == 4 and "1 of the runs did not finish" in err and err.count("\n") == 1
    assert "out of memory with one window of 12 tokens at a time: lower --seq-len" in out
    assert runs_of(tmp_path, "lora")[0].end["memory"] == [{"micro_batch": 1}]
    assert runs_of(tmp_path, "ridge")[0].status == "finished"
    monkeypatch.undo()


def plant_memory(monkeypatch, most):
    load = worker.load

    def planted(*arguments, **settings):
        loaded = load(*arguments, **settings)
        tight(loaded, most)
        return loaded

    monkeypatch.setattr(worker, "load", planted)
