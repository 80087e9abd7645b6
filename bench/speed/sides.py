"""The two sides of `python -m bench speed`: our step and the plain one.

Each side is in a process of its own (`bench.speed.remote`), and only they import this module.
"""

import gc
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy
import torch
from torch.profiler import ProfilerActivity, profile

from bench import devices
from bench.config import method
from bench.config.spec import Spec
from bench.errors import Unavailable, out_of_memory
from bench.harness.drive import drive
from bench.harness.meter import Meter, timed
from bench.harness.provenance import provenance
from bench.loading import peft_format, saes
from bench.problem.batches import Batches
from bench.problem.oom import MicroBatching
from bench.runs import own_sae
from bench.runs.loaded import load
from bench.speed.floor import harness_seconds, nominal_peak, operations, product_rate
from bench.speed.reference import Reference

RANGES = ("clean", "student", "losses", "backward", "Optimizer.step")
"""The parts of a step: the profiler ranges that the code itself opens."""
AFTER = 3
"""Steps of `Ours.fields`: two under the profiler, one to count its operations."""
PROBE_WARM_UP, PROBE_TIMED = 1, 3
"""Steps of a probe that are not timed, and that are."""


class Contestant:
    """What both sides can be asked of their device, number format and memory."""

    def __init__(self, device: torch.device, dtype: str) -> None:
        self.device, self.dtype = device, dtype
        self._resident = None

    def setting(self) -> dict[str, Any]:
        """What the numbers depend on; `tf32`: whether float32 is multiplied in TF32."""
        kind = self.device.type
        tf32 = devices.float32_products(kind) == "TF32"
        return {"device": kind, "dtype": self.dtype, "tf32": tf32}

    def peak(self) -> int | None:
        """Peak memory above the loaded model, in bytes; on a CPU under Linux only."""
        if self.device.type != "cpu" or self._resident is None:
            return None
        return 1024 * (_kib("VmHWM") - self._resident)

    def _watch_memory(self):
        """Have `peak` count from what is resident now, and forget earlier peaks."""
        gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._resident = _kib("VmRSS")
        except OSError:
            self._resident = None


class Ours(Contestant):
    """The method as the harness drives it: same generator, same meter, same batches."""

    def __init__(
        self, spec: Spec, folder: str, label: str, sets: Sequence[str], steps: int
    ) -> None:
        """`folder` is the model's; `steps` is how often `step` will be called."""
        loaded = load(spec, Path(folder))
        super().__init__(loaded.bridge.unembed.weight.device, spec.dtype)
        self.spec, self.steps, self.model_type = spec, steps + AFTER, loaded.model["type"]
        self.entry = method.entry(label, sets)
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
        """One step -> its tokens, loss, seconds (the harness's share included) and peak bytes."""
        _, measures = measured(self.device, next, self.run)
        loss = float(self.problem.last_loss)
        return {"tokens": self.tokens.cpu().numpy(), "loss": loss, **measures}

    def setting(self) -> dict[str, Any]:
        """As that of every side, and the windows that go through the model at a time."""
        return {**super().setting(), "micro_batch": self.problem.micro.size}

    def fields(self) -> dict[str, Any]:
        """The record's fields that our side alone can give, after `AFTER` more steps.

        Code, machine and moment; shares of a step; its operations, those a second of this
        machine's product, and the card's peak; the harness's seconds a step.
        """
        fields = provenance(self.spec)
        shares = self.profile()
        if shares:
            fields["share_of_step"] = shares
        fields["floor"] = {
            "operations": operations(lambda: next(self.run)),
            "rate": product_rate(self.device, self.dtype),
            "peak": nominal_peak(self.device),
        }
        fields["harness_seconds"] = harness_seconds(self.problem, self.adapted)
        return fields

    def probe(self, batch: int) -> dict[str, Any] | None:
        """A fresh run on batches of so many windows -> `rate` of its steps.

        Where memory runs out, the batch goes through in smaller parts: `micro_batch` says so.
        """
        problem, meter = self.problem.of_run(MicroBatching(batch)), Meter(self.problem.bridge)
        problem.batch_size = batch

        def steps(n_steps):
            batches = Batches(problem.train, batch, n_steps, 0, meter.fetched)
            run = self._drive(problem, batches, meter)
            next(run)
            return lambda: next(run)

        with meter.watching():
            found = rate(steps, self.device, batch * problem.train.shape[1])
        return found and {"batch": batch, "micro_batch": problem.micro.size, **found}

    def profile(self) -> dict[str, float] | None:
        """Two more steps under the profiler -> share of each range; `rest` is everything else.

        None on an accelerator: there the CPU's time is that of launching, not of the work.
        """
        if self.device.type != "cpu":
            return None
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            whole = sum(timed(next, self.run)[1] for _ in range(2))
        shares = dict.fromkeys(RANGES, 0.0)
        for event in profiler.key_averages():
            name = event.key.partition("#")[0]
            if name in shares:
                shares[name] += event.cpu_time_total / 1e6 / whole
        return {**shares, "rest": 1 - sum(shares.values())}

    def _drive(self, problem, batches, meter):
        return drive(self.entry.module, problem, batches, self.entry.config, meter)

    def _batches(self, *fetched):
        return Batches(self.problem.train, self.spec.batch_size, self.steps, 0, *fetched)

    def _fetched(self, tokens):
        self.tokens = tokens
        self.meter.fetched(tokens)


