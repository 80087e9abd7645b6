"""`python -m bench experiment NAME ...`: run the missing runs of the papers' experiments.

All experiments of a scale share one folder of records, so that no run is made twice. The manifest
of each, NAME.json, names its records and the role of each. Several processes may share one folder:
each takes the jobs that no other one is at.
"""

import json
import math
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from itertools import chain
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from bench.config.request import EVERY
from bench.errors import Locked
from bench.experiments.job import Job
from bench.experiments.plans import expanded, jobs
from bench.experiments.pool import Pool
from bench.experiments.times import Times
from bench.harness.checkpoint import check_unchanged
from bench.io import clock, locks
from bench.io.console import say
from bench.io.files import new_json, set_aside
from bench.runs import process
from bench.runs.done import now
from bench.runs.preflight import asks_the_hub, check_writable, set_environment

Plans = dict[str, list[Job]]
"""Experiment -> its jobs."""
TICK = 1.0
"""Seconds between two looks at jobs that other processes are at."""
PATIENCE = 30.0
"""Seconds until a job is tried again that a comparison was at."""


class Ended(NamedTuple):
    """How experiments ended."""

    folder: Path
    """Of their records."""
    failed: dict[str, tuple[str, int]]
    """Of the jobs that did not finish: name -> (how, exit code); for `compare.raise_worst`."""
    todo: int
    """How many jobs there were to do."""


def experiment(
    names: Iterable[str],
    scale: str,
    out: str | Path | None = None,
    dry_run: bool = False,
    fresh: bool = False,
    every: float = EVERY,
    minutes: float = math.inf,
) -> Ended | None:
    """Run the missing runs of these experiments -> `Ended`; with `dry_run` only list them -> None.

    It ends before the first that is expected to end after so many `minutes`: a run that is broken
    off and resumed is not ranked on seconds.

    Raises `Usage` for an unknown name or a record that another version made, `Locked` for `fresh`
    while another process is at one of the jobs. A run that diverged or raised is in
    `Ended.failed` and stops no other.
    """
    plans = {name: jobs(name, scale) for name in expanded(names, scale)}
    wanted = needed(plans)
    pool = Pool(Path(out or f"results/{scale}"), scale)
    todo = [job for job in wanted if fresh or not pool.find(job)]
    if dry_run:
        list_jobs(wanted, todo)
        return None
    if not fresh:
        check_sources(pool, wanted)
    if not todo:
        if any(
            manifest_of(name, plan, pool) != _written(name, pool) for name, plan in plans.items()
        ):
            write_manifests(plans, pool)  # another process made the last of the runs
        say(f"nothing to do: all {len(wanted)} runs of {', '.join(plans)} are in {pool.folder}")
        return Ended(pool.folder, {}, todo=0)
    check_writable(pool.folder)
    if len(todo) < len(wanted):
        say(f"{len(wanted) - len(todo)} of {len(wanted)} runs are in {pool.folder} already")
    # Two calls with `fresh` would set aside what the other one has just made.
    alone = locks.held(pool.folder, "fresh", "--fresh") if fresh else nullcontext()
    with alone:
        if fresh:
            set_all_aside(pool, wanted)
        work = Work(todo, plans, pool, every)
        work.do_all(minutes)
    return Ended(pool.folder, work.failed, len(todo))


def needed(plans: Plans) -> list[Job]:
    """Each job once, and before it the one that it goes on from."""
    jobs_by_key: dict[str, Job] = {}
    for job in chain.from_iterable(plans.values()):
        for one in job.with_predecessors():
            jobs_by_key.setdefault(one.key, one)
    return list(jobs_by_key.values())


def set_all_aside(pool: Pool, wanted: Iterable[Job]) -> None:
    """Rename the files of these jobs out of the way, at once.

    Raises `Locked`, and renames nothing, while another process is at one of them.
    """
    with ExitStack() as locked:
        for job in wanted:
            locked.enter_context(pool.locked(job))
        for path in [path for job in wanted for path in pool.left_by(job)]:
            set_aside(path)
    pool.read()


def list_jobs(wanted: list[Job], todo: list[Job]) -> None:
    """Say which runs there are, and which of them are done."""
    missing = {job.key for job in todo}
    for job in wanted:
        what = f"{job.measure} of {job.label}" if job.measure else job.label
        state = "to do" if job.key in missing else "done"
        share = "" if job.spec.sae_share == 1 else f", SAE at {job.spec.sae_share:.0%}"
        then = f" after {job.after.label}" if job.after and not job.measure else ""
        steps = job.method.spec_of(job.spec).steps
        say(
            f"{state:5}  {job.experiment}: {what}{then} seed {job.seed}, {job.spec.sae} SAE of "
            f"{job.spec.model} at {job.spec.site}{share}, {steps:,} steps"
        )
    say(f"{len(wanted)} runs, {len(todo)} to do")


