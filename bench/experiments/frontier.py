"""The frontier: given T seconds in all, how many for the SAE's own training, and what then?

An SAE is trained on reconstruction at a step size that does not fall (the trunk). At a share of T
every arm forks from it, gets the rest of T, and lets its step size fall to 0: `mse` goes on with
reconstruction, Adam included; the others adapt. Seconds become steps by what a step was measured
to take; a record has the seconds that its own took.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config.method import STEPS, MethodRequest, own_label
from bench.config.spec import Spec, own_training
from bench.errors import Rejected, Usage
from bench.experiments.job import Job, seeded
from bench.runs import tuned

if TYPE_CHECKING:
    from bench.experiments.scales import Scale

SCHEDULE = "warmup=0.03:decay=1"
ARMS = {
    "mse": f"mse:adam=kept:{SCHEDULE}",
    "lora": f"lora:{SCHEDULE}",
    "e2e": f"e2e:{SCHEDULE}",
    "e2e-mse": f"e2e:loss=kl+mse:{SCHEDULE}",
    "joint": f"joint:{SCHEDULE}",
    "affine": f"affine:{SCHEDULE}",
    "sae-lora": f"sae_lora:rank=64:{SCHEDULE}",
    "sae-lora-2": f"sae_lora:rank=2:{SCHEDULE}",
    "lora-keep": f"lora:keep=1:{SCHEDULE}",
    "mse-weighted": f"mse:adam=kept:weighted=true:{SCHEDULE}",
    "ridge": "ridge",
}
"""Arm -> its label, the step size aside."""
MAIN = ("mse", "lora", "e2e")
"""The arms that fork at every share of T, run longest and on most seeds."""
SCRATCH = "e2e-scratch"
QUARTER = 0.25
"""The share of T that every arm gets; the comparisons decided before the runs are made there."""
FORKS = (QUARTER, 0.05, 0.5)
"""The shares of T that the main arms get."""
CONTROLS = {
    "frozen": {"mse": ":freeze=W_dec", "lora": "", "e2e": ":freeze=W_dec"},
    "shuffled": {"lora": "", "e2e": ""},
}
"""Decoder of a control's SAE -> its arms, with what their labels add."""
MEASURED = ("mse", "lora", "e2e", "e2e-mse", "joint", "sae-lora", "lora-keep")
"""The arms, with `mse-lora`, that are measured for what they did to the latents."""


@dataclass(frozen=True)
class Frontier:
    """One setting of the frontier."""

    spec: Spec
    """`sae_set` keeps the step size of its own SAE from falling."""
    steps: dict[str, int]
    """Arm -> its steps in a quarter of T; `e2e-scratch` -> its steps in all of T."""
    rates: dict[str, str]
    """Arm -> the settings that `bench tune` chose for it, such as `lr=1e-3`; others do not run."""
    seeds: tuple[int, ...]
    """Of the main arms."""
    others: tuple[int, ...] = ()
    """Of the other arms, the other forks and the controls: none where it has only the main ones."""
    trunk: float = 1.0
    """The share of T that its own SAE is trained for: no less than to the last fork."""
    tuned_in: str = "results/frontier-tuning"
    """The folder of that choice."""


def frontier(scale: "Scale") -> Iterator[Job]:
    """Every arm from the same SAE, with the rest of T (SmolLM2-135M, T = 1,800 s on two cores)."""
    yield from _plan(scale.frontiers["frontier"])


def frontier_long(scale: "Scale") -> Iterator[Job]:
    """The main arms with three times as long."""
    yield from _plan(scale.frontiers["frontier-long"])


def _plan(setting: Frontier) -> Iterator[Job]:
    """Seed by seed, so that a sitting that is broken off leaves whole seeds; other forks last.

    Raises `Usage` where a main arm has not been tuned; another one is left out until it has.
    """
    for arm in MAIN:
        if arm not in setting.rates:
            place = f"{setting.tuned_in}/{tuned.FILE}"
            raise Usage(f"'{arm}' is not tuned: expected it in {place}")
    arms = [arm for arm in ARMS if arm not in MAIN and arm in setting.rates]
    for seed in setting.seeds:
        yield _trunk(setting, seed)
        for arm in MAIN:
            yield _arm(setting, seed, arm)
    for seed in setting.others:
        for arm in arms:
            yield _arm(setting, seed, arm)
        yield _annealed_first(setting, seed)
        if SCRATCH in setting.rates:
            yield _from_scratch(setting, seed)
        yield from _controls(setting, seed)
    for seed, share, arm in product(setting.others, FORKS[1:], MAIN):
        yield _arm(setting, seed, arm, share)


def _trunk(setting: Frontier, seed: int, sae: str = "trained") -> Job:
    spec = replace(seeded(setting.spec, seed), sae_decoder=sae)
    place = ("trunk", own_label(spec), own_training(spec), seed, {"sae": _name(sae)})
    return Job(*place, run_seed=spec.sae_seed, trains_own=spec)


def _arm(
    setting: Frontier,
    seed: int,
    arm: str,
    share: float = QUARTER,
    sae: str = "trained",
    add: str = "",
) -> Job:
    label = f"{ARMS[arm]}{add}:{setting.rates[arm]}"
    spec = _forked(setting, seed, share, setting.steps[arm], sae)
    return Job(arm, label, spec, seed, {"fork": share, "sae": _name(sae)})


