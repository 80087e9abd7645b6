"""The claims about how much of the gap is closed, and by what.

The docstring of each function is its claim's rule, in the words that are printed. The rules were
fixed before the runs that they decide on were made.
"""

import itertools
import math
from collections.abc import Iterable
from statistics import StatisticsError, correlation, median

from analysis.claims.evidence import Evidence, Finding, Missing, block_of, closed, nats, table
from analysis.stats.gap import difference
from analysis.stats.usable import ends, spliced
from analysis.tables.notes import percent
from bench.io.record import Run

FALLS = -0.7
"""A rank correlation from here down counts as falling."""

ENOUGH_TO_ADAPT = 1_000_000
"""Tokens of adaptation below which a share says nothing about the papers' (15M and more)."""


def closes_a_third(case: Evidence) -> Finding:
    """LoRA on the layers after the whole SAE closes 30 to 55% of the gap, in the median over the
    runs of sparsity, width, layer and rank, or of rivals where none of these ran; decided by runs
    of 1M tokens of adaptation or more."""
    runs = [run for name in ("sparsity", "width", "layer", "rank") for run in _all(case, name)]
    runs = runs or list(case.runs("rivals", "lora", share=1.0).values())
    shares = [closed({0: run}).share for run in runs]
    least, most = percent(min(shares)), percent(max(shares))
    ours = f"{percent(median(shares))} ({least} to {most} over {len(runs)} runs)"
    fewest = min(run.rows[-1]["tokens"] for run in runs)
    if fewest < ENOUGH_TO_ADAPT:
        raise Missing(f"runs of 1M tokens of adaptation or more (here {fewest:,})", ours)
    return Finding(0.3 <= median(shares) <= 0.55, ours)


def _all(case: Evidence, experiment: str) -> list[Run]:
    """The runs of LoRA of a whole sweep; none where it did not run."""
    if experiment not in case.experiments:
        return []
    places = [entry.at for entry in case.plan(experiment).of("lora")]
    return [run for at in places for run in case.runs(experiment, "lora", **at).values()]


def falls_with_l0(case: Evidence) -> Finding:
    """At rank 64, or the largest below it, the closed share falls with the SAE's L0: the rank
    correlation over three values or more is -0.7 or less."""
    ours, found = _swept(case, "sparsity", "k", most=64)
    falls = _rank_correlation(found, [share for share, _ in found.values()]) <= FALLS
    return Finding(falls, ours)


