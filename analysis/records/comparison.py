"""A folder of records -> comparisons: the runs that faced one problem and may be ranked."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from bench.errors import Rejected, Usage
from bench.io.record import Run, digest, read_folder
from bench.io.schema import KINDS, Header, Row, fields_of, is_a, required

Value = TypeVar("Value")
Key = TypeVar("Key")

REFERENCE = "none"
"""The method that leaves the spliced model as it is: a reference, never a rival."""

RIVAL = "e2e"
"""The method that speedups are measured against when it ran."""

RATES = ("lr", "shrink")
"""Fields of a config that a search varies, `sae_lr` along with `lr`."""
RATE = re.compile(r"\b(?:sae_)?(?:lr|shrink)=[^:,]+[:,]?")
"""The same in a label."""

NOT_THE_PROBLEM = ("sae", "sae_seed", "device", "steps")
"""Fields of a spec that may differ inside one problem: an SAE is known by its hash or its recipe,
not by its path; a device changes the clock only; a run may be longer than others."""


@dataclass(frozen=True)
class Comparison:
    """The runs on one problem: same spec, same SAE (or SAEs of one recipe, one per seed)."""

    runs: dict[str, list[Run]]
    """Label -> its runs by seed; `none` first, then labels in the order they were started."""
    notes: tuple[str, ...] = ()
    """What a reader has to know about how these runs were put together."""

    @property
    def all(self) -> list[Run]:
        """Every run."""
        return [run for runs in self.runs.values() for run in runs]

    @property
    def spec(self) -> dict[str, Any]:
        """What was run on; the first run's, equal for all but for `NOT_THE_PROBLEM`."""
        return self.all[0].header["spec"]

    @property
    def seeds(self) -> list[int]:
        """All seeds, sorted."""
        return sorted({run.header["seed"] for run in self.all})

    @property
    def random(self) -> bool:
        """Whether the model's weights are random, so that no CE here means anything."""
        return self.all[0].header.get("weights") == "random"

    @property
    def ce_clean(self) -> float:
        """CE of the clean model on the curve set, nats per scored token."""
        return self.all[0].header["ce_clean"]

    @property
    def ce_spliced(self) -> float:
        """CE of the spliced model on the curve set, nats per scored token; mean over SAEs."""
        return fmean(_by_sae(self.all).values())

    @property
    def one_sae(self) -> bool:
        """Whether all runs start from the same SAE."""
        return len(_by_sae(self.all)) == 1

    @property
    def gap(self) -> float:
        """What splicing costs on the curve set, nats per scored token."""
        return self.ce_spliced - self.ce_clean

    @property
    def documents(self) -> int:
        """How many documents the full set has; 0 when the records have no CE per document."""
        return len(self.all[0].header.get("ce_full_clean") or [])

    @property
    def one_clock(self) -> bool:
        """Whether all runs were timed on one machine, device, threads, matrix product and
        number of processes."""
        return len({clock(run.header) for run in self.all}) == 1

    @property
    def trained(self) -> dict[str, list[Run]]:
        """`runs` without the reference."""
        return {k: runs for k, runs in self.runs.items() if runs[0].header["method"] != REFERENCE}

    @property
    def search(self) -> dict[str, list[list[Run]]]:
        """Label without what was tried -> the runs of each value of it; {} unless these are a
        search: three step sizes or more of every method."""
        lines = grouped(self.trained.items(), lambda pair: RATE.sub("", pair[0]).rstrip(":"))
        tried = {name: [runs for _, runs in pairs] for name, pairs in lines.items()}
        rates = [{rate(runs[0]) for runs in values} for values in tried.values()]
        return tried if all(len(of_line) >= 3 for of_line in rates) else {}

    @property
    def rival(self) -> str | None:
        """Label of the rival: the first e2e, else the first label started; None without runs."""
        labels = list(self.trained)
        e2e = [k for k in labels if self.trained[k][0].header["method"] == RIVAL]
        return next(iter(e2e + labels), None)


def rate(run: Run) -> tuple[str, float]:
    """(field, value) of the config that a search varies; ("", 0) of a method that has none."""
    found = [(name, run.header["config"].get(name)) for name in RATES]
    return next(((name, float(value)) for name, value in found if value is not None), ("", 0.0))


def clock(header: dict[str, Any]) -> tuple[Any, ...]:
    """What seconds depend on: (machine, device, threads, matmul, processes). The processes are in
    words, "" for one."""
    number = header.get("world_size", 1)
    words = f"{number} processes" + ", sharded" * header.get("sharded", False)
    fields = ("machine", "device", "threads", "matmul")
    return (*(header.get(field) for field in fields), "" if number == 1 else words)


def grouped(values: Iterable[Value], key: Callable[[Value], Key]) -> dict[Key, list[Value]]:
    """`key(value)` -> the values that have it, both in the order of the values."""
    groups: dict[Key, list[Value]] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return groups