def _forked(setting: Frontier, seed: int, share: float, steps: int, sae: str = "trained") -> Spec:
    """The spec of a run that starts from the trunk at 1 - `share`; `steps` fill a quarter of T."""
    n_steps = max(1, round(steps * share / QUARTER))
    spec = seeded(setting.spec, seed)
    at = round((1 - share) / setting.trunk, 2)
    return replace(spec, sae_share=at, steps=n_steps, sae_decoder=sae)


def _annealed_first(setting: Frontier, seed: int) -> Job:
    """LoRA around a finished SAE: `mse` anneals it in the first half, LoRA has the second."""
    first = _arm(setting, seed, "mse")
    half = replace(first, spec=replace(first.spec, steps=max(1, first.spec.steps // 2)))
    lora = _arm(setting, seed, "lora")
    spec = replace(lora.spec, steps=max(1, lora.spec.steps // 2))
    at = {"fork": QUARTER, "sae": "own"}
    # Other windows than those that the first half has just read.
    return Job("mse-lora", lora.label, spec, seed, at, run_seed=seed + 100, after=half)


def _from_scratch(setting: Frontier, seed: int) -> Job:
    """The SAE trained end to end for all of T."""
    spec = seeded(setting.spec, seed)
    training = replace(own_training(spec), steps=setting.steps[SCRATCH])
    label = f"{ARMS['e2e']}:{setting.rates[SCRATCH]}"
    at = {"fork": 1.0, "sae": "own"}
    return Job(SCRATCH, label, training, seed, at, run_seed=spec.sae_seed)


def _controls(setting: Frontier, seed: int) -> Iterator[Job]:
    """The main arms around SAEs whose decoder directions mean nothing."""
    for sae, arms in CONTROLS.items():
        if sae == "frozen":
            yield _trunk(setting, seed, sae)
        for arm, add in arms.items():
            yield _arm(setting, seed, arm, sae=sae, add=add)


def _name(decoder: str) -> str:
    return "own" if decoder == "trained" else decoder


def _measuring(measure: str) -> Callable[["Scale"], Iterator[Job]]:
    """The plan of a measurement of the arms at a quarter of T."""

    def plan(scale: "Scale") -> Iterator[Job]:
        setting = scale.frontiers["frontier"]
        for seed in setting.others:
            there = [arm for arm in MEASURED if arm in setting.rates]
            runs = {arm: _arm(setting, seed, arm) for arm in there}
            runs["mse-lora"] = _annealed_first(setting, seed)
            for arm in runs:
                yield replace(runs[arm], after=runs[arm], measure=measure)

    plan.__name__ = f"frontier_{measure.replace('-', '_')}"
    plan.__doc__ = f"The measure `{measure}` of the arms."
    return plan


LIKE = {"sae-lora-2": "sae-lora", "lora-keep": "lora", "mse-weighted": "mse"}
"""Arm -> the arm whose step size it has: it is not tuned itself."""
TUNED_ON = ("model", "site", "text", "sae_k", "sae_width", "seq_len", "batch_size")
"""Fields of the spec that a choice is for; around a trunk's SAE also these."""
OF_TRUNK = ("sae", "sae_lr", "sae_set", "sae_tokens")


def rates(spec: Spec, folder: Path, scratch: Path) -> dict[str, str]:
    """Arm -> the settings in `folder`/tuned.json, those of `e2e-scratch` in `scratch`; {} without.

    Raises `Rejected` for a damaged file, or one of another setting than `spec`.
    """
    chosen = _chosen(folder, {name: getattr(spec, name) for name in (*TUNED_ON, *OF_TRUNK)})
    found = {arm: chosen[label] for arm, label in ARMS.items() if label in chosen}
    found |= {arm: found[other] for arm, other in LIKE.items() if other in found}
    from_scratch = {name: getattr(spec, name) for name in TUNED_ON}
    of_scratch = _chosen(scratch, from_scratch).get(ARMS["e2e"])
    return found | ({SCRATCH: of_scratch} if of_scratch else {})


def _chosen(folder: Path, wanted: dict[str, Any]) -> dict[str, str]:
    """Label without its steps -> the settings that were chosen for it, on a spec as `wanted`."""
    if not (folder / tuned.FILE).exists():
        return {}
    file = tuned.read(folder)
    try:
        if differ := [name for name in wanted if file["spec"].get(name) != wanted[name]]:
            raise Rejected(f"{folder / tuned.FILE}: tuned with another {', '.join(differ)}")
        choices = {label: one["choice"].items() for label, one in file["methods"].items()}
        return {
            MethodRequest(label).without(STEPS).label: ":".join(
                f"{field}={value:{tuned.DIGITS}}" for field, value in choice
            )
            for label, choice in choices.items()
        }
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Rejected(f"{folder / tuned.FILE}: not a file of `tune`") from None


MEASURES = ("no-sae", "latents", "effects", "probing")
PLANS = (frontier, frontier_long, *map(_measuring, MEASURES))