def check_sources(pool: Pool, wanted: Iterable[Job]) -> None:
    """Raise `Usage` for a record in the pool whose sources, such as the method's file, changed."""
    present = {}
    for job in wanted:
        name = pool.find(job)
        if name and not job.measure:
            run = pool.runs[name]
            inputs = (job.method.name, job.spec.model, job.spec.text, job.spec.stream_tokens)
            if inputs not in present:
                present[inputs] = now(job.spec, job.method.name)
            check_unchanged(run.header, present[inputs], run.path)


class Work:
    """The jobs that are left, and those that failed."""

    def __init__(self, todo: list[Job], plans: Plans, pool: Pool, every: float) -> None:
        set_environment(online=any(asks_the_hub(job.spec) for job in todo))
        from bench.experiments import runner  # imports torch, which takes seconds

        self._do, self._pool, self._plans, self._every = runner.do, pool, plans, every
        self._left, self._all = list(todo), len(todo)
        steps = sorted({job.method.spec_of(job.spec).steps for job in todo})
        self._times = Times(process.call(runner.estimated, todo[0], steps))
        for run in pool.runs.values():
            self._times.add_run(run)
        self._asked: dict[str, clock.Reading] = {}
        """Job -> when a comparison was last found at it."""
        self.failed: dict[str, tuple[str, int]] = {}
        """Job -> (why, exit code)."""
        say(f"{len(todo)} runs to do: {self._times.of(todo)}")

    def do_all(self, minutes: float = math.inf) -> None:
        """Try every job once, in order; wait for those that other processes are at.

        A job whose record a comparison holds costs a process to ask for: rarely, then.
        """
        write_manifests(self._plans, self._pool)
        waits, began = False, clock.read()
        while self._left:
            before = len(self._left)
            for job in [*self._left]:
                waiting = job.after and job.after.key in {other.key for other in self._left}
                asked = self._asked.get(job.key)
                if waiting or (asked and clock.read().since(asked).seconds <= PATIENCE):
                    continue
                if clock.read().since(began).seconds + self._times.expected(job) > 60 * minutes:
                    left = f"left with it: {self._times.of(self._left)}"
                    say(f"{job.in_short} would end after {minutes:g} minutes; {left}")
                    return write_manifests(self._plans, self._pool)
                self._try(job)
            if len(self._left) == before:
                if not waits:
                    say(f"{before} runs left, which other processes are at or go on from: waiting")
                waits = True
                Event().wait(TICK)
        write_manifests(self._plans, self._pool)  # with what other processes made last

    def _try(self, job: Job) -> None:
        """Do a job, unless another process is at it, or has done it meanwhile."""
        try:
            with self._pool.locked(job):
                self._pool.read()
                if self._pool.find(job):
                    return self._ended(job, "already done by another process")
                began = clock.read()
                done = self._do(job, self._pool, self._every)
                took = clock.read().since(began).seconds
        except Locked:
            return
        if done.code == Locked.code:  # by a comparison in this folder
            self._asked[job.key] = clock.read()
            return
        self._times.add(job, took)
        if done.ce is None:
            self.failed[job.in_short] = (done.reason, done.code)
        write_manifests(self._plans, self._pool)
        reached = done.reason if done.ce is None else f"CE {done.ce:.4f}"
        self._ended(job, f"{reached}, {took:.0f} s")

    def _ended(self, job: Job, how: str) -> None:
        self._left.remove(job)
        left = f"; {self._times.of(self._left)} left" if self._left else ""
        say(f"[{self._all - len(self._left)}/{self._all}] {job.in_short}: {how}{left}")


def write_manifests(plans: Plans, pool: Pool) -> None:
    """NAME.json for each experiment: its records, their roles and what is varied."""
    with locks.held(pool.folder, "manifests", "the manifests", wait=True):
        pool.read()
        for name, plan in plans.items():
            new_json(pool.folder / f"{name}.json", manifest_of(name, plan, pool))


def manifest_of(name: str, plan: Iterable[Job], pool: Pool) -> dict[str, Any]:
    """The manifest of an experiment with the records that are in the pool."""
    runs = [
        {"record": pool.find(job), "role": job.role, "seed": job.seed, "at": job.at} for job in plan
    ]
    command = f"python -m bench experiment {name} --scale {pool.scale}"
    return {"experiment": name, "scale": pool.scale, "command": command, "runs": runs}


def _written(name: str, pool: Pool) -> Any:
    try:
        return json.loads((pool.folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
