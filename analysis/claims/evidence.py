"""One folder's experiments -> the runs that a claim may rest on, and why it may not on others.

A claim rests on all runs that its experiment planned, or on none: each finished, with its CE in
numbers, from real weights; seconds only where all were timed in one go on one clock.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from analysis.records.comparison import clock
from analysis.records.manifest import Entry, Experiment, load
from analysis.stats.crossed import Estimate
from analysis.stats.gap import closed_at_end
from analysis.stats.speedup import resumed
from analysis.stats.usable import by_seed, unsound
from analysis.tables.notes import clock_in_words, model_name
from bench.errors import Rejected
from bench.io import record
from bench.io.record import Run


class Missing(Exception):
    """The runs that a claim waits for; `ours` is a number to give all the same."""

    def __init__(self, what: str, ours: str = "") -> None:
        super().__init__(what)
        self.ours = ours


class Untestable(Missing):
    """Why the runs that are there cannot decide a claim, with the number that is too small."""


@dataclass(frozen=True)
class Finding:
    """What a rule found."""

    holds: bool | None
    """None where it was not run, or cannot be tested here."""
    ours: str = ""
    """The number that decides, in a line."""
    details: Sequence[str] = ()
    """Further paragraphs and tables, in Markdown."""
    missing: str = ""
    """What was not run; empty where all was."""
    guard: str = ""
    """Why it cannot be tested here; empty where it can."""


@dataclass(frozen=True)
class Evidence:
    """The experiments of one folder; a fresh `used` for each claim (`case`)."""

    folder: Path
    experiments: dict[str, Experiment]
    used: dict[str, tuple[int, Run]] = field(default_factory=dict)
    """Name of a record or measurement -> (its seed in the experiment, its run)."""

    @property
    def seeds(self) -> int:
        """How many seeds what is used has."""
        return len({seed for seed, _ in self.used.values()})

    def of_shared_seeds(self, *groups: dict[int, Run]) -> list[dict[int, Run]]:
        """The runs of the seeds that all groups have; no run of another seed is used any more.

        Of a frontier's seeds the main arms have all, the other arms and the controls the first.
        """
        shared = set.intersection(*map(set, groups))
        if not shared:
            raise Missing("the same seeds in what is compared")
        for name in [name for name, (seed, _) in self.used.items() if seed not in shared]:
            del self.used[name]
        return [{seed: group[seed] for seed in sorted(shared)} for group in groups]

    def case(self) -> "Evidence":
        """The same experiments, nothing used yet."""
        return replace(self, used={})

    def values(self, experiment: str, variable: str, role: str | None = None) -> list[Any]:
        """All values that an experiment plans for what it varies."""
        return self.plan(experiment).values(variable, role)

    def runs(self, experiment: str, role: str, **at: object) -> dict[int, Run]:
        """Seed -> run; raises `Missing` unless all that were planned are there and sound."""
        entries = self._entries(experiment, role, at)
        for entry in entries:
            if entry.run is None:
                raise Missing(f"a run: a {role} of {experiment} is a measurement")
            self._use(entry.name, entry.seed, entry.run)
        return by_seed(entries)

    def measures(
        self, experiment: str, role: str, **at: object
    ) -> dict[int, tuple[dict[str, Any], Run]]:
        """Seed -> (values, the run they are of); like `runs`."""
        measures = {}
        for entry in self._entries(experiment, role, at):
            path = self.folder / f"{(entry.measure or {}).get('of')}.jsonl"
            if not path.is_file():
                raise Missing(f"the run that {entry.name} is a measurement of")
            run = record.read(path)
            for name in (run.name, entry.name):
                self._use(name, entry.seed, run)
            measures[entry.seed] = entry.measured, run
        return measures

    def tuned(self) -> dict[str, Any]:
        """What `bench tune` chose for this folder, in FOLDER-tuning or FOLDER/tuning, by label;
        raises `Missing` without it."""
        name = Path("tuned.json")
        beside = self.folder.with_name(f"{self.folder.name}-tuning")
        place = next((p for p in (beside, self.folder / "tuning") if (p / name).is_file()), None)
        if place is None:
            raise Missing("a tuning of step sizes (bench tune)")
        try:
            text = (place / name).read_text(encoding="utf-8")
            methods: dict[str, Any] = json.loads(text)["methods"]
            records = [tried.get("record") for m in methods.values() for tried in m["tried"]]
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            raise Rejected(f"{place / name}: not what `bench tune` writes ({error!r})") from None
        paths = [place / f"{name}.jsonl" for name in records]
        for run in [record.read(path) for path in paths if path.is_file()]:
            if not unsound(run):  # A rate that diverged is no evidence, and no fault.
                self._use(run.name, run.header["seed"], run)
        return methods

    def plan(self, experiment: str) -> Experiment:
        """An experiment with all planned entries; raises `Missing` where it was not planned."""
        if experiment not in self.experiments:
            raise Missing(f"experiment {experiment}")
        planned = self.experiments[experiment].plan
        return replace(self.experiments[experiment], entries=planned)

    def _entries(self, experiment: str, role: str, at: dict[str, object]) -> list[Entry]:
        wanted = len(self.plan(experiment).of(role, **at))
        there = self.experiments[experiment].of(role, **at)
        what = " ".join([f"{role} of {experiment}", *(f"at {k} {v}" for k, v in at.items())])
        if not wanted:
            raise Missing(f"{what}, which was not planned")
        if len(there) < wanted:
            raise Missing(f"{wanted - len(there)} of {wanted} runs: {what}")
        if len({entry.seed for entry in there}) < wanted:
            raise Rejected(f"{what}: one seed twice")
        return there

    def _use(self, name: str, seed: int, run: Run) -> None:
        self.used[name] = seed, run
        wrong = unsound(run)
        if wrong:
            raise Missing(f"a sound {run.name}: it {wrong}")


def read(folder: Path) -> Evidence | None:
    """The `Evidence` in `folder`, or None where no manifest lies there."""
    experiments = load(folder)
    return Evidence(Path(folder), experiments) if experiments else None


def paired(*groups: dict[int, Run]) -> list[tuple[Run, ...]]:
    """Seed -> run, several times -> the runs of each seed together."""
    if len({frozenset(group) for group in groups}) > 1:
        raise Missing("the same seeds in what is compared")
    return [tuple(group[seed] for group in groups) for seed in sorted(groups[0])]


def closed(runs: dict[int, Run]) -> Estimate:
    """Share of the gap in CE that the runs of all seeds close; `Untestable` where there is none."""
    share = closed_at_end(list(runs.values()))
    if not share:
        raise Untestable("no gap, or one less than two errors above 0")
    return share


def minus(ours: dict[int, list[float]], theirs: dict[int, list[float]]) -> list[list[float]]:
    """Seed -> values by document, minus another's -> [seed][document], of the seeds in both."""
    both = sorted(ours.keys() & theirs.keys())
    return [[a - b for a, b in zip(ours[seed], theirs[seed], strict=True)] for seed in both]


