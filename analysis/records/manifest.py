"""The manifests that `bench experiment` leaves beside its records -> experiments, as read.

`FOLDER/NAME.json` names every run of the experiment NAME with its role in it and the values of
what the experiment varies; the runs lie beside it, shared by the experiments that need them.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import Rejected
from bench.io.record import Run, read


@dataclass(frozen=True)
class Entry:
    """One run, or one measurement of a run, and its place in the experiment."""

    role: str
    """What it is there for: mostly the method's name; `additivity` has two (`lora+e2e`)."""
    seed: int
    at: dict[str, Any]
    """What the experiment varies -> its value here, such as {"share": 0.1}."""
    run: Run | None = None
    """The record, where it is a run."""
    measure: dict[str, Any] | None = None
    """The measurement (`bench.evals.measures`), where it is one."""

    @property
    def name(self) -> str:
        """The stem of its file."""
        return self.run.name if self.run else self.header["name"]

    @property
    def header(self) -> dict[str, Any]:
        """Where its setting is: the record's first line, or the measurement itself."""
        return self.run.header if self.run else self.measure or {}

    @property
    def measured(self) -> dict[str, Any]:
        """The values of the measurement; {} where there are none."""
        return (self.measure or {}).get("values") or {}


@dataclass(frozen=True)
class Experiment:
    """One experiment's entries that are there by now."""

    name: str
    plan: list[Entry]
    """All its entries."""
    entries: list[Entry]
    """Those whose record or measurement is there."""

    @property
    def roles(self) -> list[str]:
        """Its roles, in the order they were planned."""
        return list(dict.fromkeys(entry.role for entry in self.entries))

    @property
    def seeds(self) -> set[int]:
        """The seeds of what is there."""
        return {entry.seed for entry in self.entries}

    def of(self, role: str | None = None, **at: object) -> list[Entry]:
        """The entries of a role at these values, in order of seeds."""
        those = [e for e in self.entries if role in (None, e.role) and at.items() <= e.at.items()]
        return sorted(those, key=lambda entry: entry.seed)

    def runs(self, role: str | None = None, **at: object) -> list[Run]:
        """The records of `of`."""
        return runs_of(self.of(role, **at))

    def values(self, variable: str, role: str | None = None) -> list[Any]:
        """All values of what is varied, in the order they were planned."""
        places = [entry.at for entry in self.entries if role in (None, entry.role)]
        return list(dict.fromkeys(at[variable] for at in places if variable in at))


def runs_of(entries: Iterable[Entry]) -> list[Run]:
    """The records of these entries, without the measurements among them."""
    return [entry.run for entry in entries if entry.run]


def load(folder: Path) -> dict[str, Experiment]:
    """The experiments whose manifests lie in `folder`: name -> `Experiment`; {} without any.

    An entry whose file is not there yet is left out. Raises `Rejected` for a file that is no
    manifest, record or measurement.
    """
    folder = Path(folder)
    try:
        files = [_json(path) for path in sorted(folder.glob("*.json"))]
        experiments = [_experiment(folder, file) for file in files if "experiment" in file]
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise Rejected(f"{folder}: a file here is no manifest ({error!r})") from None
    return {experiment.name: experiment for experiment in experiments}


def _experiment(folder: Path, manifest: dict[str, Any]) -> Experiment:
    plan = [_entry(folder, planned) for planned in manifest["runs"]]
    return Experiment(manifest["experiment"], plan, [e for e in plan if e.run or e.measure])


def _entry(folder: Path, planned: dict[str, Any]) -> Entry:
    """One of a manifest's `runs`, with the record or measurement that lies in `folder`."""
    place, name = (planned["role"], planned["seed"], dict(planned["at"])), planned["record"]
    record, measure = folder / f"{name}.jsonl", folder / f"{name}.json"
    if record.is_file():
        return Entry(*place, run=read(record))
    return Entry(*place, measure={**_json(measure), "name": name} if measure.is_file() else None)


def _json(path: Path) -> dict[str, Any]:
    try:
        file = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Rejected(f"{path}: not JSON ({error})") from None
    if not isinstance(file, dict):
        raise Rejected(f"{path}: expected a JSON object")
    return file
