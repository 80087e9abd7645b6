"""What a method costs: seconds, passes through the LM, tokens. Methods never see it.

The clock stands still unless the harness lets it run; time is accumulated, never subtracted.
Passes are counted by module hooks on the blocks and the final norm, so that no method can
forget to count. A backward pass is counted where the gradient arrives at a module's output.
"""

import statistics
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from bench import devices
from bench.distributed import group
from bench.io import clock


@dataclass
class Cost:
    """The meter's reading; `forwards` and `backwards` are passes through the final norm."""

    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    block_forwards: int = 0
    block_backwards: int = 0
    backward_tokens: int = 0
    """Tokens that went backward through the final norm."""
    tokens: int = 0
    """Tokens of the training batches that were fetched."""
    evaluation_seconds: float = 0.0
    """What evaluations have taken by now: on an accumulator of their own, not in `seconds`."""
    checkpoint_seconds: float = 0.0
    """What writing checkpoints has taken by now, not in `seconds` either."""
    suspended_seconds: float = 0.0
    """How long the machine was suspended within a timed part: the clock does not count that."""
    clock_jump_seconds: float = 0.0
    """How far the time of day was set within a timed part, which no duration depends on."""
    peak_bytes: int = 0
    """The most memory that was seen at the end of a timed part; what is looked at differs from
    device to device (`bench.devices.peak_bytes`)."""


SELDOM = ("suspended_seconds", "clock_jump_seconds")
"""Fields of `Cost` that a row has only where they are not 0."""
PASSES = ("forwards", "backwards", "block_forwards", "block_backwards", "backward_tokens")
"""Fields of `Cost` that several processes have a share of each."""
STEPS_KEPT = 10_000
"""Of how many steps at most the duration is remembered."""


def timed(function: Callable, *arguments: Any) -> tuple[Any, float]:
    """(result of the function, seconds it took), outside any run."""
    started = clock.read()
    result = function(*arguments)
    return result, clock.read().since(started).seconds


class Meter:
    """Counts what happens to `bridge` while `running()`; nothing else is counted."""

    def __init__(self, bridge: Module) -> None:
        self.cost = Cost()
        self.steps: deque[float] = deque(maxlen=STEPS_KEPT)
        """Seconds that each of the last steps took."""
        self._bridge = bridge
        self._device = bridge.unembed.weight.device
        self._on = False

    def reading(self) -> dict[str, Any]:
        """The cost so far, as a flat dict."""
        return {k: v for k, v in asdict(self.cost).items() if v or k not in SELDOM}

    def of_all(self) -> dict[str, Any]:
        """The cost so far of all processes of the run: passes are added up, and listed by rank;
        seconds are those of the first, memory the most that one of them used."""
        mine = self.reading()
        if group.world() == 1:
            return mine
        every = group.gathered(mine)
        peak = max(one["peak_bytes"] for one in every)
        summed = {name: sum(one[name] for one in every) for name in PASSES}
        by_rank = [{name: one[name] for name in (*PASSES, "peak_bytes")} for one in every]
        return {**every[0], **summed, "peak_bytes": peak, "by_rank": by_rank}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the meter."""
        return {"cost": asdict(self.cost), "steps": list(self.steps)}

    def take_up(self, states: list[dict[str, Any]]) -> None:
        """Go on from the `state` of every process that has worked on the run; what this meter has
        counted before does not count. Of another number of processes the first takes all."""
        known, first = len(states) == group.world(), group.is_first()
        state = states[group.rank()] if known else states[0]
        self.cost = Cost(**state["cost"])
        self.steps = deque(state["steps"], maxlen=STEPS_KEPT)
        if not known:
            for name in PASSES:
                setattr(self.cost, name, sum(s["cost"][name] for s in states) if first else 0)

    @contextmanager
    def running(self, a_step: bool = True) -> Iterator[None]:
        """The clock runs and passes count inside the block, which is a step or comes before."""
        self._on = True
        devices.forget_peak(self._device)
        try:
            with self._accumulating("seconds") as passed:
                yield
        finally:
            self._on = False
            peak = devices.peak_bytes(self._device)
            self.cost.peak_bytes = max(self.cost.peak_bytes, peak)
        if a_step:
            self.steps.append(passed[0].seconds)

    def evaluation(self) -> AbstractContextManager:
        """A context manager: the block's time goes to `evaluation_seconds`; no pass counts."""
        return self._accumulating("evaluation_seconds")

    def checkpoint(self) -> AbstractContextManager:
        """A context manager: the block's time goes to `checkpoint_seconds`."""
        return self._accumulating("checkpoint_seconds")

    @contextmanager
    def _accumulating(self, field: str) -> Iterator[list[clock.Reading]]:
        devices.synchronize(self._device)
        started, passed = clock.read(), list[clock.Reading]()
        try:
            yield passed
        finally:
            devices.synchronize(self._device)
            passed.append(clock.read().since(started))
            self.cost.suspended_seconds += passed[0].suspended
            self.cost.clock_jump_seconds += abs(passed[0].jump)
            setattr(self.cost, field, getattr(self.cost, field) + passed[0].seconds)

    def spread(self) -> dict[str, float]:
        """Seconds that a step took: the median and the 95th percentile; {} before there is one."""
        if not self.steps:
            return {}
        # `quantiles` wants two numbers: one step twice has the percentiles of one step.
        steps = self.steps if len(self.steps) > 1 else [*self.steps] * 2
        percentiles = statistics.quantiles(steps, n=100, method="inclusive")
        return {"p50": percentiles[49], "p95": percentiles[94]}

    @contextmanager
    def watching(self) -> Iterator["Meter"]:
        """Keep the counting hooks on the bridge for the length of a run."""
        handles = [self._bridge.ln_final.register_forward_hook(self.saw_pass)]
        handles += [block.register_forward_hook(self.saw_block) for block in self._bridge.blocks]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def fetched(self, tokens: Tensor) -> None:
        """A training batch [batch, seq] was handed to the method."""
        if self._on:
            self.cost.tokens += tokens.numel()

    def saw_pass(self, module: Module, inputs: tuple, output: Tensor) -> None:
        """The final norm's forward hook: a pass, and one back if a gradient arrives."""
        if self._on:
            self.cost.forwards += 1
            n_tokens = output.shape[:2].numel()
            self._when_gradient_arrives(output, backwards=1, backward_tokens=n_tokens)

    def saw_block(self, module: Module, inputs: tuple, output: Tensor | tuple) -> None:
        """A block's forward hook."""
        if self._on:
            self.cost.block_forwards += 1
            out = output[0] if isinstance(output, tuple) else output
            self._when_gradient_arrives(out, block_backwards=1)

    def _when_gradient_arrives(self, output: Tensor, **counts: int) -> None:
        if not (torch.is_grad_enabled() and output.requires_grad):
            return

        def count(gradient: Tensor) -> None:
            if self._on:
                for name, number in counts.items():
                    setattr(self.cost, name, getattr(self.cost, name) + number)

        output.register_hook(count)
