"""`python -m bench experiment NAME ...`: run what is missing of the papers' experiments, draw them.

All experiments of a scale share one folder of records, so that none is run twice; beside them each
has a manifest, NAME.json, that says which records are its own and what each is there for.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.config.request import EVERY
from bench.errors import Fault
from bench.experiments.plans import expanded, jobs
from bench.experiments.pool import Pool, own_sae
from bench.experiments.runner import Done, Runner
from bench.experiments.schedule import Item, spread, visible
from bench.experiments.times import Times
from bench.harness.checkpoint import check_unchanged
from bench.io import locks
from bench.io.console import say
from bench.io.files import new_json, set_aside
from bench.io.record import digest
from bench.runs import process
from bench.runs.done import now
from bench.runs.preflight import asks_the_hub, check_writable, set_environment


class Ended(NamedTuple):
    """What experiments came to."""

    folder: Path
    """Of their records."""
    failed: dict
    """Of the jobs that did not finish: name -> (how, exit code); for `compare.raise_worst`."""
    todo: int
    """How many jobs there were to do."""


def experiment(names, scale, out=None, dry_run=False, fresh=False, every=EVERY):
    """Run what is missing of these experiments -> `Ended`; with `dry_run` only list it -> None.

    Raises `Usage` for an unknown name or a record that another version made. A run that diverged
    or raised is in `Ended.failed`: the others are there all the same.
    """
    plans = {name: jobs(name, scale) for name in expanded(names, scale)}
    pool = Pool(Path(out or f"results/{scale}"), scale)
    wanted = {}
    for name, plan in plans.items():
        for job in (needed for planned in plan for needed in (planned.after, planned) if needed):
            wanted.setdefault(pool.key(job), (name, job))
    todo = {key: (name, job) for key, (name, job) in wanted.items() if not pool.find(job)}
    if fresh:
        todo = dict(wanted)
    if dry_run:
        return tell(wanted, todo)
    if not fresh:
        check_sources(pool, wanted)
    if not todo:
        say(f"nothing to do: all {len(wanted)} runs of {', '.join(plans)} are in {pool.folder}")
        return Ended(pool.folder, {}, todo=0)
    check_writable(pool.folder)
    if len(todo) < len(wanted):
        say(f"{len(wanted) - len(todo)} of {len(wanted)} runs are in {pool.folder} already")
    with locks.held(pool.folder, digest(list(wanted))[:16], "this experiment"):
        if fresh:
            pool = set_all_aside(pool, wanted)
        failed = run_all(list(todo.values()), plans, Runner(pool, every))
    return Ended(pool.folder, failed, len(todo))


def set_all_aside(pool, wanted):
    """Rename what these jobs have left out of the way, at once -> the pool without it."""
    for path in [path for _, job in wanted.values() for path in pool.left_by(job)]:
        set_aside(path)
    return Pool(pool.folder, pool.scale)


def tell(wanted, todo):
    """The list of runs, and what of it there is."""
    for key, (name, job) in wanted.items():
        what = f"{job.measure} of {job.label}" if job.measure else job.label
        state = "to do" if key in todo else "done"
        share = "" if job.spec.sae_share == 1 else f", SAE at {job.spec.sae_share:.0%}"
        then = f" after {job.after.label}" if job.after and not job.measure else ""
        say(
            f"{state:5}  {name}: {what}{then} seed {job.seed}, {job.spec.sae} SAE of "
            f"{job.spec.model} at {job.spec.site}{share}, {job.spec.steps:,} steps"
        )
    say(f"{len(wanted)} runs, {len(todo)} to do")


def check_sources(pool, wanted):
    """Raise `Usage` where a record that is there was made of another method's file, or others."""
    present = {}
    for _, job in wanted.values():
        run, method = pool.runs.get(pool.find(job)), job.label.partition(":")[0]
        if run and not job.measure:
            inputs = (method, job.spec.model, job.spec.text, job.spec.stream_tokens)
            if inputs not in present:
                present[inputs] = now(job.spec, method)
            check_unchanged(run.header, present[inputs], run.path)


