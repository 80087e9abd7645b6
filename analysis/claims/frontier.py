"""The claims decided from the experiment `frontier`: random directions, low ranks, step sizes.

The docstring of each function is its claim's rule, in the words that are printed; these were fixed
before any of its runs. Intervals are of 95%, over seeds and documents together; all arms are those
that got a quarter of the time (fork 0.25), and losses are on the validation set.
"""

from collections.abc import Iterator
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from analysis.claims.evidence import (
    Evidence,
    Finding,
    Missing,
    Untestable,
    above,
    below,
    interval,
    minus,
    nats,
    paired,
    table,
    three_ways,
)
from analysis.stats.crossed import Estimate, Table, crossed, equivalence, ratio
from analysis.stats.frontier import LEVEL, MARGIN, PRIMARY
from analysis.stats.gap import Loss, difference, end_losses, spliced_losses
from analysis.stats.usable import ends, spliced
from analysis.tables.notes import percent
from bench.io.record import Run

RANKS = (2, 64)
"""Of the pairs on the SAE's own weights, as in Karvonen's data."""
TIMES = (5, 30)
"""LoRA's best step size over that of `full`."""
RANKS_APART = 8
"""A rate that fell as the root of the rank would differ by more than a grid step from here on."""


def as_much_around_random_directions(case: Evidence) -> Finding:
    """LoRA and e2e each close the same share of the gap around a trained SAE and around one of
    equal L0 whose decoder has random frozen directions (e2e leaves them frozen): equal within 2.5%
    of the gap (two one-sided tests at 5%), in CE and in KL, where the share around the trained SAE
    is 5% or more. Refuted where one interval of the difference lies outside. The SAE with shuffled
    decoder rows is shown beside them and does not decide."""
    rows, equal, outside, words = [], [], [], []
    for method, around in _around(case).items():
        around = dict(zip(around, case.of_shared_seeds(*around.values()), strict=True))
        _equal_l0(around["own"], around["frozen"])
        for outcome in _outcomes(*around.values()):
            shares = {sae: _shares(runs, outcome) for sae, runs in around.items()}
            means = {sae: crossed(values) for sae, values in shares.items()}
            if means["own"].value < 2 * MARGIN:
                closes = percent(means["own"].value)
                raise Untestable(f"{method} closes {closes} around the trained SAE, needs 5%")
            less = [crossed(_less(shares["own"], shares[sae])) for sae in list(shares)[1:]]
            p = equivalence(less[0], MARGIN)
            equal.append(p is not None and p < LEVEL)
            outside.append(above(less[0], MARGIN) or below(less[0], -MARGIN))
            closed = [percent(mean.value) for mean in means.values()]
            rows.append([method, outcome.upper(), *closed, *map(_points, less)])
            words.append(f"{method} in {outcome.upper()} {_points(less[0])}")
    saes = ["random", "shuffled"][: len(less)]
    heads = ["method", "in", "trained", *saes, *(f"trained less {sae}" for sae in saes)]
    ours = f"trained less random: {'; '.join(words)}"
    return three_ways(all(equal), any(outside), ours, [table(heads, rows)])


def _around(case: Evidence) -> dict[str, dict[str, dict[int, Run]]]:
    """Method -> SAE -> its runs; `shuffled` where both methods ran around it."""

    def runs(*saes: str) -> dict[str, dict[str, dict[int, Run]]]:
        return {
            method: {sae: case.runs("frontier", method, fork=PRIMARY, sae=sae) for sae in saes}
            for method in ("lora", "e2e")
        }

    try:
        return runs("own", "frozen", "shuffled")
    except Missing:
        return runs("own", "frozen")


def _equal_l0(*groups: dict[int, Run]) -> None:
    """Raise `Untestable` unless the L0 of what each seed starts from is equal within 10%."""
    for runs in paired(*groups):
        l0 = [run.header.get("l0_full") or 0.0 for run in runs]
        if max(l0) > 1.1 * min(l0):
            raise Untestable(f"L0 of {min(l0):.1f} and {max(l0):.1f}, needs equal ones within 10%")


def _outcomes(*groups: dict[int, Run]) -> Iterator[Loss]:
    """`ce`, and `kl` where every record has it."""
    yield "ce"
    runs = [run for group in groups for run in group.values()]
    if all(spliced_losses(run, "kl") and end_losses(run, "kl") for run in runs):
        yield "kl"


