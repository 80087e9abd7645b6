"""What docs/limits.md says of the frontier beyond its table: `python results/frontier/more.py`.

None of it was planned: no verdict rests on it. The output is kept in more.txt.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

from scipy.special import stdtr

from analysis.records import manifest
from analysis.records.manifest import Entry, Experiment
from analysis.stats.crossed import Estimate, crossed, holm, of_seeds, ratio
from analysis.stats.frontier import (
    FAMILY,
    OUTCOMES,
    Arm,
    closed,
    left,
    left_more,
    total_seconds,
    verdicts,
)
from analysis.stats.usable import finished

MAIN = ("mse", "lora", "e2e")
PAIRS = (
    ("lora-keep", "mse"),
    ("mse-lora", "mse"),
    ("lora-keep", "lora"),
    ("mse-lora", "lora"),
    ("mse-lora", "e2e"),
    ("joint", "lora"),
    ("joint", "e2e"),
    ("e2e-mse", "e2e"),
    ("affine", "lora"),
)


def _points(estimate: Estimate) -> str:
    values = (estimate.value, estimate.low, estimate.high)
    value, low, high = (f"{100 * (number or 0.0):+.1f}" for number in values)
    return f"{value} [{low}, {high}]"


def _pairs(frontier: Experiment) -> Iterator[str]:
    yield "Points of the gap closed more, on the seeds that both have:"
    for arm, than in PAIRS:
        for outcome in OUTCOMES:
            more = closed(frontier, Arm(arm), outcome, than=Arm(than))
            yield f"  {outcome}, {arm} less {than}: {_points(more) if more else '-'}"


def _by_text(frontier: Experiment) -> Iterator[str]:
    for outcome in OUTCOMES:
        for text in ("sotu/", "novels95/"):
            found = {a: closed(frontier, Arm(a), outcome, text=text) for a in MAIN}
            shares = [f"{arm} {_points(share)}" for arm, share in found.items() if share]
            yield f"{outcome} closed, % of the gap on {text}: {', '.join(shares)}"


def _main_pairs(frontier: Experiment) -> Iterator[str]:
    """Differences of the main arms with p by Holm, of all seeds and without seed 0."""
    others = replace(frontier, entries=[entry for entry in frontier.entries if entry.seed != 0])
    for title, part in (("All seeds:", frontier), ("Without seed 0:", others)):
        yield title
        for (outcome, arm, than), verdict in verdicts(part).items():
            if arm.role in MAIN and verdict.p is not None:
                more = f"{_points(verdict.more)}, p {verdict.p:.4f}"
                yield f"  {outcome}, {arm.role} less {than.role}: {more}"


def _with_the_seeds_alone(frontier: Experiment) -> Iterator[str]:
    """Degrees of freedom as if documents did not count, where there are five seeds."""
    found = {key: v.more for key, v in verdicts(frontier).items() if v.more.seeds == 5}
    ps = {}
    for (outcome, arm, than), more in found.items():
        errors = abs(more.value) / (more.error or 1.0)
        ps[f"{outcome}, {arm.role} less {than.role}"] = 2 * float(stdtr(4, -errors))
    planned = {str(n): 1.0 for n in range(FAMILY["frontier"] - len(ps))}
    adjusted = holm({**ps, **planned})
    dfs = [more.df or 0.0 for more in found.values()]
    yield f"p by Holm with 4 degrees of freedom, in place of {min(dfs):.1f} to {max(dfs):.1f}:"
    yield from (f"  {name}: {adjusted[name]:.3f}" for name in ps)


def _low_rank(frontier: Experiment) -> Iterator[str]:
    yield "Of what e2e gains, low-rank updates of the SAE get, %, on the seeds of both:"
    for role in ("sae-lora", "sae-lora-2"):
        arms = [Arm(role).of(frontier), Arm("e2e").of(frontier)]
        seeds = sorted(set.intersection(*({entry.seed for entry in arm} for arm in arms)))
        for outcome, field in OUTCOMES.items():
            gains = [
                [_gain(entry, field) for seed in seeds for entry in arm if entry.seed == seed]
                for arm in arms
            ]
            yield f"  {outcome}, {role}: {_points(ratio(*gains))}"


def _gain(entry: Entry, field: str) -> list[float]:
    """What a run gains on each validation document, in nats."""
    assert entry.run and entry.run.end
    before, after = entry.header[f"{field}_full_spliced"], entry.run.end[f"{field}_full"]
    return [b - a for b, a in zip(before, after, strict=True)]


def _around_random_directions(frontier: Experiment) -> Iterator[str]:
    yield "Nats left around random directions, and how many more than around the trained SAE:"
    for outcome in OUTCOMES:
        for role in ("lora", "e2e"):
            around = Arm(role, sae="frozen")
            there = left(frontier, around, outcome)
            more = left_more(frontier, around, Arm(role), outcome)
            if there is not None and more and more.low is not None:
                ends = f"{more.value:+.3f} [{more.low:+.3f}, {more.high:+.3f}]"
                yield f"  {outcome}, {role}: {there:.3f}, {ends}"


def _forks(frontier: Experiment) -> Iterator[str]:
    yield "Nats left more than with a quarter, on the seeds that both have:"
    for outcome in OUTCOMES:
        for role in MAIN:
            for share in (0.05, 0.5):
                more = left_more(frontier, Arm(role, share), Arm(role), outcome)
                if more and more.low is not None:
                    ends = f"{more.value:+.4f} [{more.low:+.4f}, {more.high:+.4f}]"
                    yield f"  {outcome}, {role} with {share:.0%}: {ends}, {more.seeds} seeds"


def _gains_in_nats(frontier: Experiment) -> Iterator[str]:
    yield "Nats of CE gained with the SAE, on seeds 0 to 2:"
    for role in MAIN:
        e = crossed([_gain(entry, "ce") for entry in Arm(role).of(frontier) if entry.seed < 3])
        if e.low is not None:
            yield f"  {role}: {e.value:.4f} [{e.low:.4f}, {e.high:.4f}]"


def _each_arm(frontier: Experiment) -> Iterator[str]:
    yield "Mean over seeds (of seconds the median), smallest and largest; change: 95% interval over"
    yield "seeds alone:"
    for role in (*MAIN, "lora-keep", "mse-lora"):
        runs = [entry.run for entry in Arm(role).of(frontier) if entry.run]
        seconds = _range(map(total_seconds, runs), ",.0f", median)
        yield f"  {role}: seconds in all {seconds}"
        for field in ("fvu_full", "fvu_weighted_full", "dead_full"):
            pairs = [(run.header[field], (run.end or {})[field]) for run in runs]
            before, after = (_range(values, ".3f") for values in zip(*pairs, strict=True))
            change = of_seeds([after - before for before, after in pairs])
            ends = f"{change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"
            yield f"    {field}: {before} before, {after} after, change {ends}"


def _range(numbers: Iterable[float], form: str, middle: Callable = fmean) -> str:
    values = list(numbers)
    return f"{middle(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    experiment = finished(manifest.load(Path(__file__).parent)["frontier"])
    parts = [_pairs, _by_text, _main_pairs, _with_the_seeds_alone, _low_rank]
    parts += [_around_random_directions, _forks, _gains_in_nats, _each_arm]
    print("\n\n".join("\n".join(part(experiment)) for part in parts))
