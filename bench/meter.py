"""What a method costs: seconds, passes through the LM, tokens. Methods never see it.

The clock stands still unless the harness lets it run; time is accumulated, never subtracted.
Passes are counted by module hooks on the blocks and the final norm, so that no method can
forget to count. A backward pass is counted where the gradient arrives at a module's output.
"""

import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch


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


def timed(function, *arguments):
    """(what the function gives, seconds it took): for what is timed outside any run."""
    started = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - started


class Meter:
    """Counts what happens to `bridge` while `running()`; nothing else is counted."""

    def __init__(self, bridge):
        self.cost = Cost()
        self._bridge = bridge
        self._on = False

    def reading(self):
        """The cost so far, as a flat dict."""
        return asdict(self.cost)

    @contextmanager
    def running(self):
        """The clock runs and passes count inside the block."""
        self._on = True
        try:
            with self._accumulating("seconds"):
                yield
        finally:
            self._on = False

    def evaluation(self):
        """A context manager: the block's time goes to `evaluation_seconds`; no pass counts."""
        return self._accumulating("evaluation_seconds")

    @contextmanager
    def _accumulating(self, field):
        self._synchronize()
        started = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            elapsed = time.perf_counter() - started
            setattr(self.cost, field, getattr(self.cost, field) + elapsed)

    @contextmanager
    def watching(self):
        """Keep the counting hooks on the bridge for the length of a run."""
        handles = [self._bridge.ln_final.register_forward_hook(self.saw_pass)]
        handles += [block.register_forward_hook(self.saw_block) for block in self._bridge.blocks]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def fetched(self, tokens):
        """A training batch [batch, seq] was handed to the method."""
        if self._on:
            self.cost.tokens += tokens.numel()

    def saw_pass(self, module, inputs, output):
        """The final norm's forward hook: a pass, and one back if a gradient arrives."""
        if self._on:
            self.cost.forwards += 1
            n_tokens = output.shape[:2].numel()
            self._when_gradient_arrives(output, backwards=1, backward_tokens=n_tokens)

    def saw_block(self, module, inputs, output):
        """A block's forward hook."""
        if self._on:
            self.cost.block_forwards += 1
            out = output[0] if isinstance(output, tuple) else output
            self._when_gradient_arrives(out, block_backwards=1)

    def _when_gradient_arrives(self, output, **counts):
        if not (torch.is_grad_enabled() and output.requires_grad):
            return

        def count(gradient):
            if self._on:
                for name, number in counts.items():
                    setattr(self.cost, name, getattr(self.cost, name) + number)

        output.register_hook(count)

    def _synchronize(self):
        device = self._bridge.unembed.weight.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
