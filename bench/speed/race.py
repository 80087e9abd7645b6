"""The two sides of `python -m bench speed`: our step and the plain one, each in its own process."""

import gc
from contextlib import ExitStack
from pathlib import Path

from bench.loading import peft_format
from bench.speed.probe import measured, probe
from bench.speed.side import Memory

RANGES = ("clean", "student", "losses", "backward", "Optimizer.step")
"""What a step is made of: the profiler ranges that the code itself opens."""


class Ours:
    """The method as the harness drives it: same generator, same meter, same batches."""

    def __init__(self, spec, folder, label, sets, steps):
        import torch

        from bench.config import method
        from bench.harness.meter import Meter
        from bench.loading import saes
        from bench.problem.batches import Batches
        from bench.runs import own_sae
        from bench.runs.loaded import load

        loaded = load(spec, Path(folder))
        self.spec, self.device = spec, loaded.bridge.unembed.weight.device
        self.model_type = loaded.model["type"]
        self.entry = method.entry(label, sets)
        folders = own_sae.folders(loaded, method.of_own_saes(spec))
        (self.sae_folder,) = folders
        self.problem = loaded.problem(saes.load_all(folders, loaded.widths, spec.device))
        self.meter, self.memory, self.steps = Meter(self.problem.bridge), Memory(), steps
        train = self.problem.train
        self.batches = Batches(train, spec.batch_size, steps, 0, self._fetched)
        torch.manual_seed(0)

    def prepare(self):
        """Make what is made once: the SAE, which is there by now, and the cache where it is on.

        Gives the seconds a token of filling that cache; None where nothing had to be filled.
        """
        from bench.harness.meter import timed
        from bench.problem.batches import Batches

        problem, n_tokens, seconds = self.problem, 0, 0.0
        if problem.clean_cache is None:
            return None
        for tokens in Batches(problem.train, problem.batch_size, self.steps, 0):
            before = problem.clean_cache.filled
            seconds += timed(problem.clean_cache.teacher, problem, tokens)[1]
            n_tokens += problem.clean_cache.filled - before
        return seconds / n_tokens if n_tokens else None

    def start(self):
        """Begin the run -> the SAE's folder, the config, and the adapters as PEFT names them."""
        from bench.harness.drive import drive

        self.memory.start()
        self.watch = ExitStack()
        self.watch.enter_context(self.meter.watching())
        self.run = drive(
            self.entry.module,
            self.problem,
            self.batches,
            self.entry.config,
            self.meter,
        )
        _, self.adapted = next(self.run)
        adapters = self.adapted.state.get("adapters", {})
        pairs = {peft_format.linear_name(n): (one.a, one.b) for n, one in adapters.items()}
        named = peft_format.tensors(pairs, self.model_type)
        weights = {name: value.detach().cpu().numpy().copy() for name, value in named.items()}
        return {"sae": str(self.sae_folder), "weights": weights}

    def step(self):
        """One step -> its tokens, loss, seconds (the harness's share included) and peak bytes."""
        _, measures = measured(self.device, next, self.run)
        loss = float(self.problem.last_loss)
        return {"tokens": self.tokens.cpu().numpy(), "loss": loss, **measures}

    def peak(self):
        """Peak memory above the loaded model, in bytes; None on an accelerator."""
        return self.memory.peak() if self.device.type == "cpu" else None

    def setting(self):
        """What its numbers depend on: device, number formats, windows at a time."""
        told = setting(self.device.type, self.spec.dtype)
        return {**told, "micro_batch": self.problem.micro.size}

    def provenance(self):
        """The record's fields on code, machine and moment, as this process sees them."""
        from bench.harness.provenance import provenance

        return provenance(self.spec)

    def probe(self, batch):
        """A fresh run on batches of so many windows -> `bench.speed.probe.probe` of its steps.

        Where memory runs out, the batch goes through in smaller parts: `micro_batch` says so.
        """
        from bench.harness.drive import drive
        from bench.harness.meter import Meter
        from bench.problem.batches import Batches
        from bench.problem.oom import MicroBatching

        problem = self.problem.of_run(MicroBatching(batch))
        problem.batch_size = batch
        meter = Meter(problem.bridge)

        def steps(n_steps):
            batches = Batches(problem.train, batch, n_steps, 0, meter.fetched)
            run = drive(self.entry.module, problem, batches, self.entry.config, meter)
            next(run)
            return lambda: next(run)

        release(self.device)
        with meter.watching():
            found = probe(steps, self.device, batch * problem.train.shape[1])
        return found and {"batch": batch, "micro_batch": problem.micro.size, **found}

    def profile(self):
        """Two more steps under the profiler -> share of each range; `rest` is everything else.

        None on an accelerator: what the CPU takes there is the asking, not the work.
        """
        if self.device.type != "cpu":
            return None
        from torch.profiler import ProfilerActivity, profile

        from bench.harness.meter import timed

        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            whole = sum(timed(next, self.run)[1] for _ in range(2))
        shares = dict.fromkeys(RANGES, 0.0)
        for event in profiler.key_averages():
            for name in RANGES:
                if event.key.partition("#")[0] == name:
                    shares[name] += event.cpu_time_total / 1e6 / whole
        return {**shares, "rest": 1 - sum(shares.values())}

    def floor(self):
        """Operations of one more step, those a second of this machine's product, and its peak."""
        from bench.speed.floor import nominal_peak, operations, product_rate

        return {
            "operations": operations(lambda: next(self.run)),
            "rate": product_rate(self.device, self.spec.dtype),
            "peak": nominal_peak(self.device),
        }

    def overhead(self):
        """Seconds that the harness takes for a step with the model taken out of it."""
        from bench.speed.floor import harness_seconds

        return harness_seconds(self.problem, self.adapted)

    def _fetched(self, tokens):
        self.tokens = tokens
        self.meter.fetched(tokens)


