"""`python -m bench tune`: the step size of each method, all chosen in the same way.

On a development SAE, of a seed that no comparison has, and on windows that serve nothing else.
"""

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from math import fsum, inf
from statistics import fmean
from typing import Any

from bench.config.method import MethodRequest, load, tuned_fields
from bench.config.method_files import as_typed
from bench.config.request import Request
from bench.config.spec import MADE_HERE, Spec, as_recorded
from bench.errors import RunFailed, Usage
from bench.io import locks, ranks
from bench.io.console import say
from bench.io.files import new_json
from bench.io.record import Run, read_folder
from bench.runs import tuned
from bench.runs.compare import check_request, compare, raise_worst

FACTOR = 2.5
"""Between two neighbouring rates."""
FIRST = (-2, -1, 0, 1)
"""The rates that every method has, as powers of `FACTOR` times where it starts."""
MOST = 8
"""Rates of a method at most."""
SEED = 500
"""Of the runs; and added to that of the SAE. No comparison has either."""


def tune(request: Request, methods: list[MethodRequest]) -> None:
    """Choose the step sizes of these methods on the spec of `request`, one after the other.

    Runs are records in the folder of `request`, and those that are there are not run again; what
    is chosen is in its `tuned.json`. Raises `Usage` for a method without anything to tune, or a
    folder of another spec, `RunFailed` where every rate of a method diverged.
    """
    methods = list(dict.fromkeys(methods))
    for asked in methods:
        if not tuned_fields(load(asked)):
            raise Usage(f"'{asked.label}': nothing to tune, its Config has no lr")
        asked.spec_of(request.spec)
    request = replace(request, spec=development(request.spec))
    check_request(request)
    out = request.out
    with locks.held(out, "tuning", f"the tuning in {out}"):
        file = begun(request)
        for asked in methods:
            entry, runs = tuned_one(request, asked, file["methods"])
            file["methods"][asked.label] = entry
            file |= {"model": runs[0].header["model"], "command": shlex.join(_command())}
            new_json(out / tuned.FILE, file)
            say(table(entry))
    left = [asked.without(*tuned_fields(load(asked))) for asked in methods]
    labels = ",".join(as_typed(asked.label) for asked in left)
    say(f"\nwritten: {out / tuned.FILE}; with what was chosen:")
    say(f"    {ranks.start_as_typed()} compare --methods {labels} --tuned {out}")


def development(spec: Spec) -> Spec:
    """The spec that step sizes are chosen on."""
    seed = spec.sae_seed + SEED if spec.sae in MADE_HERE else spec.sae_seed
    return replace(spec, sae_seed=seed, held_out="tuning")


def begun(request: Request) -> dict[str, Any]:
    """What is in the folder by now; `Usage` where that is of another spec."""
    spec = asdict(request.spec)
    if not (request.out / tuned.FILE).exists():
        return {"spec": spec, "model": {}, "command": "", "methods": {}}
    file = tuned.read(request.out)
    if differ := [k for k, v in as_recorded(file).items() if v != spec.get(k)]:
        raise Usage(f"{request.out}: tuned with another {', '.join(differ)}: expected a new --out")
    return file


def tuned_one(
    request: Request, asked: MethodRequest, entries: dict[str, Any]
) -> tuple[dict[str, Any], list[Run]]:
    """(the entry of one method, the runs that it is made from)."""
    start, runs = starts(request.spec, asked, entries), dict[int, Run]()

    def score(powers: list[int]) -> dict[int, float]:
        new = runs_of(request, [at_rate(asked, start, power) for power in powers])
        runs.update(zip(powers, new, strict=True))
        return {power: kl_of(run) for power, run in zip(powers, new, strict=True)}

    kls = search(score)
    choice, order = best(kls), sorted(kls)
    if kls[choice] == inf:
        raise RunFailed(f"'{asked.label}': all of {len(kls)} rates diverged, in {request.out}")
    tried = [about(runs[power], start) for power in order]
    return {
        "method": asked.name,
        "label": asked.label,
        "choice": tried[order.index(choice)]["settings"],
        "interior": is_interior(kls),
        "seconds": fsum(one["seconds"] for one in tried),
        "steps": asked.spec_of(request.spec).steps,
        "tried": tried,
    }, list(runs.values())


