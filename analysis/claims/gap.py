"""The claims about how much of the gap is closed, and by what.

The docstring of each function is its claim's rule, in the words that are printed.
"""

import itertools
import math
from collections.abc import Iterable
from statistics import StatisticsError, correlation, median
from typing import Any

from analysis.claims.evidence import (
    Evidence,
    Finding,
    Missing,
    below,
    block_of,
    closed,
    interval,
    nats,
    table,
)
from analysis.stats.crossed import Estimate
from analysis.stats.gap import difference
from analysis.stats.usable import ends, spliced
from analysis.tables.notes import percent
from bench.io.record import Run

FALLS = -0.7
"""A rank correlation from here down counts as falling."""


def closes_a_third(case: Evidence) -> Finding:
    """LoRA on the layers after the whole SAE closes 30 to 55% of the gap, in the median over the
    runs of sparsity, width, layer and rank, or of rivals where none of these ran."""
    runs = {}
    for name in ("sparsity", "width", "layer", "rank"):
        runs.update({run.name: run for run in _all(case, name)})
    runs = runs or {r.name: r for r in case.runs("rivals", "lora", share=1.0).values()}
    shares = [closed({0: run}).value for run in runs.values()]
    least, most = percent(min(shares)), percent(max(shares))
    ours = f"{percent(median(shares))} ({least} to {most} over {len(runs)} runs)"
    return Finding(0.3 <= median(shares) <= 0.55, ours)


def closes_a_third_by_finetuning(case: Evidence) -> Finding:
    """e2e on KL + MSE from a trained SAE closes 20 to 50% of the gap, seeds and documents pooled
    (experiment frontier, a quarter of the time, on the validation set)."""
    share = closed(case.runs("frontier", "e2e-mse", fork=0.25, sae="own"))
    ours = f"{percent(share.value)}{interval(share, '{:.1%}')}"
    return Finding(0.2 <= share.value <= 0.5, ours)


def _all(case: Evidence, experiment: str) -> list[Run]:
    """The runs of LoRA of a whole sweep; none where it did not run."""
    if experiment not in case.experiments:
        return []
    places = [entry.at for entry in case.plan(experiment).of("lora")]
    return [run for at in places for run in case.runs(experiment, "lora", **at).values()]


def falls_with_l0(case: Evidence) -> Finding:
    """At rank 64, or the largest below it, the closed share falls with the SAE's L0: the rank
    correlation over three values or more is -0.7 or less."""
    ours, shares, _ = _swept(case, "sparsity", "k", most=64)
    return Finding(_rank_correlation(shares, shares.values()) <= FALLS, ours)


