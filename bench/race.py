"""The two sides of `python -m bench speed`: our step and the plain one, each in its own process."""

from contextlib import ExitStack
from pathlib import Path

from bench import peft_format
from bench.side import Memory

RANGES = ("clean", "student", "losses", "backward", "Optimizer.step")
"""What a step is made of: the profiler ranges that the code itself opens."""


class Ours:
    """The method as the harness drives it: same generator, same meter, same batches."""

    def __init__(self, spec, folder, label, sets, steps):
        import torch

        from bench import build, method, saes
        from bench.batches import Batches
        from bench.loaded import load
        from bench.meter import Meter

        loaded = load(spec, Path(folder))
        self.model_type = loaded.model["type"]
        self.entry = method.entry(label, sets)
        folders = build.sae_folders(loaded, method.of_own_saes(spec))
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
        from bench.batches import Batches
        from bench.meter import timed

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
        from bench.drive import drive

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
        weights = {name: value.detach().numpy().copy() for name, value in named.items()}
        return {"sae": str(self.sae_folder), "weights": weights}

    def step(self):
        """One step -> its tokens, loss and seconds, the harness's share included."""
        from bench.meter import timed

        _, seconds = timed(next, self.run)
        loss = float(self.problem.last_loss)
        return {"tokens": self.tokens.numpy(), "loss": loss, "seconds": seconds}

    def peak(self):
        """Peak memory above the loaded model, in bytes."""
        return self.memory.peak()

    def profile(self):
        """Two more steps under the profiler -> share of each range; `rest` is everything else."""
        from torch.profiler import ProfilerActivity, profile

        from bench.meter import timed

        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            whole = sum(timed(next, self.run)[1] for _ in range(2))
        shares = dict.fromkeys(RANGES, 0.0)
        for event in profiler.key_averages():
            for name in RANGES:
                if event.key.partition("#")[0] == name:
                    shares[name] += event.cpu_time_total / 1e6 / whole
        return {**shares, "rest": 1 - sum(shares.values())}

    def floor(self):
        """Operations of one more step, and operations a second of this machine's product."""
        from bench.floor import operations, product_rate

        return {"operations": operations(lambda: next(self.run)), "rate": product_rate()}

    def overhead(self):
        """Seconds that the harness takes for a step with the model taken out of it."""
        from bench.floor import harness_seconds

        return harness_seconds(self.problem, self.adapted)

    def _fetched(self, tokens):
        self.tokens = tokens
        self.meter.fetched(tokens)


class Plain:
    """The same steps by `bench.reference`, which imports nothing of this suite."""

    def __init__(self, folder, sae_folder, layer, settings):
        import torch

        from bench.reference import Reference

        self.reference = Reference(folder, sae_folder, layer, **settings)
        self.reference.model(torch.zeros(1, 2, dtype=torch.long))  # every page of the weights
        self.memory = Memory()

    def start(self, weights):
        """Make adapters and optimizer; the adapters start at `weights`."""
        import torch

        self.memory.start()
        named = {name: torch.from_numpy(array) for name, array in weights.items()}
        self.reference.prepare(named)

    def step(self, tokens):
        """One step on these tokens -> its loss and seconds."""
        import torch

        from bench.meter import timed

        loss, seconds = timed(self.reference.step, torch.from_numpy(tokens))
        return {"loss": loss, "seconds": seconds}

    def peak(self):
        """Peak memory above the loaded model, in bytes."""
        return self.memory.peak()