class Plain(Contestant):
    """The same steps by `bench.speed.reference`, which imports nothing of this suite."""

    def __init__(
        self, folder: str, sae_folder: str, layer: int, settings: dict[str, Any], like: str
    ) -> None:
        """`like` is the number format of our LM, by which TF32 is set for both sides."""
        super().__init__(torch.device(settings["device"]), settings["dtype"])
        devices.set_precision(self.device.type, like)
        self.reference = Reference(folder, sae_folder, layer, **settings)
        with torch.no_grad():  # every page of the weights
            self.reference.model(torch.zeros(1, 2, dtype=torch.long, device=self.device))

    def start(self, weights: dict[str, numpy.ndarray]) -> None:
        """Make adapters and optimizer; the adapters start at `weights`, by PEFT's names."""
        self._watch_memory()
        named = {name: torch.from_numpy(array) for name, array in weights.items()}
        self.reference.prepare(named)

    def step(self, tokens: numpy.ndarray) -> dict[str, float]:
        """One step on these tokens [batch, seq] -> its loss, seconds and peak bytes."""
        tokens = torch.from_numpy(tokens).to(self.device)
        loss, measures = measured(self.device, self.reference.step, tokens)
        return {"loss": loss, **measures}

    def probe(self, batch: int, seq_len: int) -> dict[str, Any] | None:
        """Steps on so many windows of random tokens -> `rate` of them."""

        def steps(n_steps):
            vocabulary = self.reference.model.config.vocab_size
            tokens = torch.randint(vocabulary, (batch, seq_len)).to(self.device)
            return lambda: self.reference.step(tokens)

        found = rate(steps, self.device, batch * seq_len)
        return found and {"batch": batch, **found}


def measured(device: torch.device, function: Callable, *arguments: Any) -> tuple[Any, dict]:
    """(result of the function, its seconds until the device has done it all, and peak bytes)."""

    def whole():
        result = function(*arguments)
        devices.synchronize(device)
        return result

    devices.synchronize(device)
    devices.forget_peak(device)
    result, seconds = timed(whole)
    return result, {"seconds": seconds, "device_peak_bytes": devices.peak_bytes(device)}


def rate(
    steps: Callable[[int], Callable[[], Any]], device: torch.device, n_tokens: int
) -> dict[str, Any] | None:
    """Tokens a second of steps on `n_tokens`, and the peak; None where memory runs out.

    `steps(number)` makes what a run of so many steps needs, and gives the step to be called.
    """
    release(device)
    try:
        step = steps(PROBE_WARM_UP + PROBE_TIMED)
        for _ in range(PROBE_WARM_UP):
            step()
        measures = [measured(device, step)[1] for _ in range(PROBE_TIMED)]
    except (MemoryError, RuntimeError, Unavailable) as error:
        if not out_of_memory(error):
            raise
        return None
    seconds = [one["seconds"] for one in measures]
    return {
        "tokens_per_second": n_tokens / median(seconds),
        "seconds": seconds,
        "device_peak_bytes": max(one["device_peak_bytes"] for one in measures),
    }


def release(device: torch.device) -> None:
    """Hand what is free of an accelerator's memory back, so that none is lost to odd sizes."""
    gc.collect()
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).empty_cache()


def _kib(field):
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1])
