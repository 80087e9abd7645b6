"""`python -m bench compare`: every method on the same problem, a record each, then the table.

Every run has a process of its own; this one loads nothing and computes nothing.
"""

import signal
from dataclasses import asdict, replace
from pathlib import Path

from bench import done, locks, method, process
from bench.errors import Fault, Locked, Rejected, RunFailed, Unavailable, Usage
from bench.files import os_errors
from bench.interrupts import Interrupted
from bench.order import EVERY, Order, Outcome
from bench.preflight import check_inputs, check_model
from bench.progress import say
from bench.record import close_cut, digest


def compare(spec, labels, sets=(), seeds=(0,), out="runs", fresh=False, force=False, every=EVERY):
    """Run the methods on `spec`, once per seed; skip what is done; print the table and figure.

    Everything that can be wrong with the command is found before anything is loaded. Raises
    `Rejected` for an SAE that does not belong here, unless `force` is set, `Locked` where another
    process is at one of the runs, and `RunFailed` (`Unavailable`, `Rejected`) when a run diverged
    or raised: the other runs are there all the same.
    """
    method.check_names(labels, sets)
    if "none" not in labels:
        labels = ["none", *labels]
    check_inputs(spec, Path(out))
    wanted = [
        (label, seed)
        for seed in seeds
        for label in labels
        if label != "none" or seed == seeds[0]  # nothing in it depends on a seed
    ]
    order = Order(spec, None, Path(out), tuple(sets), every, fresh, force)
    if not fresh and (runs := done.all_of(order, wanted)):
        return tell_done(order.out, runs)
    entries = {label: method.entry(label, sets) for label in labels}
    folder, _ = check_model(spec, entries.values())
    order = replace(order, model_folder=folder)
    # All comparisons in a folder share their `none`.
    keys = {(k, n): lock_key(entries[k], spec, n) for k, n in wanted if k != "none"}
    locks.check_free(order.out, {k: "{} seed {}".format(*pair) for pair, k in keys.items()})
    with locks.held(order.out, digest(list(keys.values()))[:16], "this comparison"):
        names, failed = run_all(order, wanted, keys)
    report(order.out, names)
    raise_worst(failed)
    return None


def tell_done(out, runs):
    """Say that there is nothing to do, and the table of what there is.

    Where that is not the table that lies there, as after a kill, it is drawn anew.
    """
    from analysis.load import load
    from analysis.tables import table

    names = {run.name for run in runs}
    text, there = "\n\n".join(map(table, load(out, names))), out / "table.txt"
    if there.exists() and there.read_text(encoding="utf-8") == text:
        say(text)
    else:
        report(out, names)
    say(f"nothing to do: {len(runs)} of {len(runs)} runs were already done (--fresh runs again)")
    diverged = {run.name: ("diverged", RunFailed.code) for run in runs if run.status == "diverged"}
    raise_worst(diverged)


def lock_key(entry, spec, seed):
    """What the run of this method and seed is locked by: all that it is, its SAE aside."""
    return digest([entry.name, entry.settings, asdict(spec), seed])[:16]


def run_all(order, wanted, keys):
    """Every (label, seed) in turn -> (names of the runs, what failed: name -> (how, code))."""
    from bench import one_run

    runs = dict(zip(wanted, process.call(one_run.prepare, order, wanted), strict=True))
    todo = [pair for pair, (_, status) in runs.items() if not status]
    failed = {name: (status, RunFailed.code) for name, status in runs.values() if status}
    failed = {name: told for name, told in failed.items() if told[0] != "finished"}
    for number, pair in enumerate(todo, start=1):
        label, seed = pair
        path = order.out / f"{runs[pair][0]}.jsonl"
        key = keys.get(pair, path.stem)
        _, outcome = run_one(one_run.run, order, label, seed, key, lambda cut=path: [cut])
        say(f"[{number}/{len(todo)}] {label} seed {seed}: {outcome.end}, {path}")
        if outcome.end != "finished":
            say(f"    {outcome.why}")
            failed[path.stem] = (outcome.end, outcome.code)
    if len(todo) < len(runs):
        say(f"{len(runs) - len(todo)} of {len(runs)} runs were already done (--fresh runs again)")
    return {name for name, _ in runs.values()}, failed


def run_one(run, order, label, seed, key, cut):
    """`run(order, label, seed)` in a process of its own -> (record's path or None, `Outcome`).

    However that process ends; `cut()` are the records that it may have left without an end. Who
    else comes with these settings finds the lock `key`; the record has one of its own.
    """
    try:
        with locks.held(order.out, f"{key}-run", f"{label} seed {seed}", wait=label == "none"):
            path, outcome = process.call(run, order, label, seed)
    except process.Died as fault:
        for path in cut():
            close_cut(path, {"end": "error", "reason": str(fault)})
        return None, Outcome("error", str(fault), fault.code)
    except Fault as fault:
        return None, Outcome("error", str(fault), fault.code)
    if outcome.end == "interrupted":  # by a signal to that process alone
        raise Interrupted(signal.SIGTERM)
    return path, outcome


WORST = (Locked, Unavailable, Rejected, Usage, RunFailed)
"""Of several faults the first of these kinds gives the exit code."""


def raise_worst(failed):
    """Raise for the runs that failed: name -> (how, exit code)."""
    if not failed:
        return
    codes = {code for _, code in failed.values()}
    kind = next((kind for kind in WORST if kind.code in codes), RunFailed)
    told = ", ".join(f"{name} ({how})" for name, (how, _) in failed.items())
    raise kind(f"{len(failed)} of the runs did not finish: {told}")


def report(out, names):
    """Draw the figure of these records in `out` and print the table."""
    from analysis.report import report as analyse

    with os_errors(out):
        table, paths = analyse(out, names=names)
    say(f"\n{table}\n")
    say("written: " + ", ".join(map(str, paths)))
