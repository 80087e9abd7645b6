"""Experiment -> its table as text: what was reached at each role and value, and what it took."""

import textwrap
from statistics import fmean, median
from typing import Any

from analysis.records.comparison import grouped
from analysis.records.manifest import Entry, Experiment, runs_of
from analysis.stats.gap import closed_at_end, units
from analysis.stats.usable import after_both, by_seed, changed_tokens, ends, finished, timed
from analysis.tables import frontier
from analysis.tables.comparison import aligned
from analysis.tables.notes import BLANK, WIDTH, interval, number, seeds, title

HEADS = ["role", "at", "gap closed", "CE", "seconds", "backwards", "seeds"]
NOTE = (
    "Gap closed: in brackets the 95% interval over seeds and {units} alike, paired (of one seed "
    "there is none); of two stages, both together. CE: at the end, on the validation set, nats per "
    "scored token. Seconds and backwards (LM backward passes): of the run alone, median over seeds."
)


def tables(experiments: dict[str, Experiment]) -> str:
    """Name -> `Experiment` as one text, a paragraph each."""
    parts, headers = [], []
    for name, each in experiments.items():
        if name in frontier.FRONTIERS and finished(each).entries:
            parts.append(frontier.table(experiments, name))
        elif not frontier.is_part(name):
            parts.append(table(each))
            headers += [run.header for run in runs_of(each.entries)]
    note = [textwrap.fill(NOTE.format(units=units(headers)), WIDTH)] if headers else []
    return "\n\n".join(parts + note) + "\n"


def table(experiment: Experiment) -> str:
    """One experiment: its setting and a row for each role and value."""
    whole = finished(experiment)
    if not whole.entries:
        return f"{experiment.name}: {_nothing(experiment)}"
    groups = grouped(whole.entries, lambda entry: (entry.role, tuple(entry.at.items())))
    if whole.entries[0].run:
        kept, why = timed(whole)
        in_one_go = set() if why else {run.name for run in runs_of(kept.entries)}
        rows = [
            [role, _at(at), *_reached(whole, entries), *_spent(entries, in_one_go)]
            for (role, at), entries in groups.items()
        ]
        lines = [aligned([HEADS, *rows], left=(0, 1))]
        lines += [f"No seconds: {' '.join(why.split())}."] if why else []
    else:
        lines = []
        for (role, _), entries in groups.items():
            words = MEASURED[experiment.name]([entry.measured for entry in entries])
            lines.append(textwrap.fill(f"{role}: {words} ({seeds(len(entries))})", WIDTH))
    return "\n".join([title(whole), *lines])


def _nothing(experiment: Experiment) -> str:
    """Why there is no table."""
    if any(run.header.get("weights") == "random" for run in runs_of(experiment.entries)):
        return "random weights: a CE means nothing here; none is shown or drawn"
    return f"not measured (0 of {len(experiment.plan)})"


def _at(at: tuple[tuple[str, Any], ...]) -> str:
    return ", ".join(f"{name} {value}" for name, value in at) or BLANK


def _reached(experiment: Experiment, entries: list[Entry]) -> tuple[str, str]:
    """Share of the gap closed and CE; no share where the SAE started at random."""
    runs = runs_of(entries)
    ce = f"{fmean(map(fmean, ends(by_seed(entries)).values())):.4f}"
    if any(run.header["sae"].get("source") == "fresh" for run in runs):
        return BLANK, ce
    if any("+" in entry.role for entry in entries):
        runs = [run for run in (after_both(experiment, e) for e in entries) if run]
    closed = closed_at_end(runs)
    return interval(closed) if closed else BLANK, ce


def _spent(entries: list[Entry], in_one_go: set[str]) -> tuple[str, str, str]:
    """Median seconds and backward passes, and how many seeds."""
    runs = runs_of(entries)
    seconds = [run.rows[-1]["seconds"] for run in runs if run.name in in_one_go]
    backwards = median(run.rows[-1]["backwards"] for run in runs)
    return number(median(seconds) if seconds else None), number(backwards), str(len(runs))


def _token_loss(values: list[dict[str, Any]]) -> str:
    better, worse = changed_tokens(values)
    states = ("clean", "spliced", "adapted")
    losses = [f"{state} {fmean(seed[f'ce_{state}'] for seed in values):.4f}" for state in states]
    return f"{better:.1%} of tokens improved, {worse:.1%} degraded; CE {', '.join(losses)}"


def _distance(values: list[dict[str, Any]]) -> str:
    last = values[0]["layers"][-1]
    changes = []
    for kind, name in (("l2", "L2"), ("cosine", "cosine")):
        change = fmean(seed["difference"][kind][-1] for seed in values)
        error = fmean(seed["difference"][f"{kind}_error"][-1] for seed in values)
        changes.append(f"{name} {change:+.4f} ± {error:.4f}")
    return f"adapted minus spliced after block {last}: {', '.join(changes)} (over documents alone)"


def _no_sae(values: list[dict[str, Any]]) -> str:
    names = {"clean": "clean", "spliced": "spliced", "adapted": "adapted"}
    names |= {"without_sae": "adapted with the SAE taken out"}
    losses = {name: fmean(fmean(seed[f"ce_{k}"]) for seed in values) for k, name in names.items()}
    return "CE " + ", ".join(f"{name} {ce:.4f}" for name, ce in losses.items())


MEASURED = {"token-loss": _token_loss, "distance": _distance, "no-sae": _no_sae}
"""Experiment of measurements -> what one role's seeds measured, in words."""
