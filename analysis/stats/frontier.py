"""The frontier's records -> what each arm closes of the gap, what it took, how mature its SAE is.

The gap is that of the SAE at the fork, whose step size has not fallen, to the clean model.
"""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from analysis.records.comparison import clock
from analysis.records.manifest import Entry, Experiment
from analysis.stats.crossed import Estimate, crossed, equivalence, holm, ratio
from analysis.stats.speedup import resumed, sae_cost
from bench.errors import Rejected
from bench.io.record import Run, read

OUTCOMES = {"KL": "kl", "CE": "ce"}
"""Outcome -> the stem of its fields, which are per validation document."""
PRIMARY = 0.25
"""The fork that the comparisons are of."""
TWICE = "mse-lora"
"""The arm that begins with an SAE which was trained on after the fork."""
BASE = "mse"
"""The arm that does nothing else: the SAE's own training goes on."""
MARGIN = 0.025
"""Two arms that differ by less of the gap are the same for every purpose here."""
LEVEL = 0.05
"""A p below it is evidence."""
TUNED = "{}*-tuning*/tuned.json"
"""Beside a folder of this name: the files of `bench tune`."""
FAMILY = {"frontier": 26, "frontier-long": 6, "frontier-gemma3": 6}
"""Experiment -> how many comparisons were planned: of 13 pairs, or 3, in two outcomes."""
MATURE = 0.15
"""An SAE is mature where the last doubling of its tokens moved the gap by less."""

Losses = dict[int, list[float]]
"""Seed -> the loss of each validation document, nats per scored token."""


@dataclass(frozen=True)
class Arm:
    """A place in the experiment: what the last part of the seconds goes into."""

    role: str
    fork: float = PRIMARY
    """The share of all seconds that it gets."""
    sae: str = "own"
    """What it works around: the trained SAE (`own`), or a control."""

    def of(self, experiment: Experiment) -> list[Entry]:
        """Its entries, in order of seeds."""
        return experiment.of(self.role, fork=self.fork, sae=self.sae)

    @property
    def judged(self) -> bool:
        """Whether it is in the family of comparisons: of the primary fork, or of all seconds."""
        return self.fork in (PRIMARY, 1.0)

    @property
    def base(self) -> "Arm":
        """`mse` at the same fork; at the primary one for an arm that gets all of the seconds."""
        return Arm(BASE, self.fork if self.fork < 1 else PRIMARY, self.sae)


def on_one_clock(experiment: Experiment) -> Experiment:
    """The part on the clock that most runs of `BASE` have at the primary fork; a figure or table of
    it says so. Controls, other forks and other arms, however many, do not move it."""
    clocks = Counter(clock(entry.header) for entry in Arm(BASE).of(experiment))
    if not clocks:
        return experiment
    most, _ = clocks.most_common(1)[0]
    kept = [entry for entry in experiment.entries if clock(entry.header) == most]
    return replace(experiment, entries=kept)


@dataclass(frozen=True)
class Maturity:
    """What reconstruction still does to the gap in KL where the arms fork; means over seeds."""

    change: float
    """Share of the gap that the last doubling of tokens took away."""
    slope: float | None
    """Nats per second by which the gap falls there; None where no seconds are sound."""
    gap: float
    """Nats, on the curve set."""

    @property
    def mature(self) -> bool:
        """Whether the last doubling moved the gap by less than `MATURE`."""
        return self.change < MATURE


@dataclass(frozen=True)
class Verdict:
    """What one arm closes more than another, judged."""

    more: Estimate
    """Share of the gap, above 0 where the first closes more."""
    p: float | None
    """Adjusted by Holm over the family; None with one seed or one document."""
    word: str
    """One of `WORDS`; "" where there is no p."""


BETTER, WORSE, SAME, OPEN = WORDS = ("better", "worse", "the same", "not told apart")
"""`the same` goes first: shown to differ by less than `MARGIN`, whatever p says of 0."""


Family = dict[tuple[str, Arm, Arm], Verdict]
"""(outcome, arm, the arm it is held against) -> `Verdict`."""


