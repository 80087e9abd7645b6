"""What the jobs of experiments and `downstream` do, each in a process of its own."""

import dataclasses

from bench.config import method
from bench.export import export
from bench.io.files import new_folder
from bench.runs import estimate, own_sae, setup, worker
from bench.runs.loaded import load
from bench.runs.preflight import check_inputs, check_model


def estimated(job, steps):
    """Rough seconds of a run on the spec of `job`, for each number of steps: a dict."""
    loaded = _load(job.spec, job.label, tell=True)
    changed = {n: dataclasses.replace(loaded.spec, steps=n) for n in steps}
    return {
        n: estimate.seconds(dataclasses.replace(loaded, spec=spec), 1, trains_sae=False)
        for n, spec in changed.items()
    }


def count_gpus():
    """How many GPUs there are here."""
    import torch

    return torch.cuda.device_count()


def run(request, label, seed):
    """One run -> (its record's path, its `Outcome`)."""
    bench = _bench(request, label)
    worker.check_sae(bench, force=False)
    return worker.run_on(bench, request, label, seed)


def train_own(request, label):
    """The training of an own SAE -> the path of the copy of its record."""
    return request.out / _bench(request, label).sae_record.name


def measure(name, run):
    """A measurement of a finished run (its record, as read), as a JSON object."""
    from bench.evals import measures

    return measures.measure(name, run)


def write_adapter(run, target):
    """What a run of lora trained as a PEFT adapter in the folder `target`; nothing for others."""
    pairs = export.pairs_of(run)
    if pairs:
        with new_folder(target) as temporary:
            export.write_adapter(run, pairs, temporary)


def core(run, to):
    """SAEBench's core numbers of the run at this path, written to the file `to`."""
    from bench.evals import saebench

    saebench.core(run, to)


def downstream(run, tasks, limit, to, include_path):
    """lm-eval's benchmarks around the run at this path; None as `tasks`: the usual ones."""
    from bench.evals.downstream import TASKS
    from bench.evals.downstream import downstream as evaluate

    evaluate(run, TASKS if tasks is None else tasks, limit, to, include_path)


def _bench(request, label):
    """The `Bench` of a spec, with the record of its SAE's training beside the runs."""
    loaded, mse = _load(request.spec, label), method.of_own_saes(request.spec)
    bench = setup.bench(loaded, own_sae.folders(loaded, mse, request.every))
    worker.keep_sae_record(bench, request.out)
    return bench


def _load(spec, label, tell=False):
    """Model and text of a spec (`Loaded`)."""
    check_inputs(spec)
    folder, _ = check_model(spec, [label])
    return load(spec, folder, tell)
