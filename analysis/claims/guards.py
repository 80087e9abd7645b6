"""What a verdict takes for it to be about the claim and not about the budget: one table.

A guard that fails makes a verdict `untestable here`, with the number that is too small. The guards
were written after the runs of `laptop`, whose verdicts they take back; they can only take back.
"""

from collections.abc import Callable
from functools import partial
from statistics import fmean

from analysis.claims.evidence import Evidence, minus, paired
from analysis.stats.crossed import crossed
from analysis.stats.usable import ends
from bench.io.record import Run

Guard = Callable[[Evidence], str]
"""Why a claim cannot be tested on what it used, such as `8,192 tokens of adaptation, needs 1M`; ""
where it can. May raise `Missing`, like a rule."""

ALIKE = 0.25
"""Share of the gap by which the bare SAEs may differ that adaptation is to make equal."""
SEEDS = 2
ERRORS = 2
"""Of its own over documents, by which a gap is to be above 0 for a share of it to mean anything."""


def adapted(case: Evidence, least: int) -> str:
    """Every run of adaptation that was used has as many tokens."""
    return _few([run for _, run in case.used.values() if not _fresh(run)], "adaptation", least)


def equal_tokens(case: Evidence, least: int) -> str:
    """As `adapted`, and all have the same number."""
    tokens = {run.rows[-1]["tokens"] for _, run in case.used.values()}
    unequal = f"{min(tokens):,} to {max(tokens):,} tokens, needs equal ones"
    return unequal if len(tokens) > 1 else adapted(case, least)


def trained(case: Evidence, experiment: str) -> str:
    """The SAEs from scratch were trained on 10 million tokens, both ways."""
    both = [case.runs(experiment, role) for role in ("mse", "e2e")]
    return _few([run for runs in both for run in runs.values()], "the SAE", 10_000_000)


def a_fair_rival(case: Evidence, experiment: str) -> str:
    """e2e from scratch ends no higher than local training, in the mean: it is no straw man."""
    e2e, mse = case.runs(experiment, "e2e"), case.runs(experiment, "mse")
    paired(e2e, mse)
    worse = crossed(minus(ends(e2e), ends(mse))).value
    return f"e2e ends {worse:.3f} nats above local training, needs 0" if worse > 0 else ""


def alike(case: Evidence) -> str:
    """The earliest SAE alone is within a quarter of the gap of the whole one."""
    early = min(case.values("timing", "share", "lora"))
    first, last = case.runs("timing", "lora", share=early), case.runs("timing", "lora", share=1.0)
    parts = [_mean(one, "spliced") - _mean(whole, "spliced") for one, whole in paired(first, last)]
    apart = fmean(parts) / fmean(_mean(w, "spliced") - _mean(w, "clean") for w in last.values())
    return f"the SAEs alone are {apart:.0%} of the gap apart, needs {ALIKE:.0%}" * (apart > ALIKE)


def several_seeds(case: Evidence) -> str:
    """No verdict from one seed."""
    return f"1 seed, needs {SEEDS}" if case.seeds < SEEDS else ""


def a_clear_gap(case: Evidence) -> str:
    """The gap of every SAE that was used is two errors above 0."""
    for name, (_, run) in case.used.items():
        if not _fresh(run):
            gap = crossed(
                minus({0: run.header["ce_full_spliced"]}, {0: run.header["ce_full_clean"]})
            )
            if gap.value < ERRORS * (gap.error or 0):
                return (
                    f"a gap of {gap.value:.3f} ± {gap.error:.3f} nats in {name}, needs two errors"
                )
    return ""


GEMMA, LLAMA = (
    (partial(trained, experiment=name), partial(a_fair_rival, experiment=name))
    for name in ("timing", "timing-llama")
)
GUARDS: dict[str, tuple[Guard, ...]] = {
    "C1": (partial(adapted, least=1_000_000),),
    "C7": GEMMA,
    "C8": GEMMA,
    "C9": LLAMA,
    "C11": (alike,),
    "C12": (partial(adapted, least=1_000_000),),
    "C13": GEMMA,
    "K1": (partial(adapted, least=10_000_000),),
    "K2": (partial(equal_tokens, least=10_000_000),),
    "B1": GEMMA,
    "B2": GEMMA[:1],
}
"""Claim -> what it takes. (The papers adapt for 15M tokens, and train SAEs for 400M and more.)"""

EVERY: tuple[Guard, ...] = (several_seeds, a_clear_gap)
"""What every verdict takes."""


def failed(claim: str, case: Evidence) -> str:
    """The guards of a claim that fail on what it used, in words; "" where none does."""
    found = [guard(case) for guard in (*GUARDS.get(claim, ()), *EVERY)]
    return "; ".join(filter(None, found))


def _few(runs: list[Run], of: str, least: int) -> str:
    tokens = min(run.rows[-1]["tokens"] for run in runs)
    short = f"{tokens:,} tokens of {of}, needs {least // 1_000_000}M"
    return short if tokens < least else ""


def _fresh(run: Run) -> bool:
    return run.header["sae"].get("source") == "fresh"


def _mean(run: Run, kind: str) -> float:
    """CE of the `clean` or the `spliced` model, mean over documents."""
    return fmean(run.header[f"ce_full_{kind}"])