def falls_with_width(case: Evidence) -> Finding:
    """At rank 64, or the largest below it, the closed share is larger at the narrowest SAE than at
    the widest, and its fall per doubling over the wider half of the values is at most half of
    that over the narrower half."""
    ours, shares, _ = _swept(case, "width", "width", most=64)
    first, *_, last = widths = list(shares)
    halves = itertools.pairwise([first, widths[len(widths) // 2], last])
    narrow, wide = ((shares[low] - shares[high]) / math.log2(high / low) for low, high in halves)
    return Finding(shares[first] > shares[last] and wide <= narrow / 2, ours)


def peaks_in_the_middle(case: Evidence) -> Finding:
    """At the largest rank, the closed share is largest at a layer that is neither the first nor
    the last of three or more, and the gain in nats rises with the layer (rank correlation 0.7 or
    more)."""
    ours, shares, gains = _swept(case, "layer", "layer")
    inside = max(shares, key=shares.__getitem__) in list(shares)[1:-1]
    rises = _rank_correlation(gains, gains.values()) >= -FALLS
    words = ", ".join(f"{gain:.4f} at {layer}" for layer, gain in gains.items())
    return Finding(inside and rises, ours, [f"Gain in nats by layer: {words}."])


def _swept(
    case: Evidence, experiment: str, variable: str, most: float = math.inf
) -> tuple[str, dict[Any, float], dict[Any, float]]:
    """A sweep at its largest rank up to `most` -> (the shares in words, value -> share of the gap
    closed, value -> gain in nats)."""
    ranks = [rank for rank in case.values(experiment, "rank", "lora") if rank <= most]
    if not ranks:
        raise Missing(f"a rank up to {most} in experiment {experiment}")
    by_value, gains = {}, {}
    for value in sorted(case.values(experiment, variable, "lora")):
        runs = case.runs(experiment, "lora", rank=max(ranks), **{variable: value})
        by_value[value], gains[value] = closed(runs), difference(spliced(runs), ends(runs)).value
    if len(by_value) < 3:
        raise Missing(f"three values of {variable} or more")
    words = _in_words({f"{value:,}": closed for value, closed in by_value.items()})
    shares = {value: closed.value for value, closed in by_value.items()}
    return f"{words} ({variable}; rank {max(ranks)})", shares, gains


def _in_words(closed: dict[Any, Estimate], before: str = "at") -> str:
    """Value -> share closed there, as `12.0% ± 1.0 at 8, ...`."""
    return ", ".join(f"{percent(c.value, c.error)} {before} {at}" for at, c in closed.items())


def _rank_correlation(*series: Iterable[float]) -> float:
    """Spearman's, of two; 0 where one of the two does not vary."""
    ranks = [[sorted(values).index(value) for value in values] for values in map(list, series)]
    try:
        return correlation(*ranks)
    except StatisticsError:
        return 0.0


def rank_one_gives_most(case: Evidence) -> Finding:
    """With alpha fixed, as in the paper, the largest rank closes more than rank 1; rank 1 closes at
    least half of that; and the upper half of the steps in rank adds less than the lower half."""
    rows, parts, holds = [], [], {}
    for alpha in case.values("rank", "alpha", "lora"):
        ranks = sorted(case.values("rank", "rank", "lora"))
        by_rank = {at: closed(case.runs("rank", "lora", rank=at, alpha=alpha)) for at in ranks}
        if len(ranks) < 3 or 1 not in ranks:
            raise Missing("rank 1 and two more")
        shares = [at_rank.value for at_rank in by_rank.values()]
        middle = shares[len(shares) // 2]
        diminishes = shares[-1] - middle < middle - shares[0]
        holds[alpha] = shares[-1] > shares[0] >= shares[-1] / 2 and diminishes
        word = "holds" if holds[alpha] else "refuted"
        rows.append([alpha, *(percent(c.value, c.error) for c in by_rank.values()), word])
        part = f"{shares[0] / shares[-1]:.0%}" if shares[-1] > 0 else "no share"
        parts.append(f"rank 1 closes {part} of what rank {max(by_rank)} does with alpha {alpha}")
    if "fixed" not in holds:
        raise Missing("a series with alpha fixed")
    why = "With alpha fixed the update's scale, alpha over rank, falls as the rank grows."
    heads = ["alpha", *(f"rank {rank}" for rank in by_rank), "by the rule"]
    details = [f"Gap closed by rank. {why}", table(heads, rows)]
    return Finding(holds["fixed"], "; ".join(parts), details)


def persists_in_larger_models(case: Evidence) -> Finding:
    """At 9B and at 27B parameters, LoRA of the largest rank closes at least half of the share that
    it closes at 2B."""
    models = case.values("size", "model", "lora")
    rank, by_model = max(case.values("size", "rank", "lora"), default=None), {}
    for model in models:
        by_model[str(model).lower()] = closed(case.runs("size", "lora", model=model, rank=rank))
    ours, sizes = _in_words(by_model, "on"), ("2b", "9b", "27b")
    of = {size: [c.value for model, c in by_model.items() if f"-{size}" in model] for size in sizes}
    if not all(of.values()):
        raise Missing("Gemma-2 with 2B, 9B and 27B parameters and SAEs of Gemma Scope", ours)
    return Finding(min(of["9b"] + of["27b"]) >= max(of["2b"]) / 2, ours)


def next_layer_gives_most(case: Evidence) -> Finding:
    """Adapting the one layer right after the SAE closes at least half of what adapting all layers
    after it closes, and over the single layers, three or more, the closed share falls with
    distance (rank correlation -0.7 or less)."""
    values = case.values("one-layer", "layer", "lora")
    layers = sorted(value for value in values if isinstance(value, int))
    if len(layers) < 3:
        raise Missing("three single layers or more")
    every = closed(case.runs("one-layer", "lora", layer="after"))
    by_layer = {layer: closed(case.runs("one-layer", "lora", layer=layer)) for layer in layers}
    site = block_of(next(iter(case.used.values()))[1].header["spec"].get("site"))
    if site is not None and layers[0] != site + 1:
        raise Missing(f"layer {site + 1}, the one right after the SAE, adapted alone")
    shares = [single.value for single in by_layer.values()]
    part = shares[0] / every.value if every.value > 0 else 0.0
    trend = _rank_correlation(layers, shares)
    details = [f"{_in_words(by_layer)}; all after: {percent(every.value, every.error)}."]
    ours = f"layer {layers[0]} closes {part:.0%} of what all do; rank correlation {trend:+.1f}"
    return Finding(part >= 0.5 and trend <= FALLS, ours, details)


def many_saes(case: Evidence) -> Finding:
    """At every number of SAEs LoRA lowers CE (the whole 95% interval, seeds and documents, is below
    0), and at every number above one by more nats than with one."""
    rows, gains, clear = [], {}, True
    for number in sorted(case.values("multi-sae", "saes", "lora")):
        runs = case.runs("multi-sae", "lora", saes=number)
        change, share = difference(ends(runs), spliced(runs)), closed(runs)
        clear = clear and below(change)
        gains[number] = -change.value
        rows.append([number, nats(change), percent(share.value, share.error)])
    if 1 not in gains or len(gains) < 2:
        raise Missing("one SAE, and several at once")
    holds = clear and all(gain > gains[1] for number, gain in gains.items() if number > 1)
    ours = ", ".join(f"-{gain:.3f} nats with {number}" for number, gain in gains.items())
    heads = ["SAEs", "CE, LoRA minus spliced", "gap closed"]
    return Finding(holds, ours, [table(heads, rows)])