def falls_with_width(case: Evidence) -> Finding:
    """At rank 64, or the largest below it, the closed share is larger at the narrowest SAE than at
    the widest, and its fall per doubling over the wider half of the values is at most half of
    that over the narrower half."""
    ours, found = _swept(case, "width", "width", most=64)
    widths = list(found)
    ends_at = [widths[0], widths[len(widths) // 2], widths[-1]]
    narrow, wide = (
        (found[low][0] - found[high][0]) / math.log2(high / low)
        for low, high in itertools.pairwise(ends_at)
    )
    return Finding(found[widths[0]][0] > found[widths[-1]][0] and wide <= narrow / 2, ours)


def peaks_in_the_middle(case: Evidence) -> Finding:
    """At the largest rank, the closed share is largest at a layer that is neither the first nor
    the last of three or more, and the gain in nats rises with the layer (rank correlation 0.7 or
    more)."""
    ours, found = _swept(case, "layer", "layer")
    layers = list(found)
    inside = max(layers, key=lambda at: found[at][0]) in layers[1:-1]
    rises = _rank_correlation(found, [gain for _, gain in found.values()]) >= -FALLS
    gains = ", ".join(f"{gain:.4f} at {at}" for at, (_, gain) in found.items())
    return Finding(inside and rises, ours, [f"Gain in nats by layer: {gains}."])


def _swept(
    case: Evidence, experiment: str, variable: str, most: float = math.inf
) -> tuple[str, dict]:
    """A sweep at its largest rank up to `most` -> (the shares in words, value -> (share, nats))."""
    ranks = [rank for rank in case.values(experiment, "rank", "lora") if rank <= most]
    if not ranks:
        raise Missing(f"a rank up to {most} in experiment {experiment}")
    found = {}
    for value in sorted(case.values(experiment, variable, "lora")):
        runs = case.runs(experiment, "lora", rank=max(ranks), **{variable: value})
        found[value] = closed(runs), -difference(ends(runs), spliced(runs)).mean
    if len(found) < 3:
        raise Missing(f"three values of {variable} or more")
    told = ", ".join(f"{percent(c.share, c.error)} at {value:,}" for value, (c, _) in found.items())
    values = {value: (share.share, gain) for value, (share, gain) in found.items()}
    return f"{told} ({variable}; rank {max(ranks)})", values


def _rank_correlation(one: Iterable, other: list) -> float:
    """Spearman's; 0 where one of the two does not vary."""
    ranks = [[sorted(values).index(value) for value in values] for values in (list(one), other)]
    try:
        return correlation(*ranks)
    except StatisticsError:
        return 0.0


def rank_one_gives_most(case: Evidence) -> Finding:
    """With alpha fixed, as in the paper, the largest rank closes more than rank 1; rank 1 closes at
    least half of that; and the upper half of the steps in rank adds less than the lower half."""
    rows, told, holds = [], [], {}
    for alpha in case.values("rank", "alpha", "lora"):
        found = {}
        for rank in sorted(case.values("rank", "rank", "lora")):
            found[rank] = closed(case.runs("rank", "lora", rank=rank, alpha=alpha))
        if len(found) < 3 or 1 not in found:
            raise Missing("rank 1 and two more")
        shares = [one.share for one in found.values()]
        middle = shares[len(shares) // 2]
        diminishes = shares[-1] - middle < middle - shares[0]
        holds[alpha] = shares[-1] > shares[0] >= shares[-1] / 2 and diminishes
        word = "holds" if holds[alpha] else "does not hold"
        rows.append([alpha, *(percent(c.share, c.error) for c in found.values()), word])
        part = f"{shares[0] / shares[-1]:.0%}" if shares[-1] > 0 else "no share"
        told.append(f"rank 1 closes {part} of what rank {max(found)} does with alpha {alpha}")
    if "fixed" not in holds:
        raise Missing("a series with alpha fixed")
    why = "With alpha fixed the update's scale, alpha over rank, falls as the rank grows."
    heads = ["alpha", *(f"rank {rank}" for rank in found), "by the rule"]
    details = [f"Gap closed by rank. {why}", table(heads, rows)]
    return Finding(holds["fixed"], "; ".join(told), details)


def persists_in_larger_models(case: Evidence) -> Finding:
    """At 9B and at 27B parameters, LoRA of the largest rank closes at least half of the share that
    it closes at 2B."""
    models = case.values("size", "model", "lora")
    rank, found = max(case.values("size", "rank", "lora"), default=None), {}
    for model in models:
        found[str(model).lower()] = closed(case.runs("size", "lora", model=model, rank=rank))
    ours = ", ".join(f"{percent(c.share, c.error)} on {m}" for m, c in found.items())
    of = {s: [c.share for m, c in found.items() if f"-{s}" in m] for s in ("2b", "9b", "27b")}
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
    found = {layer: closed(case.runs("one-layer", "lora", layer=layer)) for layer in layers}
    site = block_of(next(iter(case.used.values()))[1].header["spec"].get("site"))
    if site is not None and layers[0] != site + 1:
        raise Missing(f"layer {site + 1}, the one right after the SAE, adapted alone")
    shares = [one.share for one in found.values()]
    part = shares[0] / every.share if every.share > 0 else 0.0
    trend = _rank_correlation(layers, shares)
    each = ", ".join(f"{percent(c.share, c.error)} at {at}" for at, c in found.items())
    details = [f"{each}; all after: {percent(every.share, every.error)}."]
    ours = f"layer {layers[0]} closes {part:.0%} of what all do; rank correlation {trend:+.1f}"
    return Finding(part >= 0.5 and trend <= FALLS, ours, details)


def many_saes(case: Evidence) -> Finding:
    """At every number of SAEs LoRA lowers CE by two standard errors over documents or more, and at
    every number above one by more nats than with one."""
    rows, gains, clear = [], {}, True
    for number in sorted(case.values("multi-sae", "saes", "lora")):
        runs = case.runs("multi-sae", "lora", saes=number)
        gain, share = difference(ends(runs), spliced(runs)), closed(runs)
        clear = clear and gain.mean < 0 and gain.distinguishable
        gains[number] = -gain.mean
        rows.append([number, nats(gain), percent(share.share, share.error)])
    if 1 not in gains or len(gains) < 2:
        raise Missing("one SAE, and several at once")
    holds = clear and all(gain > gains[1] for number, gain in gains.items() if number > 1)
    ours = ", ".join(f"-{gain:.3f} nats with {number}" for number, gain in gains.items())
    heads = ["SAEs", "CE, LoRA minus spliced", "gap closed"]
    return Finding(holds, ours, [table(heads, rows)])
