"""The manifests that `bench experiment` leaves beside its records -> experiments, as read.

`FOLDER/NAME.json` names every run of the experiment NAME with its role in it and the values of
what the experiment varies; the runs lie beside it, shared by the experiments that need them.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from bench.errors import Rejected
from bench.io.record import Run, read


@dataclass(frozen=True)
class Entry:
    """One run, or one measurement of a run, and its place in the experiment."""

    role: str
    """What it is there for: mostly the method's name; `additivity` has two (`lora+e2e`)."""
    seed: int
    at: dict
    """What the experiment varies -> its value here, such as {"share": 0.1}."""
    run: Run | None = None
    """The record, where it is a run."""
    measure: dict | None = None
    """The measurement (`bench.evals.measures`), where it is one."""

    @property
    def name(self) -> str:
        """The stem of its file."""
        return self.run.name if self.run else self.measure["name"]

    @property
    def header(self) -> dict:
        """What is told of its setting: the record's first line, or the measurement itself."""
        return self.run.header if self.run else self.measure


@dataclass(frozen=True)
class Experiment:
    """One experiment's entries that are there by now."""

    name: str
    plan: list[Entry]
    """All its entries, bare of what was made of them."""
    entries: list[Entry]
    """Those that are there, with their record or measurement."""

    @property
    def planned(self) -> int:
        """How many entries the whole experiment has."""
        return len(self.plan)

    @property
    def roles(self) -> list[str]:
        """Its roles, in the order they were planned."""
        return list(dict.fromkeys(entry.role for entry in self.entries))

    @property
    def seeds(self) -> set[int]:
        """The seeds of what is there."""
        return {entry.seed for entry in self.entries}

    def of(self, role: str | None = None, **at) -> list[Entry]:
        """The entries of a role at these values, in order of seeds."""
        found = [e for e in self.entries if role in (None, e.role) and at.items() <= e.at.items()]
        return sorted(found, key=lambda entry: entry.seed)

    def runs(self, role: str | None = None, **at) -> list[Run]:
        """The records of `of`."""
        return [entry.run for entry in self.of(role, **at) if entry.run]

    def values(self, variable: str, role: str | None = None) -> list:
        """All values of what is varied, in the order they were planned."""
        found = [
            e.at[variable] for e in self.entries if variable in e.at and role in (None, e.role)
        ]
        return list(dict.fromkeys(found))


def load(folder: Path) -> dict[str, Experiment]:
    """The experiments whose manifests lie in `folder`: name -> `Experiment`; {} without any.

    An entry whose file is not there yet is left out. Raises `Rejected` for a file that is no
    manifest, record or measurement.
    """
    folder = Path(folder)
    try:
        told = [_json(path) for path in sorted(folder.glob("*.json"))]
        found = [_experiment(folder, some) for some in told if "experiment" in some]
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise Rejected(f"{folder}: a file here is no manifest ({error!r})") from None
    return {experiment.name: experiment for experiment in found}


def _experiment(folder: Path, told: dict) -> Experiment:
    plan = [Entry(entry["role"], entry["seed"], dict(entry["at"])) for entry in told["runs"]]
    names = [entry["record"] for entry in told["runs"]]
    made = [_made(folder, *planned) for planned in zip(plan, names, strict=True)]
    return Experiment(told["experiment"], plan, [entry for entry in made if entry])


def _made(folder: Path, entry: Entry, name: str) -> Entry | None:
    """The entry with what was made of it; None where that is not there."""
    record, measure = folder / f"{name}.jsonl", folder / f"{name}.json"
    if record.is_file():
        return replace(entry, run=read(record))
    if measure.is_file():
        return replace(entry, measure={**_json(measure), "name": name})
    return None


def _json(path: Path) -> dict:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Rejected(f"{path}: not JSON ({error})") from None
    if not isinstance(told, dict):
        raise Rejected(f"{path}: expected a JSON object")
    return told