class Plain:
    """The same steps by `bench.speed.reference`, which imports nothing of this suite."""

    def __init__(self, folder, sae_folder, layer, settings, like=None):
        """`like` is the number format of our LM, by which TF32 is set for both sides."""
        import torch

        from bench import devices
        from bench.speed.reference import Reference

        self.device, self.dtype = torch.device(settings["device"]), settings["dtype"]
        devices.set_precision(self.device.type, like or self.dtype)
        self.reference = Reference(folder, sae_folder, layer, **settings)
        self._model(torch.zeros(1, 2, dtype=torch.long))  # every page of the weights
        self.memory = Memory()

    def start(self, weights):
        """Make adapters and optimizer; the adapters start at `weights`."""
        import torch

        self.memory.start()
        named = {name: torch.from_numpy(array) for name, array in weights.items()}
        self.reference.prepare(named)

    def step(self, tokens):
        """One step on these tokens -> its loss, seconds and peak bytes."""
        import torch

        tokens = torch.from_numpy(tokens).to(self.device)
        loss, measures = measured(self.device, self.reference.step, tokens)
        return {"loss": loss, **measures}

    def peak(self):
        """Peak memory above the loaded model, in bytes; None on an accelerator."""
        return self.memory.peak() if self.device.type == "cpu" else None

    def setting(self):
        """What its numbers depend on: device and number formats."""
        return setting(self.device.type, self.dtype)

    def probe(self, batch, seq_len):
        """Steps on so many windows of random tokens -> `bench.speed.probe.probe` of them."""
        import torch

        def steps(n_steps):
            vocabulary = self.reference.model.config.vocab_size
            tokens = torch.randint(vocabulary, (batch, seq_len)).to(self.device)
            return lambda: self.reference.step(tokens)

        release(self.device)
        found = probe(steps, self.device, batch * seq_len)
        return found and {"batch": batch, **found}

    def _model(self, tokens):
        import torch

        with torch.no_grad():
            self.reference.model(tokens.to(self.device))


def setting(device, dtype):
    """Device, number format of the LM, and whether float32 is multiplied in TF32."""
    from bench import devices

    return {"device": device, "dtype": dtype, "tf32": devices.float32_products(device) == "TF32"}


def release(device):
    """Hand what is free of an accelerator's memory back, so that none is lost to odd sizes."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
