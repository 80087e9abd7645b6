"""An experiment -> the part of it that may be drawn, and the words over its figure.

Left out are runs that are missing, unfinished, of random weights or without their numbers; where
seconds are drawn, resumed runs as well.
"""

import dataclasses
from pathlib import PurePath

from analysis.claims.evidence import ends, spliced, unsound
from analysis.records.comparison import clock
from analysis.stats.gap import difference, units
from analysis.stats.speedup import resumed, sae_cost

SEVERAL_CLOCKS = "timed on several machines, devices\nor numbers of threads: not compared"
UNKNOWN_COST = "what the SAE has cost in seconds\nis not known: not drawn"


def finished(experiment):
    """The experiment with only the entries that may be drawn."""
    entries = [entry for entry in experiment.entries if not _wrong(entry)]
    return dataclasses.replace(experiment, entries=entries)


def _wrong(entry):
    if entry.run:
        return unsound(entry.run)
    return _header(entry).get("weights") == "random" or not entry.measure.get("values")


def timed(experiment):
    """(the experiment without its resumed runs, why no seconds of it are drawn or "").

    A run that starts from an SAE whose own training was resumed counts as resumed.
    """
    runs = [entry.run for entry in experiment.entries if entry.run]
    broken = {run.name for run in runs if resumed(run)}
    kept = [
        entry
        for entry in experiment.entries
        if entry.run and broken.isdisjoint({entry.run.name, entry.run.header["sae"].get("run")})
    ]
    return dataclasses.replace(experiment, entries=kept), _no_seconds([e.run for e in kept])


def _no_seconds(runs):
    if not runs:
        return "no run that was timed in one go"
    return SEVERAL_CLOCKS if len({clock(run) for run in runs}) > 1 else ""


def placed(experiment):
    """`timed`, where the seconds of the SAE are counted in as well."""
    experiment, why = timed(experiment)
    known = all(sae_cost(entry.run, "seconds") is not None for entry in experiment.entries)
    return experiment, why or ("" if known else UNKNOWN_COST)


def by_seed(entries):
    """The experiment's seed -> run."""
    return {entry.seed: entry.run for entry in entries}


def gain(entries):
    """CE before minus CE after, by document -> `Difference`, above 0 where training helped."""
    runs = by_seed(entries)
    return difference(spliced(runs), ends(runs))


def after_both(experiment, entry):
    """The run of a second stage, its header's spliced CE that of the SAE before the first; None
    where the first stage's run is not there."""
    first = entry.role.partition("+")[0]
    began = [e for e in experiment.of(first, stage=1) if e.seed == entry.seed]
    if not began:
        return None
    bare = {"ce_full_spliced": began[0].run.header["ce_full_spliced"]}
    return dataclasses.replace(entry.run, header={**entry.run.header, **bare})


def title(experiment):
    """Two lines: the experiment, model and site; tokens, seeds, machine, how many of how many."""
    headers = [_header(entry) for entry in experiment.entries]
    specs = [header.get("spec") or {} for header in headers]
    models = [PurePath(str(s.get("model"))).name.removeprefix("package:") for s in specs]
    first = f"{experiment.name}: {_some(models, 'models')}"
    if any("site" in spec for spec in specs):
        first += f", SAE at {_some([str(s.get('site')) for s in specs], 'sites')}"
    return f"{first}\n{' · '.join(part for part in _budget(experiment, headers) if part)}"


def _budget(experiment, headers):
    tokens = {e.run.rows[-1]["tokens"] for e in experiment.entries if e.run}
    seeds = {entry.seed for entry in experiment.entries}
    places = {(h.get("machine"), h.get("device"), h.get("threads")) for h in headers}
    made, planned = len(experiment.entries), experiment.planned
    what = "runs" if any(entry.run for entry in experiment.entries) else "measurements"
    if tokens:
        low, high = min(tokens), max(tokens)
        yield f"{low:,} tokens" if low == high else f"{low:,} to {high:,} tokens"
    yield f"{len(seeds)} seed{'s' * (len(seeds) != 1)}"
    yield place(*places.pop()) if len(places) == 1 else "several clocks"
    yield f"{made} of {planned} {what}" if made < planned else f"all {planned} {what}"


def units_of(experiment) -> str:
    """What the errors of an experiment are over, in words."""
    return units([_header(entry) for entry in experiment.entries])


def place(machine, device, threads):
    """Where a run was timed, in words."""
    threads = f"{threads} threads" if device == "cpu" else None
    return ", ".join(str(part) for part in (machine, device, threads) if part)


def _some(values, plural):
    values = list(dict.fromkeys(values))
    return ", ".join(values) if len(values) < 3 else f"{len(values)} {plural}"


def _header(entry):
    return entry.run.header if entry.run else entry.measure
