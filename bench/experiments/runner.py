"""What a job does, whatever it is: a run, the training of an own SAE, a measurement.

`do` works in the command's own process; the functions below it are called in others.
"""

import dataclasses
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from bench.config import method
from bench.config.request import Outcome, Request
from bench.config.spec import Spec
from bench.errors import Fault, RunFailed
from bench.evals import measures
from bench.experiments.plans import Job
from bench.experiments.pool import ADAPTER, Pool
from bench.export import export
from bench.io import locks
from bench.io.files import new_folder, new_json, set_aside
from bench.io.record import Run, read
from bench.runs import estimate, own_sae, process, setup, worker
from bench.runs.compare import run_one
from bench.runs.loaded import Loaded, load
from bench.runs.preflight import check_inputs, check_model
from bench.runs.setup import Bench


class Done(NamedTuple):
    """What a job came to."""

    ce: float | None
    """Its CE on the validation set in nats; None where it did not finish."""
    reason: str = ""
    """Why there is no CE."""
    code: int = 0
    """The exit code that this calls for."""


def do(job: Job, pool: Pool, every: float) -> Done:
    """Do one job, with a checkpoint `every` so many seconds; it goes on from what is in the pool.

    Whatever it leaves lies in the pool's folder, which the pool has to read again.
    """
    try:
        if job.after:
            _bring_weights(job.after, pool)
        if job.measure:
            return _measure(job, pool)
        return _train(job, pool, every) if job.trains_own else _run(job, pool, every)
    except Fault as fault:
        return Done(None, str(fault), fault.code)


def _bring_weights(first: Job, pool: Pool) -> None:
    """See that what a run trained is there, its adapter as PEFT has it."""
    name = pool.find(first)
    if not name:
        raise RunFailed(f"{first.role} seed {first.seed}, which it goes on from, did not finish")
    run, folder = pool.runs[name], pool.folder / name
    if not folder.is_dir():
        raise RunFailed(f"{run.path}: a record without its weights; --fresh makes them again")
    with locks.held(folder.parent, f"{name}-{ADAPTER}", f"the adapter of {name}", wait=True):
        if not (folder / ADAPTER).is_dir():
            process.call(write_adapter, run, folder / ADAPTER)


def _run(job: Job, pool: Pool, every: float) -> Done:
    (label, spec), seed = pool.resolve(job), job.seed_of_run
    request, cut = Request(spec, pool.folder, every=every), partial(pool.cut, label, spec, seed)
    path, outcome = run_one(run, request, (label, seed), job.key[:16], cut)
    if outcome.end != "finished":
        return Done(None, outcome.why or outcome.end, outcome.code)
    return _finished(path)


def _train(job: Job, pool: Pool, every: float) -> Done:
    """The training of an own SAE, which lies in the cache, with a copy of its record here."""
    own = dataclasses.replace(job.spec, sae="own")
    request = Request(own, pool.folder, every=every)
    return _finished(process.call(train_own, request, job.label))


def _measure(job: Job, pool: Pool) -> Done:
    path = pool.folder / f"{pool.measure_name(job)}.json"
    made = process.call(measures.measure, job.measure, pool.runs[pool.find(job.after)])
    set_aside(path)
    new_json(path, made)
    return Done(made["ce"])


def _finished(path: Path) -> Done:
    return Done(fmean(read(path).end["ce_full"]))


def estimated(job: Job, steps: list[int]) -> dict[int, float]:
    """Rough seconds of a run on the spec of `job`, for each number of steps."""
    loaded = _load(job.spec, job.label, tell=True)
    changed = {n: dataclasses.replace(loaded.spec, steps=n) for n in steps}
    return {
        n: estimate.seconds(dataclasses.replace(loaded, spec=spec), 1, trains_sae=False)
        for n, spec in changed.items()
    }


def run(request: Request, label: str, seed: int) -> tuple[Path, Outcome]:
    """One run -> (its record's path, its `Outcome`)."""
    bench = _bench(request, label)
    worker.check_sae(bench, force=False)
    return worker.run_on(bench, request, label, seed)


def train_own(request: Request, label: str) -> Path:
    """The training of an own SAE -> the path of the copy of its record."""
    return request.out / _bench(request, label).sae_record.name


def write_adapter(run: Run, target: Path) -> None:
    """What a run of lora trained as a PEFT adapter in the folder `target`; nothing for others."""
    pairs = export.pairs_of(run)
    if pairs:
        with new_folder(target) as temporary:
            export.write_adapter(run, pairs, temporary)


def _bench(request: Request, label: str) -> Bench:
    """The `Bench` of a spec, with the record of its SAE's training beside the runs."""
    loaded, mse = _load(request.spec, label), method.of_own_saes(request.spec)
    bench = setup.bench(loaded, own_sae.folders(loaded, mse, request.every))
    worker.keep_sae_record(bench, request.out)
    return bench


def _load(spec: Spec, label: str, tell: bool = False) -> Loaded:
    """Model and text of a spec."""
    check_inputs(spec)
    folder, _ = check_model(spec, [label])
    return load(spec, folder, tell)