def run_all(todo, plans, runner):
    """Every job, manifests kept up to date -> what failed: job -> (why, exit code).

    One after the other, or where several GPUs are visible one at a time on each.
    """
    set_environment(online=any(asks_the_hub(job.spec) for _, job in todo))
    from bench.experiments import stages

    steps = sorted({job.spec.steps for _, job in todo})
    times = Times(process.call(stages.estimated, todo[0][1], steps))
    devices = visible_to(todo)
    gpus = f" on {len(devices)} GPUs" if len(devices) > 1 else ""
    say(f"{len(todo)} runs to do{gpus}: {times.told([job for _, job in todo], len(devices))}")
    write_manifests(plans, runner.pool)
    tally = Tally(todo, plans, runner, times, len(devices))
    if len(devices) > 1:
        pool = runner.pool
        items = [
            Item((name, job), pool.key(job), job.after and pool.key(job.after), own_sae(job))
            for name, job in todo
        ]
        spread(items, devices, partial(run_pair, runner), tally.begun, tally.ended)
    else:
        for name, job in todo:
            took, done = times.add(job, runner.run, job)
            tally.add(name, job, done, took)
    return tally.failed


def run_pair(runner, pair):
    """The job of an (experiment, job) pair, in a process that watches over it."""
    return runner.run(pair[1])


def visible_to(todo):
    """The devices that these jobs are spread over: the visible GPUs, or nothing but the CPU."""
    from bench.experiments import stages

    if any(job.spec.device != "cuda" for _, job in todo):
        return ["cpu"]
    return visible(lambda: process.call(stages.count_gpus)) or ["none"]


class Tally:
    """What has been done of the jobs, told as they end."""

    def __init__(self, todo, plans, runner, times, at_once):
        self._left, self._all, self._plans = list(todo), len(todo), plans
        self._runner, self._times, self._at_once = runner, times, at_once
        self.failed = {}
        """Job -> (why, exit code)."""

    def begun(self, pair, device):
        """A job begins on one of several devices."""
        say(f"GPU {device}: {in_short(*pair)}")

    def ended(self, pair, device, seconds, task):
        """A job has ended on one of several devices -> whether it did what it should."""
        try:
            done = task.result()
        except Fault as fault:  # the process that watched over it
            done = Done(None, None, str(fault), fault.code)
        self._times.took(pair[1], seconds)
        self.add(*pair, done, seconds, f" on GPU {device}")
        return done.ce is not None

    def add(self, name, job, done, took, where=""):
        """A job has ended: manifests, and a line."""
        what = in_short(name, job)
        self._runner.take(done)
        write_manifests(self._plans, self._runner.pool)
        self._left.remove((name, job))
        if done.ce is None:
            self.failed[what] = (done.reason, done.code)
        reached = done.reason if done.ce is None else f"CE {done.ce:.4f}"
        left = [other for _, other in self._left]
        left = f"; {self._times.told(left, self._at_once)} left" if left else ""
        number = self._all - len(self._left)
        say(f"[{number}/{self._all}] {what}: {reached}, {took:.0f} s{where}{left}")


def in_short(name, job):
    """A job on one line."""
    return f"{name}: {job.role} seed {job.seed} {told(job.at)}".rstrip()


def told(at):
    """What is varied, as `share=0.1 rank=4`."""
    return " ".join(f"{name}={value}" for name, value in at.items())


def write_manifests(plans, pool):
    """NAME.json for each experiment: its records, their roles and what is varied."""
    for name, plan in plans.items():
        runs = [
            {"record": pool.find(job), "role": job.role, "seed": job.seed, "at": job.at}
            for job in plan
        ]
        command = f"python -m bench experiment {name} --scale {pool.scale}"
        manifest = {"experiment": name, "scale": pool.scale, "command": command, "runs": runs}
        new_json(pool.folder / f"{name}.json", manifest)