def _shares(runs: dict[int, Run], outcome: Loss = "ce") -> Table:
    """Seed -> run -> share of the gap closed, [seed][document], made linear: its mean is the share
    of all, its spread what the share's error comes of."""
    before, after = spliced(runs, outcome), ends(runs, outcome)
    clean = {seed: run.header["ce_full_clean"] for seed, run in runs.items()}
    if outcome == "kl":  # The clean model's from itself.
        clean = {seed: [0.0] * len(losses) for seed, losses in before.items()}
    gains, gaps = minus(before, after), minus(before, clean)
    gap = fmean(map(fmean, gaps))
    if gap <= 0:
        raise Untestable("no gap to close")
    share = fmean(map(fmean, gains)) / gap
    return [
        [share + (a - share * b) / gap for a, b in zip(*of_seed, strict=True)]
        for of_seed in zip(gains, gaps, strict=True)
    ]


def _less(ours: Table, theirs: Table, times: float = 1.0) -> Table:
    """`ours` - `times` * `theirs`, [seed][document]."""
    pairs = zip(ours, theirs, strict=True)
    return [[a - times * b for a, b in zip(*pair, strict=True)] for pair in pairs]


def _points(difference: Estimate) -> str:
    """A difference of shares, in points of the gap."""
    return f"{difference.value:+.1%}{interval(difference, '{:+.1%}')}"


def low_rank_on_the_sae(case: Evidence) -> Finding:
    """Low-rank pairs on the SAE's own weights get more than half of what e2e on all of them gains
    in CE in the same time: the whole interval of the ratio of gains above 50%, at rank 2 and at
    rank 64. Refuted where one lies below."""
    e2e = case.runs("frontier", "e2e", fork=PRIMARY, sae="own")
    e2e, *low_rank = case.of_shared_seeds(e2e, *_low_rank(case))
    whole, ratios = minus(spliced(e2e), ends(e2e)), {}
    if not above(crossed(whole)) and len(e2e) > 1:
        raise Untestable(f"e2e gains {nats(crossed(whole))}, needs an interval above 0")
    for runs in low_rank:
        rank = next(iter(runs.values())).header["config"].get("rank")
        ratios[rank] = ratio(minus(spliced(runs), ends(runs)), whole)
    words = [f"{r.value:.0%}{interval(r, '{:.0%}')} at rank {n}" for n, r in ratios.items()]
    ours = f"of the gain of e2e: {', '.join(words)}" if words else ""
    absent = [str(rank) for rank in RANKS if rank not in ratios]
    if absent:
        raise Missing(f"sae_lora in frontier at rank {' and '.join(absent)}", ours)
    both = [ratios[rank] for rank in RANKS]
    holds, refuted = all(above(r, 0.5) for r in both), any(below(r, 0.5) for r in both)
    return three_ways(holds, refuted, ours)


def _low_rank(case: Evidence) -> list[dict[int, Run]]:
    """The runs of each rank that was planned."""
    roles = [role for role in case.plan("frontier").roles if role in ("sae-lora", "sae-lora-2")]
    return [case.runs("frontier", role, fork=PRIMARY, sae="own") for role in roles]


def keeps_the_model(case: Evidence) -> Finding:
    """Without the SAE, LoRA trained with the extra KL (lora-keep) is at most half as far above the
    clean model as plain LoRA, and it closes at least nine tenths of the share of the gap that
    plain LoRA closes (CE; the whole interval of each difference). Refuted where one lies on the
    other side."""
    place: dict[str, object] = {"fork": PRIMARY, "sae": "own"}
    harms: list[Table] = []
    shares: list[Table] = []
    for role in ("lora-keep", "lora"):
        measures = case.measures("frontier-no-sae", role, **place)
        without, clean = (
            {seed: values[f"ce_{kind}"] for seed, (values, _) in measures.items()}
            for kind in ("without_sae", "clean")
        )
        harms.append(minus(without, clean))
        shares.append(_shares({seed: run for seed, (_, run) in measures.items()}))
    if len(harms[0]) != len(harms[1]):
        raise Missing("the same seeds of lora-keep and lora")
    harm, share = crossed(_less(harms[0], harms[1], 0.5)), crossed(_less(shares[0], shares[1], 0.9))
    if len(harms[1]) > 1 and not above(crossed(harms[1])):
        raise Untestable(f"LoRA harms by {nats(crossed(harms[1]))}, needs an interval above 0")
    numbers = [crossed(values).value for values in (*harms, *shares)]
    ours = "without the SAE {:+.4f} nats with the extra KL, {:+.4f} without it".format(*numbers)
    ours += "; closes {:.1%} and {:.1%} of the gap".format(*numbers[2:])
    details = [
        f"Harm less half of LoRA's: {nats(harm)}. Share less nine tenths of LoRA's, in points of "
        f"the gap: {_points(share)}."
    ]
    holds, refuted = below(harm) and above(share), above(harm) or below(share)
    return three_ways(holds, refuted, ours, details)


