"""The result of a race: medians, how far the losses may be apart, the lines below the pairs."""

from collections.abc import Callable
from statistics import median
from typing import Any

from bench.io.console import say
from bench.speed import busy

SIDES = ("ours", "plain")
TOLERANCE = {"float32": 1e-4, "coarse": 5e-2}
"""How far the two losses may be apart, relative to the loss: where both sides multiply in float32,
and where either is coarser (bfloat16 or TF32)."""
RANDOM = "random weights: step time and memory are honest, losses are not"

Fields = dict[str, Any]
"""JSON values by name, as the race's file has them."""


def coarser(sides: Fields) -> list[str]:
    """The formats coarser than float32 that are in use on either side, by name."""
    formats = {"bfloat16" for side in sides.values() if side["dtype"] == "bfloat16"}
    return sorted(formats | {"TF32" for side in sides.values() if side["tf32"]})


def tolerance(sides: Fields) -> float:
    """How far the losses of these sides may be apart, relative to the loss."""
    return TOLERANCE["coarse" if coarser(sides) else "float32"]


def summary(race: Fields) -> Fields:
    """The fields that follow from the others: medians over the pairs, peaks of their memory, the
    fraction of the card's peak once there is a floor, and a note for random weights."""
    pairs, floor = race["pairs"], dict(race.get("floor", {}))
    ratios = [pair["plain"]["seconds"] / pair["ours"]["seconds"] for pair in pairs]
    seconds = over_pairs(pairs, "seconds", median)
    if floor:
        ours, n, peak = [pair["ours"] for pair in pairs], floor["operations"], floor["peak"]
        floor["rate"] = median(one["rate"] for one in ours)
        floor["times"] = median(one["seconds"] * one["rate"] for one in ours) / n
        floor["fraction_of_peak"] = n / seconds["ours"] / peak if peak else None
        floor = {"floor": floor}
    return {
        "median_seconds": seconds,
        "ratio": median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "device_peak_bytes": over_pairs(pairs, "device_peak_bytes", max),
        **floor,
        **({"note": RANDOM} if race["weights"] == "random" else {}),
    }


def over_pairs(pairs: list[Fields], field: str, function: Callable) -> Fields:
    """A number of the pairs' `field` for each side."""
    return {side: function(pair[side][field] for pair in pairs) for side in SIDES}


def describe(race: Fields) -> None:
    """The lines below the pairs."""
    seconds, sides = race["median_seconds"], race["sides"]
    describe_median(race)
    formats = " or ".join(coarser(sides)) or "float32"
    say(f"the losses may differ by {race['tolerance']:.0e} of the plain one ({formats})")
    if sides["ours"]["dtype"] != sides["plain"]["dtype"]:
        say(f"the LM: ours {sides['ours']['dtype']}, plain {sides['plain']['dtype']}")
    if "note" in race:
        say(race["note"])
    for field in ("share_of_step", "share_by_kind"):
        if field in race:
            shares = ", ".join(f"{k} {100 * v:.0f}%" for k, v in race[field].items())
            say(f"our time: {shares}")
    describe_floor(race["floor"])
    if None not in race["peak_bytes"].values():
        say(f"peak memory above the loaded model: {side_by_side(race['peak_bytes'])}")
    where = "of the process" if sides["ours"]["device"] == "cpu" else "on the device"
    say(f"peak memory {where}, model included: {side_by_side(race['device_peak_bytes'])}")
    harness = race["harness_seconds"]
    say(f"harness: {1000 * harness:.1f} ms a step, {100 * harness / seconds['ours']:.2f}%")
    describe_machine(race)


def describe_median(race: Fields) -> None:
    """The last line of the table."""
    seconds, (low, high) = race["median_seconds"], race["ratio_range"]
    say(
        f" median {'':11} {'':11} {race['largest_difference']:8.0e} {seconds['ours']:8.3f} "
        f"{seconds['plain']:8.3f}  {race['ratio']:.2f}x ({low:.2f} to {high:.2f})"
    )


def describe_machine(race: Fields) -> None:
    """Whether the machine was quiet enough."""
    say(busy.in_words(race["disturbance"], [pair["ours"]["seconds"] for pair in race["pairs"]]))


def describe_floor(floor: Fields) -> None:
    """The products of our step, how many times as long it takes, its share of the card's peak."""
    n, rate = floor["operations"], floor["rate"]
    say(
        f"floor: {n / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s = {n / rate:.3f} s; "
        f"our step takes {floor['times']:.2f} times that"
    )
    if floor["fraction_of_peak"] is not None:
        say(f"our step: {100 * floor['fraction_of_peak']:.0f}% of the card's bfloat16 peak")


def side_by_side(n_bytes: dict[str, int]) -> str:
    """Bytes of both sides in words."""
    ours, plain = (n_bytes[side] / 2**20 for side in SIDES)
    return f"{ours:,.0f} MiB, plain {plain:,.0f} MiB ({plain / ours:.1f} times ours)"


def describe_best(best: Fields) -> None:
    """A line for each batch that was tried, and the ratio of the best ones."""
    tried = {side: {one["batch"]: one for one in best[side]["tried"]} for side in SIDES}
    say(f"{'batch':>7} {'tokens/s ours':>15} {'plain':>11}")
    for batch in sorted({*tried["ours"], *tried["plain"]}):
        ours, plain = (tried[side].get(batch) for side in SIDES)
        parts = (ours or {}).get("micro_batch", batch)
        halved = f"  (ours in parts of {parts})" if parts < batch else ""
        say(f"{batch:7} {rate_in_words(ours):>15} {rate_in_words(plain):>11}{halved}")
    if best["ratio"]:
        ours, plain = (best[side]["batch"] for side in SIDES)
        say(f"best: {best['ratio']:.2f}x (batch {ours} against {plain})")


def rate_in_words(tried: Fields | None) -> str:
    """Tokens a second of a batch; `-` if it was not tried."""
    if tried is None:
        return "-"
    rate = tried["tokens_per_second"]
    return f"{rate:,.0f}" if rate else "no memory"