def arms(experiment: Experiment, sae: str = "own") -> list[Arm]:
    """The arms around one kind of SAE, as they were planned."""
    of_kind = [entry for entry in experiment.entries if entry.at.get("sae") == sae]
    forked = [Arm(e.role, e.at["fork"], sae) for e in of_kind if "fork" in e.at]
    return list(dict.fromkeys(forked))


def ends(experiment: Experiment, arm: Arm, outcome: str) -> Losses:
    """An arm's losses at the end; without the seeds whose record has none."""
    lines = {entry.seed: entry.run.end or {} for entry in arm.of(experiment) if entry.run}
    losses = {seed: line.get(f"{OUTCOMES[outcome]}_full") for seed, line in lines.items()}
    return {seed: known for seed, known in losses.items() if known and None not in known}


def starts(experiment: Experiment, arm: Arm, outcome: str) -> tuple[Losses, Losses]:
    """(losses of the SAE at an arm's fork, of the clean model), from the headers of the runs that
    start there, `mse` before others: `mse-lora` begins with an SAE that was trained on."""
    before, clean, saes = {}, {}, dict[int, Any]()
    fork, field = arm.base.fork, OUTCOMES[outcome]
    there = experiment.of(None, fork=fork, sae=arm.sae)
    for entry in sorted(there, key=lambda entry: entry.role != BASE):
        losses = entry.header.get(f"{field}_full_spliced")
        of_clean = [0.0] * len(losses or ()) if field == "kl" else entry.header["ce_full_clean"]
        if entry.run and entry.role != TWICE:
            sae = entry.header["sae"].get("sha256")
            if saes.setdefault(entry.seed, sae) != sae:
                raise Rejected(f"{entry.name}: seed {entry.seed} forks from another SAE, too")
        if losses and None not in losses and entry.seed not in before:
            before[entry.seed], clean[entry.seed] = losses, of_clean
    return before, clean


def closed(
    experiment: Experiment, arm: Arm, outcome: str, than: Arm | None = None, text: str = ""
) -> Estimate | None:
    """Share of the gap that an arm closes, or what it closes more `than` another.

    On the documents whose names begin with `text`, and the seeds that have all of it. None
    without such, and where the gap is not two of its errors above 0.
    """
    before, clean = starts(experiment, arm, outcome)
    ours = ends(experiment, arm, outcome)
    theirs = ends(experiment, than, outcome) if than else before
    seeds = sorted(before.keys() & ours.keys() & theirs.keys())
    kept = _kept(arm.of(experiment), text)
    gaps, gains = [], []
    for seed in seeds:
        tables = [each[seed] for each in (before, clean, theirs, ours)]
        if len({len(losses) for losses in tables}) > 1:
            raise Rejected(f"{arm.role} seed {seed}: losses of unequal numbers of documents")
        b, c, t, o = ([losses[n] for n in kept or range(len(losses))] for losses in tables)
        gaps.append([x - y for x, y in zip(b, c, strict=True)])
        gains.append([x - y for x, y in zip(t, o, strict=True)])
    if not gaps or (text and not kept) or not (whole := crossed(gaps)).value > 0:
        return None
    return None if whole.value < 2 * (whole.error or 0.0) else ratio(gains, gaps)


def _kept(entries: list[Entry], text: str) -> list[int]:
    """Places of the validation documents whose names begin with `text`; [] for all of them."""
    names = entries[0].header.get("documents") or [] if entries else []
    return [n for n, name in enumerate(names) if str(name).startswith(text)] if text else []


def gap(experiment: Experiment, arm: Arm, outcome: str) -> float | None:
    """Nats between the SAE at an arm's fork and the clean model; mean over seeds and documents."""
    before, clean = starts(experiment, arm, outcome)
    return fmean(fmean(before[s]) - fmean(clean[s]) for s in before) if before else None


def left(experiment: Experiment, arm: Arm, outcome: str) -> float | None:
    """Nats that an arm leaves between the model and the clean one; mean over documents and the
    seeds of `mse`. With fewer it is placed by its difference from `mse`: an easy seed that it
    lacks would else make it look worse."""
    ours, base = (_left(experiment, a, outcome) for a in (arm, Arm(BASE, sae=arm.sae)))
    if both := ours.keys() & base.keys():
        return fmean(base.values()) + fmean(ours[s] - base[s] for s in both)
    return fmean(ours.values()) if ours else None


