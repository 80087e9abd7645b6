"""Which runs a figure or a claim may rest on, and the part of an experiment that may be drawn.

Left out of an experiment are runs that are missing, unfinished, of random weights or without their
numbers; where seconds are drawn, resumed runs as well.
"""

import dataclasses
import math
from statistics import median
from typing import Any

from analysis.records.comparison import clock
from analysis.records.manifest import Entry, Experiment, runs_of
from analysis.stats.crossed import Estimate
from analysis.stats.gap import Loss, difference, end_losses, spliced_losses, units
from analysis.stats.speedup import AXES, resumed, sae_cost
from bench.io.record import Run

SEVERAL_CLOCKS = "timed on several machines, devices\nor numbers of threads: not compared"
NONE_TIMED = "no run that was timed in one go"
UNKNOWN_COST = "what the SAE has cost in seconds\nis not known: not drawn"


def unsound(run: Run) -> str | None:
    """Why nothing may be claimed from a run, as the end of a sentence; None where one may."""
    header = run.header
    if run.status != "finished":
        return f"is not finished ({run.status})"
    if header.get("weights") == "random":
        return "is of random weights"
    values = [header["ce_clean"], header["ce_spliced"]]
    values += [row[name] for row in run.rows for name in ("step", "ce", *AXES)]
    for losses in (header.get("ce_full_clean"), header.get("ce_full_spliced"), end_losses(run)):
        if not losses:
            return "has no CE per document"
        values += losses
    whole = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    return None if run.rows and whole else "has a cost or a CE that is no number"


def ends(runs: dict[int, Run], loss: Loss = "ce") -> dict[int, list[float]]:
    """Seed -> a loss per document at the end."""
    return {seed: losses for seed, run in runs.items() if (losses := end_losses(run, loss))}


def spliced(runs: dict[int, Run], loss: Loss = "ce") -> dict[int, list[float]]:
    """Seed -> a loss per document of the SAE that each run starts from."""
    return {seed: losses for seed, run in runs.items() if (losses := spliced_losses(run, loss))}


def finished(experiment: Experiment) -> Experiment:
    """The experiment with only the entries that may be drawn."""
    entries = [entry for entry in experiment.entries if not _wrong(entry)]
    return dataclasses.replace(experiment, entries=entries)


def _wrong(entry: Entry) -> bool:
    if entry.run:
        return unsound(entry.run) is not None
    return entry.header.get("weights") == "random" or not entry.measured


def timed(experiment: Experiment) -> tuple[Experiment, str]:
    """(the experiment without its resumed runs, why no seconds of it are drawn or "").

    A run that starts from an SAE whose own training was resumed counts as resumed.
    """
    broken = {run.name for run in runs_of(experiment.entries) if resumed(run)}
    whole = [e for e in experiment.entries if e.run and e.run.name not in broken]
    kept = [entry for entry in whole if entry.header["sae"].get("run") not in broken]
    clocks = {clock(entry.header) for entry in kept}
    why = "" if len(clocks) == 1 else SEVERAL_CLOCKS if clocks else NONE_TIMED
    return dataclasses.replace(experiment, entries=kept), why


def placed(experiment: Experiment) -> tuple[Experiment, str]:
    """`timed`, where the seconds of the SAE are counted in as well."""
    experiment, why = timed(experiment)
    known = all(sae_cost(run, "seconds") is not None for run in runs_of(experiment.entries))
    return experiment, why or ("" if known else UNKNOWN_COST)


def by_seed(entries: list[Entry]) -> dict[int, Run]:
    """The experiment's seed -> run."""
    return {entry.seed: entry.run for entry in entries if entry.run}


def gain(entries: list[Entry]) -> Estimate:
    """CE before minus CE after, by document -> the mean, above 0 where training helped."""
    runs = by_seed(entries)
    return difference(spliced(runs), ends(runs))


def after_both(experiment: Experiment, entry: Entry) -> Run | None:
    """The run of a second stage, its header's spliced losses those of the SAE before the first;
    None where the first stage's run is not there."""
    first = entry.role.partition("+")[0]
    began = by_seed(experiment.of(first, stage=1)).get(entry.seed)
    if not (began and entry.run):
        return None
    fields = ("ce_full_spliced", "kl_full_spliced")
    header = entry.header | {name: began.header.get(name) for name in fields}
    return dataclasses.replace(entry.run, header=header)


def units_of(experiment: Experiment) -> str:
    """What the errors of an experiment are over, in words."""
    over = units([entry.header for entry in experiment.entries])
    return f"seeds and {over}" if len(experiment.seeds) > 1 else f"{over} alone"


def changed_tokens(values: list[dict[str, Any]]) -> tuple[float, float]:
    """Values of `token-loss`, a dict a seed -> (improved, degraded) tokens as shares of all, median
    over seeds."""
    kinds = ("n_improved", "n_degraded")
    better, worse = (median(seed[kind] / seed["n_tokens"] for seed in values) for kind in kinds)
    return better, worse
