"""One job of an experiment, whatever it is: a run, the training of an own SAE, a measurement."""

import dataclasses
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from bench.config.request import EVERY, Request
from bench.config.spec import Spec
from bench.errors import Fault, RunFailed
from bench.experiments.pool import ADAPTER, run_seed
from bench.io import locks
from bench.io.files import new_json, set_aside
from bench.io.record import read
from bench.runs import process
from bench.runs.compare import run_one


class Done(NamedTuple):
    """What a job came to."""

    ce: float | None
    """Its CE on the validation set in nats; None where it did not finish."""
    path: Path | None = None
    """The record or measurement that it left."""
    reason: str = ""
    """Why there is no CE."""
    code: int = 0
    """The exit code that this calls for."""


class Runner:
    """Runs jobs, each in a process of its own, on what is in the pool and into its folder."""

    def __init__(self, pool, every=EVERY):
        self.pool, self.every = pool, every

    def run(self, job):
        """One job -> `Done`, which the pool does not know of yet."""
        try:
            if job.after:
                self._bring_weights(job.after)
            if job.measure:
                return self._measure(job)
            return self._train(job) if job.trains_own else self._run(job)
        except Fault as fault:
            return Done(None, None, str(fault), fault.code)

    def take(self, done):
        """Have the pool know of what a job left."""
        if done.path and done.path.suffix == ".json":
            self.pool.add_measured(done.path.stem)
        elif done.path:
            self.pool.add(done.path)

    def _bring_weights(self, first):
        """See that what a run trained is there, its adapter as PEFT has it."""
        from bench.experiments import stages

        name = self.pool.find(first)
        if not name:
            raise RunFailed(
                f"{first.role} seed {first.seed}, which it goes on from, did not finish"
            )
        run, folder = self.pool.runs[name], self.pool.folder / name
        if not folder.is_dir():
            raise RunFailed(f"{run.path}: a record without its weights; --fresh makes them again")
        with locks.held(folder.parent, f"{name}-{ADAPTER}", f"the adapter of {name}", wait=True):
            if not (folder / ADAPTER).is_dir():
                process.call(stages.write_adapter, run, folder / ADAPTER)

    def _request(self, spec: Spec) -> Request:
        return Request(spec=spec, out=self.pool.folder, every=self.every)

    def _run(self, job):
        from bench.experiments import stages

        (label, spec), seed = self.pool.resolve(job), run_seed(job)
        request, cut = self._request(spec), partial(self.pool.cut, label, spec, seed)
        path, outcome = run_one(stages.run, request, (label, seed), self.pool.key(job)[:16], cut)
        if outcome.end != "finished":
            return Done(None, None, outcome.why or outcome.end, outcome.code)
        return _finished(path)

    def _train(self, job):
        """The training of an own SAE, which lies in the cache, with a copy of its record here."""
        from bench.experiments import stages

        own = dataclasses.replace(job.spec, sae="own")
        return _finished(process.call(stages.train_own, self._request(own), job.label))

    def _measure(self, job):
        from bench.experiments import stages

        run = self.pool.runs[self.pool.find(job.after)]
        path = self.pool.folder / f"{self.pool.measure_name(job)}.json"
        made = process.call(stages.measure, job.measure, run)
        set_aside(path)
        new_json(path, made)
        return Done(made["ce"], path)


def _finished(path):
    """`Done` with the record at `path`."""
    return Done(fmean(read(path).end["ce_full"]), path)