def _left(experiment: Experiment, arm: Arm, outcome: str) -> dict[int, float]:
    """Seed -> the nats that an arm leaves, mean over documents."""
    losses, (_, clean) = ends(experiment, arm, outcome), starts(experiment, arm, outcome)
    return {s: fmean(losses[s]) - fmean(clean[s]) for s in losses.keys() & clean.keys()}


def left_more(experiment: Experiment, arm: Arm, than: Arm, outcome: str) -> Estimate | None:
    """Nats that an arm leaves more than another, whatever they fork from; on the seeds that have
    both, None without."""
    ours, theirs = ends(experiment, arm, outcome), ends(experiment, than, outcome)
    seeds = sorted(ours.keys() & theirs.keys())
    table = [[x - y for x, y in zip(ours[s], theirs[s], strict=True)] for s in seeds]
    return crossed(table) if table else None


def verdicts(experiment: Experiment) -> Family:
    """The family of comparisons: each arm that is judged against `mse`, and `lora` against `e2e`,
    around the trained SAE, in both outcomes."""
    pairs = [(a, a.base) for a in arms(experiment) if a.judged and a.role != BASE]
    pairs.append((Arm("lora"), Arm("e2e")))
    keys = [(outcome, *pair) for outcome in OUTCOMES for pair in pairs]
    found = {key: closed(experiment, key[1], key[0], than=key[2]) for key in keys}
    more = {key: estimate for key, estimate in found.items() if estimate}
    ps = {key: p for key, estimate in more.items() if (p := estimate.p()) is not None}
    # What was planned counts as open until it is there: the family does not grow with the runs.
    planned = {str(n): 1.0 for n in range(FAMILY.get(experiment.name, len(ps)) - len(ps))}
    family = holm({**{str(key): p for key, p in ps.items()}, **planned})
    adjusted = {key: family[str(key)] for key in ps}
    return {k: Verdict(m, adjusted.get(k), _word(m, adjusted.get(k))) for k, m in more.items()}


def _word(more: Estimate, p: float | None) -> str:
    same = equivalence(more, MARGIN)
    if p is None or same is None:
        return ""
    if same < LEVEL:
        return SAME
    return OPEN if p >= LEVEL else BETTER if more.value > 0 else WORSE


def total_seconds(run: Run) -> float:
    """Seconds of a run and of its SAE's training before."""
    return (sae_cost(run, "seconds") or 0.0) + run.rows[-1]["seconds"]


def seconds(timed: Experiment, arm: Arm, tuning: bool = False) -> float | None:
    """Median over seeds of `total_seconds`, with `tuning` each seed's `tuning_seconds` added; None
    where no run of an arm was timed in one go, or no search is known. `timed` is the experiment's
    part that may be placed on seconds (`usable.placed`)."""
    runs = [entry.run for entry in arm.of(timed) if entry.run]
    searches = [tuning_seconds(run) if tuning else 0.0 for run in runs]
    if not runs or None in searches:
        return None
    return median(total_seconds(run) + (s or 0.0) for run, s in zip(runs, searches, strict=True))


def tuning_seconds(run: Run) -> float | None:
    """Seconds that the searches for step sizes took which a run rests on: its own and, where it
    goes on with what an arm beside it has trained, that arm's. None where one is not known. The
    search for the trunk's, the same for all arms, is not in it."""
    before = run.path.with_name(f"{run.header['sae'].get('run')}.jsonl")
    arms = [run, *([read(before)] if before.exists() else [])]
    spent = [_search(arm) for arm in arms if arm is run or arm.header["sae"]["source"] != "fresh"]
    known = [seconds for seconds in spent if seconds is not None]
    return sum(known) if len(known) == len(spent) else None


