"""`python -m bench compare`: every method on the same problem, a record each.

Every run has a process of its own; this one loads nothing and computes nothing.
"""

import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.config.method import Entry, MethodRequest, load
from bench.config.request import Outcome, Request
from bench.config.spec import Spec
from bench.errors import Fault, Locked, Lost, Rejected, RunFailed, Unavailable, Usage
from bench.harness.signals import Interrupted
from bench.io import locks, ranks
from bench.io.console import say
from bench.io.record import close_cut, digest
from bench.runs import done, process, tracker
from bench.runs.preflight import asks_the_hub, check_inputs, set_environment

Pair = tuple[MethodRequest, int]
"""A run: its label and its seed."""
Call = Callable[..., Any]
"""`call(function, *arguments)` -> what the function gives, wherever it is run."""
Cut = Callable[[], list[Path]]


class Ended(NamedTuple):
    """What a comparison came to."""

    names: set[str]
    """Of its runs."""
    failed: dict[str, tuple[str, int]]
    """Of those that did not finish: name -> (how, exit code); for `raise_worst`."""
    todo: int
    """How many runs there were to do."""


def compare(
    request: Request,
    methods: list[MethodRequest],
    seeds: Sequence[int] = (0,),
    call: Call | None = None,
    prepare: Call | None = None,
) -> Ended:
    """Run the methods on the spec of `request`, once per seed; skip what is done -> `Ended`.

    `call(function, *arguments)` runs what needs the model; by default in a process of its own.
    `prepare` does so for the preparation, where that is run otherwise.

    Everything that can be wrong with the command is found before anything is loaded. Raises
    `Rejected` for an SAE that does not belong here, unless `force` is set, `Locked` where another
    process is at one of the runs. A run that diverged or raised is in `Ended.failed`.
    """
    spec, call = request.spec, call or process.call
    check_request(request)
    if all(asked.name != "none" for asked in methods):
        methods = [MethodRequest("none"), *methods]
    wanted = [
        (asked, seed)
        for seed in seeds
        for asked in methods
        if asked.name != "none" or seed == seeds[0]  # nothing in it depends on a seed
    ]
    if not request.fresh and (runs := done.all_of(request, wanted)):
        diverged = {r.name: ("diverged", RunFailed.code) for r in runs if r.status == "diverged"}
        return Ended({run.name for run in runs}, diverged, todo=0)
    set_environment(online=asks_the_hub(spec))  # before anything imports the libraries
    entries = {asked: load(asked) for asked in methods}
    # All comparisons in a folder share their `none`.
    keys = {(m, n): lock_key(entries[m], spec, n) for m, n in wanted if m.name != "none"}
    locks.check_free(request.out, {key: in_short(pair) for pair, key in keys.items()})
    with locks.held(request.out, digest(list(keys.values()))[:16], "this comparison"):
        return run_all(request, wanted, keys, call, prepare or call)


def in_short(pair: Pair) -> str:
    """A run as messages name it."""
    asked, seed = pair
    return f"{asked.label} seed {seed}"


def check_request(request: Request) -> None:
    """Raise what is wrong with the request, its spec's sources or the folder to write to."""
    if request.micro_batch is not None and request.micro_batch < 1:
        raise Usage(f"--micro-batch must be at least 1, got {request.micro_batch}")
    if request.tracker:
        tracker.check(request.tracker)
    if request.shard_model and ranks.world() == 1:
        raise Usage("--shard-model: one process has nothing to spread; start several by torchrun")
    check_inputs(request.spec, None if ranks.rank() else request.out)


def lock_key(entry: Entry, spec: Spec, seed: int) -> str:
    """What the run of this method and seed is locked by: all that it is, its SAE aside."""
    return digest([entry.name, entry.settings, asdict(entry.asked.spec_of(spec)), seed])[:16]


def run_all(
    request: Request, wanted: list[Pair], keys: dict[Pair, str], call: Call, prepare: Call
) -> Ended:
    """Every (method, seed) in turn -> `Ended`."""
    from bench.runs import worker

    folder, runs = prepare(worker.prepare, request, wanted)
    request, runs = replace(request, model_folder=folder), dict(zip(wanted, runs, strict=True))
    todo = [pair for pair, (_, status) in runs.items() if not status]
    ended = {name: status for name, status in runs.values() if status}
    failed = {k: (end, RunFailed.code) for k, end in ended.items() if end != "finished"}
    for number, pair in enumerate(todo, start=1):
        path = request.out / f"{runs[pair][0]}.jsonl"
        key = keys.get(pair, path.stem)
        cut: Cut = partial(list, [path])
        _, outcome = run_one(worker.run, request, pair, key, cut, call)
        say(f"[{number}/{len(todo)}] {in_short(pair)}: {outcome.end}, {path}")
        if outcome.end != "finished":
            say(f"    {outcome.why}")
            failed[path.stem] = (outcome.end, outcome.code)
        if request.tracker and path.exists():
            show(request.tracker, path, call)
    if len(todo) < len(runs):
        say(f"{len(runs) - len(todo)} of {len(runs)} runs were already done (--fresh runs again)")
    return Ended({name for name, _ in runs.values()}, failed, len(todo))


def show(name: str, path: Path, call: Call) -> None:
    """Send a record to a tracker; where that fails the record is what there is."""
    try:
        call(tracker.send, name, path)
    except Fault as fault:
        say(f"    not shown: {fault}")


def run_one(
    run: Call, request: Request, pair: Pair, key: str, cut: Cut, call: Call | None = None
) -> tuple[Path | None, Outcome]:
    """`run(request, *pair)` in a process of its own -> (record's path or None, `Outcome`).

    However that process ends; `cut()` are the records that it may have left without an end. Who
    else comes with these settings finds the lock `key`; the record has one of its own.
    """
    waits = pair[0].name == "none"
    try:
        with locks.held(request.out, f"{key}-run", in_short(pair), wait=waits):
            path, outcome = (call or process.call)(run, request, *pair)
    except process.Died as fault:
        for path in cut():
            close_cut(path, {"end": "error", "reason": str(fault)})
        return None, Outcome("error", str(fault), fault.code)
    except Lost:
        raise
    except Fault as fault:
        return None, Outcome("error", str(fault), fault.code)
    if outcome.end == "interrupted":  # by a signal to that process alone
        raise Interrupted(signal.SIGTERM)
    return path, outcome


WORST = (Locked, Unavailable, Rejected, Usage, RunFailed)
"""Of several faults the first of these kinds gives the exit code."""


def raise_worst(failed: dict[str, tuple[str, int]]) -> None:
    """Raise for the runs that failed: name -> (how, exit code)."""
    if not failed:
        return
    codes = {code for _, code in failed.values()}
    kind = next((kind for kind in WORST if kind.code in codes), RunFailed)
    listed = ", ".join(f"{name} ({how})" for name, (how, _) in failed.items())
    raise kind(f"{len(failed)} of the runs did not finish: {listed}")
