"""`python -m bench experiment NAME ...`: run what is missing of the papers' experiments, draw them.

All experiments of a scale share one folder of records, so that none is run twice; beside them each
has a manifest, NAME.json, that says which records are its own and what each is there for.
"""

import dataclasses
import json
from pathlib import Path
from statistics import fmean

from bench import cache, export, method
from bench.compare import (
    check_inputs,
    check_model,
    check_sae,
    check_unchanged,
    check_writable,
    keep_sae_record,
    run_one,
    set_aside,
)
from bench.errors import Rejected, RunFailed
from bench.plans import expanded, jobs
from bench.pool import ADAPTER, Pool, run_seed
from bench.progress import say


def experiment(names, scale, out=None, dry_run=False, fresh=False):
    """Run what is missing of these experiments; with `dry_run` only list it.

    Raises `Usage` for an unknown name or a record that another version made, `RunFailed` when a
    run diverged or raised: the others are there all the same.
    """
    plans = {name: jobs(name, scale) for name in expanded(names, scale)}
    pool = Pool(Path(out or f"results/{scale}"), scale, fresh)
    wanted = {}
    for name, plan in plans.items():
        for job in (needed for planned in plan for needed in (planned.after, planned) if needed):
            wanted.setdefault(pool.key(job), (name, job))
    todo = {key: (name, job) for key, (name, job) in wanted.items() if not pool.find(job)}
    if dry_run:
        return tell(wanted, todo)
    check_sources(pool, wanted)
    if not todo:
        say(f"nothing to do: all {len(wanted)} runs of {', '.join(plans)} are in {pool.folder}")
        return None
    check_writable(pool.folder)
    if len(todo) < len(wanted):
        say(f"{len(wanted) - len(todo)} of {len(wanted)} runs are in {pool.folder} already")
    failed = run_all(list(todo.values()), plans, pool)
    report(pool.folder)
    if failed:
        raise RunFailed(f"{len(failed)} of the runs did not finish: {'; '.join(failed)}")
    return None


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
    """Raise `Usage` where a record that is there was made by another method's file or torch."""
    for _, job in wanted.values():
        name = pool.find(job)
        if name and not job.measure:
            check_unchanged(pool.runs[name], method.entry(job.label))


def run_all(todo, plans, pool):
    """Every job in turn, manifests kept up to date -> what failed, a line each."""
    from bench.estimate import Times

    runner, failed = Runner(pool), []
    times = Times(runner.load(todo[0][1].spec, todo[0][1].label))
    say(f"{len(todo)} runs to do: {times.told([job for _, job in todo])}")
    write_manifests(plans, pool)
    for number, (name, job) in enumerate(todo, start=1):
        what = f"{name}: {job.role} seed {job.seed} {told(job.at)}".rstrip()
        took, reached = times.add(job, runner.run, job)
        write_manifests(plans, pool)
        if reached is None:
            failed.append(f"{what} ({runner.reason})")
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
    """Runs jobs one after the other, keeping what the next one needs again."""

    def __init__(self, pool):
        self.pool = pool
        self.reason = ""
        """Why the last job gave nothing."""
        self._loaded = self._bench = None

    def run(self, job):
        """One job -> its CE on the validation set in nats, or None where it did not finish."""
        try:
            if job.after:
                self._bring_weights(job.after)
            if job.measure:
                return self._measure(job)
            return self._train(job) if job.trains_own else self._run(job)
        except (Rejected, RunFailed) as fault:
            self.reason = str(fault)
            return None

    def _bring_weights(self, first):
        """See that what a run trained is there, its adapter as PEFT has it."""
        name = self.pool.find(first)
        if not name:
            raise RunFailed(
                f"{first.role} seed {first.seed}, which it goes on from, did not finish"
            )
        run, folder = self.pool.runs[name], self.pool.folder / name
        if not folder.is_dir():
            raise RunFailed(f"{run.path}: a record without its weights; --fresh makes them again")
        pairs, target = export.pairs_of(run), folder / ADAPTER
        if pairs and not target.is_dir():
            with cache.new_folder(target) as temporary:
                export.write_adapter(run, pairs, temporary)

    def _run(self, job):
        label, spec = self.pool.resolve(job)
        bench, entry = self._bench_of(spec, label), method.entry(label)
        check_sae(bench, force=False)
        path, status, self.reason = run_one(bench, entry, run_seed(job), self.pool.folder)
        if status != "finished":
            return None
        return fmean(self.pool.add(path).end["ce_full"])

    def _train(self, job):
        """The training of an own SAE, which lies in the cache, with a copy of its record here."""
        bench = self._bench_of(dataclasses.replace(job.spec, sae="own"), job.label)
        run = self.pool.add(self.pool.folder / bench.sae_record.name)
        return fmean(run.end["ce_full"])

    def _measure(self, job):
        from bench import measures

        run = self.pool.runs[self.pool.find(job.after)]
        name = self.pool.measure_name(job)
        made = measures.measure(job.measure, run)
        path = self.pool.folder / f"{name}.json"
        set_aside(path)
        write_json(path, made)
        self.pool.add_measured(name)
        return made["ce"]

    def _bench_of(self, spec, label):
        """The `Bench` of a spec."""
        from bench import build

        if not self._bench or self._bench.spec != spec:
            mse = method.entry(f"mse:lr={spec.sae_lr}")
            self._bench = build.bench(self.load(spec, label), mse)
            keep_sae_record(self._bench, self.pool.folder)
        return self._bench

    def load(self, spec, label):
        """Model and text of a spec (`Loaded`), from disk again only where they differ."""
        from bench import loaded

        check_inputs(spec)
        folder, _ = check_model(spec, [method.entry(label)])
        before = self._loaded
        if before and loaded.fields_of(before.spec) == loaded.fields_of(spec):
            self._loaded = dataclasses.replace(before, spec=spec)
        else:
            self._loaded = self._bench = None  # two models at once may not fit
            self._loaded = loaded.load(spec, folder)
        return self._loaded


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
    text = json.dumps(value, indent=1) + "\n"
    cache.new_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def report(folder):
    """Draw the experiments of a folder and print their table."""
    from analysis.report import report_experiments

    table, paths = report_experiments(folder)
    say(f"\n{table}\n")
    say("written: " + ", ".join(map(str, paths)))