def _search(run: Run) -> float | None:
    """Seconds of the search for a run's step size, by tuning/ beside the record, or NAME-tuning/
    beside its folder NAME.

    None where no search was of the run's model, method and settings; of several the one that names
    most of them, then the nearest in steps. Its steps count at the pace of the run itself: in a
    search they may have found much of their work done. Raises `Rejected` for another file.
    """
    folder, steps = run.path.parent.resolve(), run.header["spec"].get("steps") or 1
    fitting = []
    for path in [*folder.glob("tuning/tuned.json"), *folder.parent.glob(TUNED.format(folder.name))]:
        try:
            file = json.loads(path.read_text(encoding="utf-8"))
            if file["spec"]["model"] == run.header["spec"]["model"]:
                fitting += [e for e in file["methods"].values() if _tuned_for(e, run)]
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            raise Rejected(f"{path}: not a file of `bench tune` ({error!r})") from None
    found = [
        (-len(_settings(e)), abs(math.log(e["steps"] / steps)), e["steps"] * len(e["tried"]))
        for e in fitting
    ]
    last = run.rows[-1]
    return min(found)[2] * last["seconds"] / last["step"] if found and last["step"] else None


def _tuned_for(entry: dict[str, Any], run: Run) -> bool:
    """Whether the settings that an entry names, and the ones it chose, are the run's."""
    wanted = {**_settings(entry), **entry["choice"]}
    config = run.header["config"]
    alike = all(_written(config.get(name)) == _written(value) for name, value in wanted.items())
    return entry["method"] == run.header["method"] and alike


def _settings(entry: dict[str, Any]) -> dict[str, str]:
    """`lora:rank=4:steps=64` -> {"rank": "4"}: an entry is for other numbers of steps, too."""
    items = [item.partition("=") for item in re.split("[:,]", entry["label"])[1:]]
    return {k: v for k, _, v in items if k != "steps" and k not in entry["choice"]}


def _written(value: object) -> str:
    """A setting as labels have it, numbers to three digits."""
    try:
        return format(float(str(value)), ".3g")
    except ValueError:
        return str(value).lower()


def maturity(experiment: Experiment, sae: str = "own") -> Maturity | None:
    """`Maturity` where the arms of the primary fork begin; None without a trunk that got there."""
    found = []
    for trunk in experiment.of("trunk", sae=sae):
        forked = experiment.of(None, fork=PRIMARY, sae=sae)
        costs = [e.header.get("sae_cost") or {} for e in forked if e.seed == trunk.seed]
        tokens = next((cost["tokens"] for cost in costs if cost.get("tokens")), None)
        if trunk.run and tokens and (of_seed := _maturity(trunk.run, tokens)):
            found.append(of_seed)
    if not found:
        return None
    slopes = [each.slope for each in found if each.slope is not None]
    slope = fmean(slopes) if slopes else None
    return Maturity(fmean(m.change for m in found), slope, fmean(m.gap for m in found))


def _maturity(trunk: Run, tokens: int) -> Maturity | None:
    """That of one seed whose arms fork after so many tokens."""
    rows = [row for row in trunk.rows if (row.get("kl") or 0) > 0 and row["tokens"]]
    for before, after in pairwise(rows):
        if before["tokens"] <= tokens <= after["tokens"] and rows[0]["tokens"] <= tokens / 2:
            now, half = _kl_at(rows, tokens), _kl_at(rows, tokens / 2)
            sound = after["seconds"] > before["seconds"] > 0 and not resumed(trunk)
            slope = _slope(before, after, tokens) * now if sound else None
            return Maturity(1 - now / half, slope, now)
    return None


def _slope(before: dict[str, Any], after: dict[str, Any], tokens: float) -> float:
    """Share of the KL that goes in a second after so many tokens, on the line of `_kl_at`."""
    power = math.log(before["kl"] / after["kl"]) / math.log(after["seconds"] / before["seconds"])
    part = (tokens - before["tokens"]) / (after["tokens"] - before["tokens"])
    return power / (before["seconds"] + part * (after["seconds"] - before["seconds"]))


def _kl_at(rows: list[dict[str, Any]], tokens: float) -> float:
    """KL after so many tokens, straight between evaluations where both axes are logarithmic."""
    for before, after in pairwise(rows):
        if tokens <= after["tokens"]:
            wide = math.log(after["tokens"] / before["tokens"])
            part = math.log(tokens / before["tokens"]) / wide
            return before["kl"] * (after["kl"] / before["kl"]) ** part
    return rows[-1]["kl"]
