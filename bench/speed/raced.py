"""What a race comes to: medians, how far the losses may be apart, the lines below the pairs."""

from statistics import median

from bench.io.console import say

TOLERANCE = {"float32": 1e-4, "coarse": 5e-2}
"""How far the two losses may be apart, relative to the loss: where both sides multiply in float32,
and where either is coarser (bfloat16 or TF32)."""
RANDOM = "random weights: step time and memory are honest, losses are not"


def coarser(sides):
    """The formats coarser than float32 that are in use on either side, by name."""
    found = {"bfloat16" for side in sides.values() if side["dtype"] == "bfloat16"}
    return sorted(found | {"TF32" for side in sides.values() if side["tf32"]})


def tolerance(sides):
    """How far the losses of these sides may be apart, relative to the loss."""
    return TOLERANCE["coarse" if coarser(sides) else "float32"]


def add_summary(result):
    """Add medians over the pairs, the peaks of their memory, and what the weights allow to say."""
    pairs = result["pairs"]
    ratios = [pair["plain"]["seconds"] / pair["ours"]["seconds"] for pair in pairs]
    result["median_seconds"] = over_pairs(pairs, "seconds", median)
    result["ratio"] = median(ratios)
    result["ratio_range"] = [min(ratios), max(ratios)]
    result["device_peak_bytes"] = over_pairs(pairs, "device_peak_bytes", max)
    floor = result["floor"]
    rate = floor["operations"] / result["median_seconds"]["ours"]
    floor["fraction_of_peak"] = rate / floor["peak"] if floor["peak"] else None
    if result["weights"] == "random":
        result["note"] = RANDOM


def over_pairs(pairs, field, function):
    """A number of the pairs' `field` for each side."""
    return {side: function(pair[side][field] for pair in pairs) for side in ("ours", "plain")}


def describe(result):
    """The lines below the pairs."""
    seconds, sides = result["median_seconds"], result["sides"]
    low, high = result["ratio_range"]
    say(
        f" median {'':11} {'':11} {result['largest_difference']:8.0e} {seconds['ours']:8.3f} "
        f"{seconds['plain']:8.3f}  {result['ratio']:.2f}x ({low:.2f} to {high:.2f})"
    )
    formats = " or ".join(coarser(sides)) or "float32"
    say(f"the losses may differ by {result['tolerance']:.0e} of the plain one ({formats})")
    if sides["ours"]["dtype"] != sides["plain"]["dtype"]:
        say(f"the LM: ours {sides['ours']['dtype']}, plain {sides['plain']['dtype']}")
    if "note" in result:
        say(result["note"])
    if "share_of_step" in result:
        shares = ", ".join(f"{k} {100 * v:.0f}%" for k, v in result["share_of_step"].items())
        say(f"our time: {shares}")
    describe_floor(result["floor"], seconds["ours"])
    describe_memory(result)
    spent = result["harness_seconds"]
    say(f"harness: {1000 * spent:.1f} ms a step, {100 * spent / seconds['ours']:.2f}%")


def describe_floor(floor, seconds):
    """What a step must multiply, and what share of the card it takes."""
    least = floor["operations"] / floor["rate"]
    say(
        f"floor: {floor['operations'] / 1e9:.0f} GFLOP at {floor['rate'] / 1e9:.0f} GFLOP/s = "
        f"{least:.3f} s; our step takes {seconds / least:.2f} times that"
    )
    if floor["fraction_of_peak"] is not None:
        say(f"our step: {100 * floor['fraction_of_peak']:.0f}% of the card's bfloat16 peak")


def describe_memory(result):
    """Peaks of both sides: above the model on a CPU, and with it."""
    above, whole = result["peak_bytes"], result["device_peak_bytes"]
    if None not in above.values():
        say(f"peak memory above the loaded model: {side_by_side(above)}")
    where = "of the process" if result["sides"]["ours"]["device"] == "cpu" else "on the device"
    say(f"peak memory {where}, model included: {side_by_side(whole)}")


def side_by_side(found):
    """Bytes of both sides in words."""
    ours, plain = (found[side] / 2**20 for side in ("ours", "plain"))
    return f"{ours:,.0f} MiB, plain {plain:,.0f} MiB ({plain / ours:.1f} times ours)"