def below(estimate: Estimate, bound: float = 0.0) -> bool:
    """Whether the whole interval is below `bound`; never with one seed."""
    return estimate.high is not None and estimate.high < bound


def above(estimate: Estimate, bound: float = 0.0) -> bool:
    """Whether the whole interval is above `bound`; never with one seed."""
    return estimate.low is not None and estimate.low > bound


def three_ways(holds: bool, refuted: bool, ours: str, details: Sequence[str] = ()) -> Finding:
    """A `Finding` whose interval may be too wide to decide."""
    if holds or refuted:
        return Finding(holds and not refuted, ours, details)
    return Finding(None, ours, details, guard="the 95% interval is too wide to decide")


def one_clock(*runs: Run) -> None:
    """Raise `Missing` unless the seconds of all runs may be compared."""
    broken = [run.name for run in runs if resumed(run)]
    if broken:
        raise Untestable(f"seconds not taken in one go: resumed were {', '.join(broken)}")
    if len({clock(run.header) for run in runs}) > 1:
        raise Untestable("seconds of several clocks: machines, devices or threads")


def setting(used: dict[str, tuple[int, Run]]) -> str:
    """What the runs of a claim were run on, in a line; (seeds, runs) as in `Evidence.used`."""
    runs = [run for _, run in used.values()]
    specs = [run.header["spec"] for run in runs]

    def field(name: str, form: str, value: Callable[[Any], str] = str) -> list[str]:
        """The values of a field, the first six of them, in a sentence; [] without any."""
        values = dict.fromkeys(value(spec[name]) for spec in specs if spec.get(name) is not None)
        more = " and more" * (len(values) > 6)
        return [form.format(", ".join([*values][:6]) + more)] if values else []

    models = dict.fromkeys(str(spec["model"]) for spec in specs if spec.get("model") is not None)
    parts = [", ".join(map(model_name, models))]
    parts += field("site", "SAE at {}")
    if any(spec.get("sae") in ("own", "fresh") for spec in specs):
        parts += field("sae_k", "TopK, k = {}")
        parts += field("sae_tokens", "own SAE of {} tokens", lambda number: f"{int(number):,}")
    steps = sorted(
        (s["steps"], s.get("batch_size", 1) * s.get("seq_len", 1)) for s in specs if s.get("steps")
    )
    parts += [f"{number:,} steps of {size:,} tokens" for number, size in dict.fromkeys(steps)]
    parts += sorted({clock_in_words(run) for run in runs})
    return "; ".join(part for part in parts if part)


def block_of(site: object) -> int | None:
    """Number of the block of the last of these sites, or None."""
    return max(map(int, re.findall(r"blocks\.(\d+)\.", str(site))), default=None)


def spread(values: Iterable[float], form: str) -> str:
    """Median over seeds and, in brackets, their range, each printed by `form`."""
    values = list(values)
    text = form.format(median(values))
    if len(values) > 1:
        text += f" ({form.format(min(values))} to {form.format(max(values))})"
    return text


def nats(difference: Estimate) -> str:
    """A difference of CE, in words."""
    return f"{difference.value:+.4f} nats{interval(difference, '{:+.4f}')}"


def interval(estimate: Estimate, form: str) -> str:
    """` (95%: LOW to HIGH)`, each printed by `form`; nothing where there is no interval."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f" (95%: {form.format(estimate.low)} to {form.format(estimate.high)})"


def table(heads: list[str], rows: list[list[Any]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)