def load(folder: Path, names: list[str] | None = None) -> list[Comparison]:
    """The records directly in `folder` -> list of `Comparison`, in the order they were started.

    `names`, where given, are the only records that are read.

    Records of the training of an SAE that other runs here start from are not rivals of these
    runs: they are left out, unless a problem from a fresh SAE was compared here as well.
    Raises `Usage` when there is no such folder and `Rejected` when it holds no sound record.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise Usage(f"no folder '{folder}': expected one that holds records (*.jsonl)")
    runs = _read(folder, names)
    if not runs:
        raise Rejected(f"{folder}: no records (*.jsonl) here")
    named = {run.header["sae"].get("run") for run in runs}
    problems = _problems(runs)
    rivals = [p for p in problems if not all(_fresh(run) and run.name in named for run in p)]
    return [_comparison(problem) for problem in rivals or problems]


def _read(folder: Path, names: list[str] | None) -> list[Run]:
    try:
        runs = read_folder(folder, names)
    except (AttributeError, TypeError, ValueError, OSError) as error:
        raise Rejected(f"{folder}: a file here is not a record ({error})") from None
    for run in runs:
        _check(run)
    return runs


def _check(run: Run) -> None:
    """Raise `Rejected` unless each required field is of its kind, and each number finite."""
    lines = [(Header, run.header), *((Row, row) for row in run.rows)]
    for number, (line, values) in enumerate(lines, start=1):
        for name in required(line):
            kind, value = fields_of(line)[name].kind, values[name]
            if not is_a(kind, value) or (isinstance(value, float) and not math.isfinite(value)):
                expected = KINDS[kind][0]
                raise Rejected(f"{run.path}:{number}: {name} {value!r}, expected {expected}")
    full = [run.header.get("ce_full_clean"), run.header.get("ce_full_spliced")]
    full.append((run.end or {}).get("ce_full"))
    if len({len(losses) for losses in full if losses}) > 1:
        raise Rejected(f"{run.path}: ce_full, ce_full_clean and ce_full_spliced differ in length")


def _problems(runs: list[Run]) -> list[list[Run]]:
    """Runs -> lists of runs on one problem each."""
    recipes = {run.name: _recipe(run) for run in runs}

    def setting(run: Run) -> str:
        sae = run.header["sae"]
        origin = "fresh" if _fresh(run) else recipes.get(sae.get("run"), sae.get("sha256"))
        return digest([_spec(run), origin, sae.get("share"), run.header.get("weights")])

    return [problem for alike in grouped(runs, setting).values() for problem in _split(alike)]


def _split(runs: list[Run]) -> list[list[Run]]:
    """One SAE per seed is one problem, like one SAE for all; two SAEs at one seed are two."""
    saes = {(run.header["seed"], _sae(run)) for run in runs}
    one_each = len(saes) == len({seed for seed, _ in saes})
    return [runs] if one_each else list(grouped(runs, _sae).values())


def _comparison(runs: list[Run]) -> Comparison:
    """Put runs under their labels; of a run that lies here twice, the later one counts."""
    labels: dict[str, dict[int, Run]] = {}
    notes = []
    if len({len(run.header.get("ce_full_clean") or []) for run in runs}) > 1:
        raise Rejected(f"{runs[0].path.parent}: records of one spec with unequal ce_full_clean")
    for run in runs:
        by_seed = labels.setdefault(_label(run, runs), {})
        seed = run.header["seed"]
        if seed in by_seed:
            notes.append(f"{by_seed[seed].name} is left out: {run.name} is the same, run later")
        by_seed[seed] = run
    if len(_by_sae(runs)) > 1:
        notes.append("each seed has its own SAE: CE is drawn at the mean of their gaps")
    ordered = sorted(labels, key=lambda label: not _is_reference(labels[label]))
    return Comparison({k: [labels[k][s] for s in sorted(labels[k])] for k in ordered}, tuple(notes))


def _label(run: Run, runs: list[Run]) -> str:
    """A run's label, with the settings that tell it from others under the same label."""
    configs = [_settings(other) for other in runs if other.label == run.label]
    config = _settings(run)
    differ = [k for k in config if any(other.get(k) != config[k] for other in configs)]
    settings = ",".join(f"{k}={config[k]}" for k in differ)
    return run.label + ("," if ":" in run.label else ":") * bool(settings) + settings


def _settings(run: Run) -> dict[str, Any]:
    """A run's config and steps; the reference takes none."""
    steps = {} if run.header["method"] == REFERENCE else {"steps": run.header["spec"].get("steps")}
    return run.header["config"] | steps


def _is_reference(by_seed: dict[int, Run]) -> bool:
    return all(run.header["method"] == REFERENCE for run in by_seed.values())


def _by_sae(runs: list[Run]) -> dict[str | None, float]:
    return {_sae(run): run.header["ce_spliced"] for run in runs}


def _sae(run: Run) -> str | None:
    return run.header["sae"].get("sha256")


def _spec(run: Run) -> dict[str, Any]:
    return {k: v for k, v in run.header["spec"].items() if k not in NOT_THE_PROBLEM}


def _recipe(run: Run) -> str:
    """What made an SAE, its seed aside."""
    return digest([run.header["method"], _settings(run), _spec(run)])


def _fresh(run: Run) -> bool:
    return run.header["sae"].get("source") == "fresh"
