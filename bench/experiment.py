"""`python -m bench experiment NAME ...`: run what is missing of the papers' experiments, draw them.

All experiments of a scale share one folder of records, so that none is run twice; beside them each
has a manifest, NAME.json, that says which records are its own and what each is there for.
"""

import dataclasses
import json
from functools import partial
from pathlib import Path
from statistics import fmean

from bench import locks, process
from bench.compare import raise_worst, run_one
from bench.errors import Fault, RunFailed
from bench.files import new_text, os_errors, set_aside
from bench.order import EVERY, Order
from bench.plans import expanded, jobs
from bench.pool import ADAPTER, Pool, run_seed
from bench.preflight import asks_the_hub, check_writable, quiet_libraries
from bench.progress import say
from bench.record import digest
from bench.times import Times
from bench.unchanged import check_unchanged, now


def experiment(names, scale, out=None, dry_run=False, fresh=False, every=EVERY):
    """Run what is missing of these experiments; with `dry_run` only list it.

    Raises `Usage` for an unknown name or a record that another version made, `RunFailed` when a
    run diverged or raised: the others are there all the same.
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
        report_where_needed(pool.folder)
        say(f"nothing to do: all {len(wanted)} runs of {', '.join(plans)} are in {pool.folder}")
        return None
    check_writable(pool.folder)
    if len(todo) < len(wanted):
        say(f"{len(wanted) - len(todo)} of {len(wanted)} runs are in {pool.folder} already")
    with locks.held(pool.folder, digest(list(wanted))[:16], "this experiment"):
        if fresh:
            pool = set_all_aside(pool, wanted)
        failed = run_all(list(todo.values()), plans, Runner(pool, every))
    report(pool.folder)
    raise_worst(failed)
    return None


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
    """Every job in turn, manifests kept up to date -> what failed: job -> (why, exit code)."""
    quiet_libraries(online=any(asks_the_hub(job.spec) for _, job in todo))
    from bench import stages

    pool, failed = runner.pool, {}
    steps = sorted({job.spec.steps for _, job in todo})
    times = Times(process.call(stages.estimated, todo[0][1], steps))
    say(f"{len(todo)} runs to do: {times.told([job for _, job in todo])}")
    write_manifests(plans, pool)
    for number, (name, job) in enumerate(todo, start=1):
        what = f"{name}: {job.role} seed {job.seed} {told(job.at)}".rstrip()
        took, reached = times.add(job, runner.run, job)
        write_manifests(plans, pool)
        if reached is None:
            failed[what] = (runner.reason, runner.code)
        else:
            reached = f"CE {reached:.4f}"
        following = [job for _, job in todo[number:]]
        left = f"; {times.told(following)} left" if following else ""
        say(f"[{number}/{len(todo)}] {what}: {reached or runner.reason}, {took:.0f} s{left}")
    return failed


def told(at):
    """What is varied, as `share=0.1 rank=4`."""
    return " ".join(f"{name}={value}" for name, value in at.items())


class Runner:
    """Runs jobs one after the other, each in a process of its own."""

    def __init__(self, pool, every=EVERY):
        self.pool, self.every = pool, every
        self.reason, self.code = "", 0
        """Why the last job gave nothing, and the exit code that this calls for."""

    def run(self, job):
        """One job -> its CE on the validation set in nats, or None where it did not finish."""
        try:
            if job.after:
                self._bring_weights(job.after)
            if job.measure:
                return self._measure(job)
            return self._train(job) if job.trains_own else self._run(job)
        except Fault as fault:
            self.reason, self.code = str(fault), fault.code
            return None

    def _bring_weights(self, first):
        """See that what a run trained is there, its adapter as PEFT has it."""
        from bench import stages

        name = self.pool.find(first)
        if not name:
            raise RunFailed(
                f"{first.role} seed {first.seed}, which it goes on from, did not finish"
            )
        run, folder = self.pool.runs[name], self.pool.folder / name
        if not folder.is_dir():
            raise RunFailed(f"{run.path}: a record without its weights; --fresh makes them again")
        if not (folder / ADAPTER).is_dir():
            process.call(stages.write_adapter, run, folder / ADAPTER)

    def _order(self, spec):
        return Order(spec, None, self.pool.folder, (), self.every)

    def _run(self, job):
        from bench import stages

        (label, spec), seed = self.pool.resolve(job), run_seed(job)
        order, cut = self._order(spec), partial(self.pool.cut, label, spec, seed)
        path, outcome = run_one(stages.run, order, label, seed, self.pool.key(job)[:16], cut)
        self.reason, self.code = outcome.why or outcome.end, outcome.code
        if outcome.end != "finished":
            return None
        return fmean(self.pool.add(path).end["ce_full"])

    def _train(self, job):
        """The training of an own SAE, which lies in the cache, with a copy of its record here."""
        from bench import stages

        own = dataclasses.replace(job.spec, sae="own")
        run = self.pool.add(process.call(stages.train_own, self._order(own), job.label))
        return fmean(run.end["ce_full"])

    def _measure(self, job):
        from bench import stages

        run = self.pool.runs[self.pool.find(job.after)]
        name = self.pool.measure_name(job)
        path = self.pool.folder / f"{name}.json"
        made = process.call(stages.measure, job.measure, run)
        set_aside(path)
        write_json(path, made)
        self.pool.add_measured(name)
        return made["ce"]


def write_manifests(plans, pool):
    """NAME.json for each experiment: its records, their roles and what is varied."""
    for name, plan in plans.items():
        runs = [
            {"record": pool.find(job), "role": job.role, "seed": job.seed, "at": job.at}
            for job in plan
        ]
        command = f"python -m bench experiment {name} --scale {pool.scale}"
        manifest = {"experiment": name, "scale": pool.scale, "command": command, "runs": runs}
        write_json(pool.folder / f"{name}.json", manifest)


def write_json(path, value):
    """A JSON file that is whole or not there."""
    new_text(path, json.dumps(value, indent=1) + "\n")


def report_where_needed(folder):
    """Draw the experiments again where what their table says is not what is said there."""
    from analysis import manifest
    from analysis.experiment_table import tables

    there = folder / "experiments.txt"
    told = there.read_text(encoding="utf-8") if there.exists() else ""
    now = tables(manifest.load(folder))  # in another order
    if sorted(told.split("\n\n")) != sorted(now.split("\n\n")):
        report(folder)


def report(folder):
    """Draw the experiments of a folder and print their table."""
    from analysis.report import report_experiments

    with os_errors(folder):
        table, paths = report_experiments(folder)
    say(f"\n{table}\n")
    say("written: " + ", ".join(map(str, paths)))
