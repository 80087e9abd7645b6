"""Our side of a race; only its own process imports this."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.config import method
from bench.config.method import MethodRequest
from bench.config.spec import Spec
from bench.harness.drive import drive
from bench.harness.meter import Meter, timed
from bench.harness.provenance import provenance
from bench.loading import peft_format, saes
from bench.problem import Adapted, Problem
from bench.problem.batches import Batches
from bench.problem.oom import MicroBatching
from bench.runs import own_sae
from bench.runs.loaded import load
from bench.speed.floor import harness_seconds, nominal_peak, operations, product_rate
from bench.speed.sides import Contestant, measured, rate

RANGES = ("clean", "student", "losses", "backward", "Optimizer.step")
"""The parts of a step: the profiler ranges that the code itself opens."""
KINDS = {
    "products": ("linear_pointwise", "aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product",),
    "softmax": ("aten::_softmax",),
}
"""Kinds of work -> words in the names of PyTorch's operations; those of a product in pieces, as
Gemma-2's attention is, are products."""
AFTER = 3
"""Steps of `Ours.fields`: two under the profiler, one to count its operations."""


class Ours(Contestant):
    """The method as the harness drives it: same generator, same meter, same batches."""

    def __init__(self, spec: Spec, folder: str, asked: MethodRequest, steps: int) -> None:
        """`folder` is the model's; `steps` is how often `step` will be called."""
        loaded = load(spec, Path(folder))
        super().__init__(loaded.bridge.unembed.weight.device, spec.dtype)
        self.spec, self.steps, self.model_type = spec, steps + AFTER, loaded.model["type"]
        self.entry = method.load(asked)
        folders = own_sae.folders(loaded, method.of_own_saes(spec))
        (self.sae_folder,) = folders
        self.problem = loaded.problem(saes.load_all(folders, loaded.widths, spec.device))
        self.meter = Meter(self.problem.bridge)
        self.batches = self._batches(self._fetched)
        torch.manual_seed(0)

    def prepare(self) -> float | None:
        """Fill the cache of the clean side -> seconds a token; None if nothing was to be filled.

        The SAE is there by now.
        """
        cache, n_tokens, seconds = self.problem.clean_cache, 0, 0.0
        if cache is None:
            return None
        for tokens in self._batches():
            before = cache.filled
            seconds += timed(cache.teacher, self.problem, tokens)[1]
            n_tokens += cache.filled - before
        return seconds / n_tokens if n_tokens else None

    def start(self) -> dict[str, Any]:
        """Begin the run -> the SAE's folder (`sae`) and the adapters (`weights`)."""
        self._watch_memory()
        self.watch = ExitStack()
        self.watch.enter_context(self.meter.watching())
        self.run = self._drive(self.problem, self.batches, self.meter)
        _, self.adapted = next(self.run)
        adapters = self.adapted.state.get("adapters", {})
        pairs = {peft_format.linear_name(n): (one.a, one.b) for n, one in adapters.items()}
        named = peft_format.tensors(pairs, self.model_type)
        weights = {name: value.detach().cpu().numpy().copy() for name, value in named.items()}
        return {"sae": str(self.sae_folder), "weights": weights}

    def step(self) -> dict[str, Any]:
        """One step -> its tokens, loss, seconds (the harness's share included) and peak bytes.

        `rate` is that of a matrix product just after it: a busy machine is slower at both.
        """
        _, measures = measured(self.device, next, self.run)
        loss = self.problem.last_loss
        assert loss is not None  # there was a step
        measures["rate"] = product_rate(self.device, self.dtype)
        return {"tokens": self.tokens.cpu().numpy(), "loss": float(loss), **measures}

    def setting(self) -> dict[str, Any]:
        """As that of every side, and the windows that go through the model at a time."""
        return {**super().setting(), "micro_batch": self.problem.micro.size}

    def provenance(self) -> dict[str, Any]:
        """The record's fields on code, machine and moment."""
        return provenance(self.spec)

    def fields(self) -> dict[str, Any]:
        """The record's fields that our side alone can give, after `AFTER` more steps.

        Shares of a step; its operations and the card's peak; the harness's seconds a step.
        """
        fields: dict[str, Any] = self.profile()
        n_operations = operations(lambda: next(self.run))
        fields["floor"] = {"operations": n_operations, "peak": nominal_peak(self.device)}
        fields["harness_seconds"] = harness_seconds(self.problem, self.adapted)
        return fields

    def probe(self, batch: int) -> dict[str, Any] | None:
        """A fresh run on batches of so many windows -> `rate` of its steps.

        Where memory runs out, the batch goes through in smaller parts: `micro_batch` says so.
        """
        problem, meter = self.problem.of_run(MicroBatching(batch)), Meter(self.problem.bridge)
        problem.batch_size = batch

        def steps(n_steps: int) -> Callable[[], object]:
            batches = Batches(problem.train, batch, n_steps, 0, meter.fetched)
            run = self._drive(problem, batches, meter)
            next(run)
            return lambda: next(run)

        with meter.watching():
            rates = rate(steps, self.device, batch * problem.train.shape[1])
        return rates and {"batch": batch, "micro_batch": problem.micro.size, **rates}

    def profile(self) -> dict[str, dict[str, float]]:
        """Two more steps under the profiler -> the shares of each range, and of each kind of work.

        Empty on an accelerator: there the CPU's time is that of launching, not of the work.
        """
        if self.device.type != "cpu":
            return {}
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            whole = sum(timed(next, self.run)[1] for _ in range(2))
        ranges, kinds = dict.fromkeys(RANGES, 0.0), dict.fromkeys(KINDS, 0.0)
        for event in profiler.key_averages():
            name = event.key.partition("#")[0]
            if name in ranges:
                ranges[name] += event.cpu_time_total / 1e6 / whole
            for kind, words in KINDS.items():
                if any(word in name for word in words):
                    kinds[kind] += event.self_cpu_time_total / 1e6 / whole
        each = {"share_of_step": ranges, "share_by_kind": kinds}
        return {name: {**of, "rest": 1 - sum(of.values())} for name, of in each.items()}

    def _drive(
        self, problem: Problem, batches: Batches, meter: Meter
    ) -> Iterator[tuple[int, Adapted]]:
        return drive(self.entry.module, problem, batches, self.entry.config, meter)

    def _batches(self, *fetched: Callable[[torch.Tensor], None]) -> Batches:
        return Batches(self.problem.train, self.spec.batch_size, self.steps, 0, *fetched)

    def _fetched(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens
        self.meter.fetched(tokens)
