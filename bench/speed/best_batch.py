"""`speed --best-batch`: tokens a second of each side at the batch that is best for it."""

from itertools import count

from bench.io.console import say
from bench.speed.race import Ours, Plain
from bench.speed.side import Side

SIDES = ("ours", "plain")
WORTH_IT = 1.05
"""By how much twice the batch must be faster for the next one to be tried."""


def both_sides(spec, folder, entry, sets, plain):
    """The best batch of each side -> JSON values.

    `plain` is what `speed.race` says of the plain side. One side at a time: neither holds
    memory of the device while the other is looked at.
    """
    made, weights = plain
    say("best batch: ours, then plain")
    side = Side(Ours, spec, str(folder), entry.label, sets, 1)
    ours = climb(lambda batch: side.call("probe", batch))
    side.close()
    side = Side(Plain, *made)
    side.call("start", weights)
    theirs = climb(lambda batch: side.call("probe", batch, spec.seq_len))
    side.close()
    rates = [found["tokens_per_second"] for found in (ours, theirs)]
    result = {
        "ours": ours,
        "plain": theirs,
        "ratio": None if None in rates else rates[0] / rates[1],
    }
    describe(result)
    return result


def climb(probe):
    """`probe(batch)` of 1, 2, 4, ... windows until memory runs out or it is worth it no more.

    Gives the best `batch` (None if not even one window fits), its `tokens_per_second`, and all
    that was `tried`.
    """
    tried = []
    for power in count():
        found = probe(2**power)
        before = tried[-1]["tokens_per_second"] if tried else 0
        tried.append(found or {"batch": 2**power, "tokens_per_second": None})
        if not found or found["tokens_per_second"] < WORTH_IT * before:
            break
    none = {"batch": None, "tokens_per_second": None}
    fitted = [one for one in tried if one["tokens_per_second"]]
    best = max(fitted, key=lambda one: one["tokens_per_second"], default=none)
    return {**{name: best[name] for name in none}, "tried": tried}


def describe(result):
    """A line a batch, and the ratio."""
    rates = {side: {one["batch"]: one for one in result[side]["tried"]} for side in SIDES}
    say(f"{'batch':>7} {'tokens/s ours':>15} {'plain':>11}")
    for batch in sorted(set().union(*rates.values())):
        ours, plain = (rates[side].get(batch) for side in SIDES)
        parts = (ours or {}).get("micro_batch", batch)
        halved = f"  (ours in parts of {parts})" if parts < batch else ""
        say(f"{batch:7} {shown(ours):>15} {shown(plain):>11}{halved}")
    if result["ratio"]:
        ours, plain = (result[side]["batch"] for side in SIDES)
        say(f"best: {result['ratio']:.2f}x (batch {ours} against {plain})")


def shown(tried):
    """Tokens a second as they are printed."""
    if tried is None:
        return "-"
    rate = tried["tokens_per_second"]
    return f"{rate:,.0f}" if rate else "no memory"
