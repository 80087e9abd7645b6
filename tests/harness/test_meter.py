"""The clock accumulates and is off by default; the harness evaluates on a doubling schedule."""

import pytest
import torch

from bench.harness.meter import Meter
from bench.harness.run import checkpoints, doubling
from bench.io import clock as clock_module
from bench.problem.batches import Batches
from tests.helpers import tiny


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand."""
    now = [100.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])
    return now


def test_time_is_accumulated_where_it_runs_and_nowhere_else(clock):
    meter = Meter(tiny.bridge("llama"))
    clock[0] += 7
    for _ in range(2):
        with meter.running():
            clock[0] += 1.5
        with meter.evaluation():
            clock[0] += 4
    clock[0] += 7
    assert meter.cost.seconds == 3.0
    assert meter.cost.evaluation_seconds == 8.0


def test_a_pass_counts_only_while_the_clock_runs():
    bridge = tiny.bridge("llama")
    meter, tokens = Meter(bridge), tiny.windows(2)
    with meter.watching():
        bridge(tokens)
        with meter.running():
            bridge(tokens)
        with meter.evaluation():
            bridge(tokens)
    bridge(tokens)
    assert (meter.cost.forwards, meter.cost.block_forwards) == (1, tiny.BLOCKS)
    assert meter.cost.backwards == 0


def test_an_exception_stops_the_clock(clock):
    meter = Meter(tiny.bridge("llama"))
    with pytest.raises(RuntimeError), meter.running():
        clock[0] += 2
        raise RuntimeError
    clock[0] += 5
    assert meter.cost.seconds == 2.0


def test_the_schedule_doubles_and_ends_at_the_end():
    assert doubling(16) == [0, 1, 2, 3, 4, 6, 8, 11, 16]
    assert doubling(20) == [0, 1, 2, 3, 4, 6, 8, 11, 16, 20]
    assert doubling(0) == [0]
    assert doubling(1) == [0, 1]
    assert checkpoints((0.5, 0.75, 1.0), 20) == {10: [0.5], 15: [0.75], 20: [1.0]}
    assert checkpoints((0.1, 0.5, 1.0), 2) == {1: [0.1, 0.5], 2: [1.0]}


def test_batches_are_a_function_of_the_seed_and_the_cursor():
    windows = torch.arange(10)[:, None]

    def drawn(seed, cursor=0):
        batches = Batches(windows, batch_size=3, steps=7, seed=seed)
        batches.cursor = cursor
        return [batch.flatten().tolist() for batch in batches]

    assert drawn(0) == drawn(0) != drawn(1)
    assert drawn(0, cursor=4) == drawn(0)[4:]
    assert len(drawn(0)) == 7
    first_epoch = sum(drawn(0), [])[:10]
    assert sorted(first_epoch) == list(range(10))