def search(score: Callable[[list[int]], dict[int, float]]) -> dict[int, float]:
    """Power of `FACTOR` -> KL at its rate: more rates beside the best, until it is interior."""
    kls = score([*FIRST])
    while not is_interior(kls) and len(kls) < MOST:
        kls |= score([min(kls) - 1 if best(kls) == min(kls) else max(kls) + 1])
    return kls


def best(kls: dict[int, float]) -> int:
    """The power with the least KL; of equal ones the smallest."""
    return min(kls, key=lambda power: (kls[power], power))


def is_interior(kls: dict[int, float]) -> bool:
    """Whether the best has a neighbour on both sides."""
    return min(kls) < best(kls) < max(kls)


def starts(spec: Spec, asked: MethodRequest, entries: dict[str, Any]) -> dict[str, float]:
    """Field -> the value that is in the middle of its rates: the label's own or the default.

    Where the method says so, it is what was chosen for another method, if that was tuned before.
    """
    entry = load(asked)
    fields = tuned_fields(entry)
    values = {field: entry.settings[field] for field in fields}
    for field, name in fields.items():
        other = tuned.find(entries, asked, spec, name) if name else None
        if other and field not in asked.fields:
            values[field] = other["choice"]["lr"]
    return values


def at_rate(asked: MethodRequest, start: dict[str, float], power: int) -> MethodRequest:
    """The method with its rates this power of `FACTOR` away from the start, all of them."""
    asked = asked.without(*start)
    for field, value in start.items():
        asked = asked.with_setting(field, format(value * FACTOR**power, tuned.DIGITS))
    return asked


def runs_of(request: Request, methods: list[MethodRequest]) -> list[Run]:
    """The records of these methods, run where they are not there yet; `Fault` for one that failed.

    A record is known by what was run: another label may have made it.
    """
    ended = compare(request, methods, [SEED])
    raise_worst({name: how for name, how in ended.failed.items() if how[0] != "diverged"})
    made = {
        _key(run.header["method"], run.header["config"], run.header["spec"]["steps"]): run
        for run in read_folder(request.out, ended.names)
    }
    entries = [load(asked) for asked in methods]
    return [made[_key(e.name, e.settings, e.asked.spec_of(request.spec).steps)] for e in entries]


def _key(method: str, config: dict[str, Any], steps: int) -> str:
    return repr([method, sorted(config.items()), steps])


def kl_of(run: Run) -> float:
    """KL(clean || adapted) at the end of a run, the mean over its documents; inf if it diverged."""
    kls: list[Any] = [None] if run.status == "diverged" else (run.end or {})["kl_full"]
    return inf if None in kls else fmean(kls)


def about(run: Run, fields: dict[str, float]) -> dict[str, Any]:
    """What `tuned.json` says of a run."""
    kl, losses = kl_of(run), (run.end or {}).get("ce_full") or [None]
    return {
        "settings": {field: run.header["config"][field] for field in fields},
        "kl": None if kl == inf else kl,
        "ce": None if None in losses else fmean(losses),
        "status": run.status,
        "seconds": run.rows[-1]["seconds"] if run.rows else 0.0,
        "record": run.name,
    }


def table(entry: dict[str, Any]) -> str:
    """The rates of a method, the chosen one marked."""
    lines = [
        f"\n{entry['label']}, {entry['steps']:,} steps",
        f"  {'KL':>37}{'CE':>10}{'seconds':>10}",
    ]
    for one in entry["tried"]:
        rate = " ".join(f"{k}={v:{tuned.DIGITS}}" for k, v in one["settings"].items())
        losses = [one["status"] if one[k] is None else f"{one[k]:.4f}" for k in ("kl", "ce")]
        mark = "*" if one["settings"] == entry["choice"] else " "
        lines.append(f"{mark} {rate:<27}{losses[0]:>10}{losses[1]:>10}{one['seconds']:>10,.1f}")
    if not entry["interior"]:
        lines.append(f"* the last of {len(entry['tried'])} rates that were tried: not interior")
    return "\n".join(lines)


def _command() -> list[str]:
    return [*ranks.start_of_command().split(), *sys.argv[1:]]