def frozen_thresholds(case: Evidence) -> Finding:
    """On a JumpReLU SAE, e2e with frozen thresholds ends no more than 2.5% of the gap above e2e
    that trains them (CE; the whole interval of the difference), and moves L0 by less, in the
    median over seeds. Refuted where the interval lies above that, or L0 moves by more."""
    at = next((e.at for e in case.plan("frontier").of("e2e-frozen")), None)
    if at is None:
        raise Missing("e2e-frozen of frontier, which was not planned")
    frozen, e2e = case.runs("frontier", "e2e-frozen", **at), case.runs("frontier", "e2e", **at)
    frozen, e2e = case.of_shared_seeds(frozen, e2e)
    kinds = {run.header["sae"].get("kind") for run in (*frozen.values(), *e2e.values())}
    if kinds != {"jumprelu"}:
        raise Untestable(f"SAEs of kind {', '.join(map(str, kinds))}, needs jumprelu")
    clean = {seed: run.header["ce_full_clean"] for seed, run in frozen.items()}
    margin = MARGIN * difference(spliced(frozen), clean).value
    between, moved = difference(ends(frozen), ends(e2e)), [_moved(runs) for runs in (frozen, e2e)]
    ours = f"frozen minus trained {nats(between)}, margin {margin:.4f}"
    ours += "; L0 moves by {:.1%} and {:.1%}".format(*moved)
    holds = below(between, margin) and moved[0] < moved[1]
    return three_ways(holds, above(between, margin) or moved[0] > moved[1], ours)


def _moved(runs: dict[int, Run]) -> float:
    """By which share training changed L0, median over seeds."""
    pairs = [(run.header.get("l0_full"), (run.end or {}).get("l0_full")) for run in runs.values()]
    if any(None in pair for pair in pairs):
        raise Missing("L0 before and after")
    return median(abs(after / before - 1) for before, after in pairs)  # type: ignore[operator]


def lora_wants_larger_steps(case: Evidence) -> Finding:
    """The best step size of LoRA is 5 to 30 times that of a full finetune (`bench tune`, chosen by
    KL; both inside what was tried). Refuted where the ratio is outside by more than a step of the
    grid, in which it is known."""
    tuned = case.tuned()
    lora, full = (_tuned(tuned, name) for name in ("lora", "full"))
    times = lora["choice"]["lr"] / full["choice"]["lr"]
    ours = f"{lora['choice']['lr']:g} over {full['choice']['lr']:g}: {times:.1f} times"
    step = max(_grid(lora), _grid(full))
    least, most = TIMES
    if least <= times <= most:
        return Finding(True, ours)
    far = times < least / step or times > most * step
    near = f"within a grid step ({step:.1f} times) of {least} to {most} times"
    return Finding(False if far else None, ours, guard=near * (not far))


def steps_do_not_depend_on_rank(case: Evidence) -> Finding:
    """At fixed alpha, LoRA's best step sizes at two ranks, one 8 times the other or more, are the
    same or neighbours on the grid (`bench tune`, chosen by KL; both inside what was tried).
    Refuted where they lie further apart."""
    ranks: dict[int, dict[str, Any]] = {}
    for label, found in case.tuned().items():
        name, *settings = str(found.get("label", label)).replace(",", ":").split(":")
        pairs = dict(setting.split("=", 1) for setting in settings if "=" in setting)
        if name == "lora" and float(pairs.get("alpha", 16)) == 16:
            ranks[int(pairs.get("rank", 16))] = found
    if len(ranks) < 2:
        raise Missing("a tuning of `lora` at two ranks and one alpha")
    low, high = min(ranks), max(ranks)
    if high < RANKS_APART * low:
        raise Untestable(f"ranks {low} and {high}, needs {RANKS_APART} times")
    rates = [_inside(ranks[rank], f"lora at rank {rank}") for rank in (low, high)]
    ours = f"{rates[0]:g} at rank {low}, {rates[1]:g} at rank {high}"
    step = max(_grid(ranks[low]), _grid(ranks[high]))
    return Finding(max(rates) <= 1.01 * step * min(rates), ours)


def _tuned(tuned: dict[str, Any], name: str) -> dict[str, Any]:
    """What was chosen for a method with its default settings, or else its first."""
    labels = sorted((label for label in tuned if label.split(":")[0] == name), key=len)
    if not labels:
        raise Missing(f"a tuning of `{name}`")
    _inside(tuned[labels[0]], name)
    return dict(tuned[labels[0]])


def _inside(found: dict[str, Any], name: str) -> float:
    """The step size chosen; `Untestable` where it is the first or the last that was tried."""
    if not found.get("interior"):
        raise Untestable(f"the best step size of {name} is on the edge of those tried")
    return float(found["choice"]["lr"])


def _grid(found: dict[str, Any]) -> float:
    """The largest factor between neighbours of the step sizes that were tried."""
    rates = sorted({float(tried["settings"]["lr"]) for tried in found["tried"]})
    return max((high / low for low, high in pairwise(rates)), default=1.0)
