"""How a job of each kind is done: a run, the training of an own SAE, a measurement.

`do` works in the command's own process; from `estimated` on the functions run in others.
"""

from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from bench.config import method
from bench.config.method import MethodRequest
from bench.config.request import Outcome, Request
from bench.config.spec import Spec
from bench.errors import Fault, RunFailed
from bench.evals import measures
from bench.experiments.job import Job
from bench.experiments.pool import ADAPTER, Pool
from bench.export import artefacts, export
from bench.io import locks
from bench.io.files import new_folder, new_json, set_aside
from bench.io.record import Run, read
from bench.runs import estimate, own_sae, process, setup, worker
from bench.runs.compare import run_one
from bench.runs.loaded import Loaded, load
from bench.runs.preflight import check_inputs, check_model
from bench.runs.setup import Bench


class Done(NamedTuple):
    """How a job ended."""

    ce: float | None
    """Its CE on the validation set in nats; None where it did not finish."""
    reason: str = ""
    """Why there is no CE."""
    code: int = 0
    """The exit code for it."""


def do(job: Job, pool: Pool, every: float) -> Done:
    """Do one job, with a checkpoint `every` so many seconds, from the runs that the pool has.

    Its files lie in the pool's folder, which the pool has to read again.
    """
    try:
        first = job.after and _with_weights(job.after, pool)
        if first and job.measure:
            return _measure(job, pool, first)
        return _train(job, pool, every) if job.trains_own else _run(job, pool, every)
    except Fault as fault:
        return Done(None, str(fault), fault.code)


def _with_weights(first: Job, pool: Pool) -> Run:
    """The run that `first` left. Sees that its weights are there, an adapter in PEFT's format."""
    name = pool.find(first)
    if not name:
        raise RunFailed(f"{first.role} seed {first.seed}, which it goes on from, did not finish")
    run, folder = pool.runs[name], pool.folder / name
    if not folder.is_dir():
        raise RunFailed(f"{run.path}: a record without its weights; --fresh makes them again")
    with locks.held(folder.parent, f"{name}-{ADAPTER}", f"the adapter of {name}", wait=True):
        if not (folder / ADAPTER).is_dir():
            process.call(write_adapter, run, folder / ADAPTER)
    return run


def _run(job: Job, pool: Pool, every: float) -> Done:
    resolved, seed = pool.resolve(job), job.seed_of_run
    assert resolved  # `_with_weights` comes before
    asked, spec = resolved
    request, cut = Request(spec, pool.folder, every=every), partial(pool.cut, asked, spec, seed)
    path, outcome = run_one(run, request, (asked, seed), job.key[:16], cut)
    if path is None or outcome.end != "finished":
        return Done(None, outcome.why or outcome.end, outcome.code)
    return _finished(path)


def _train(job: Job, pool: Pool, every: float) -> Done:
    """Train an own SAE; it lies in the cache, with a copy of its record in the pool's folder."""
    assert job.trains_own
    request = Request(job.trains_own, pool.folder, every=every)
    return _finished(process.call(train_own, request, job.method))


def _measure(job: Job, pool: Pool, run: Run) -> Done:
    path = pool.folder / f"{pool.measure_name(job)}.json"
    measurement = process.call(measures.measure, job.measure, run)
    set_aside(path)
    new_json(path, measurement)
    return Done(measurement["ce"])


def _finished(path: Path) -> Done:
    return Done(fmean(artefacts.end_of(read(path))["ce_full"]))


def estimated(job: Job, steps: list[int]) -> dict[int, float]:
    """Rough seconds of a run on the spec of `job`, for each number of steps."""
    loaded = _load(job.spec, job.method, tell=True)
    return {n: estimate.seconds(loaded, [n], trains_sae=False) for n in steps}


def run(request: Request, asked: MethodRequest, seed: int) -> tuple[Path, Outcome]:
    """One run -> (its record's path, its `Outcome`)."""
    bench = _bench(request, asked)
    worker.check_sae(bench, force=False)
    return worker.run_on(bench, request, asked, seed)


def train_own(request: Request, asked: MethodRequest) -> Path:
    """Train an own SAE -> the path of the copy of its record."""
    record = _bench(request, asked).sae_record
    assert record  # every own SAE has one
    return request.out / record.name


def write_adapter(run: Run, target: Path) -> None:
    """Write the adapter of a run of lora to the folder `target`, for PEFT; no folder for others."""
    if pairs := export.pairs_of(run):
        with new_folder(target) as temporary:
            export.write_adapter(run, pairs, temporary)


def _bench(request: Request, asked: MethodRequest) -> Bench:
    """The `Bench` of a spec, with the record of its SAE's training beside the runs."""
    loaded, mse = _load(request.spec, asked), method.of_own_saes(request.spec)
    bench = setup.bench(loaded, own_sae.folders(loaded, mse, request.every))
    worker.keep_sae_record(bench, request.out)
    return bench


def _load(spec: Spec, asked: MethodRequest, tell: bool = False) -> Loaded:
    """Model and text of a spec."""
    check_inputs(spec)
    folder, _ = check_model(spec, [asked])
    return load(spec, folder, tell)
