"""`python -m bench speed`: our step against the plain one, in turn, on the same tokens.

Two processes: one drives the method as `compare` does, the other runs `bench.reference` and
nothing of ours. Both start from the same adapters, take the same batches and must show the same
loss at every step.
"""

import json
from pathlib import Path
from statistics import median

from bench import method
from bench.errors import Rejected, RunFailed, Unavailable, Usage
from bench.files import new_text
from bench.preflight import check_inputs, check_model
from bench.progress import say
from bench.provenance import provenance
from bench.record import digest
from bench.spec import block_of

TOLERANCE = 1e-4
"""How far the two losses may be apart, relative to the loss."""
WARM_UP = 1
"""Pairs that are run and checked but not timed."""


def speed(spec, labels, sets=(), pairs=5, out="runs"):
    """Race each method; a table of each and a JSON file of all that was measured.

    Raises `RunFailed` where the losses are not the same.
    """
    method.check_names(labels, sets)
    if pairs < 1:
        raise Usage(f"--pairs must be at least 1, got {pairs}")
    out = Path(out)
    check_inputs(spec, out)
    # The paper's step size: no step is slower for it, and rounding does not run away with the
    # losses, as it does where large steps meet a TopK.
    sets = [*(f"{name}.lr=5e-5" for name in ("lora", "e2e")), *sets]
    entries = [method.entry(label, sets) for label in labels]
    for entry in entries:
        check_reference(spec, entry)
    folder, config = check_model(spec, entries)
    if not config["model_type"].startswith(("llama", "gemma")):
        raise Rejected(f"speed: the plain step is for Llama and Gemma, not {config['model_type']}")
    filling, worst = prepare(spec, folder, entries[0], sets, pairs), 0.0
    for entry in entries:
        result = race(spec, folder, entry, sets, pairs)
        result["fill_seconds_per_token"] = filling
        worst = max(worst, result["largest_difference"])
        identity = [result["label"], result["spec"], result["matmul"]]
        path = out / f"speed-{digest(identity)[:8]}.json"
        new_text(path, json.dumps(result, indent=1) + "\n")
        say(f"wrote {path}")
    if worst > TOLERANCE:
        raise RunFailed(f"the losses differ by up to {worst:.1e}, {TOLERANCE:.0e} is allowed")


def check_reference(spec, entry):
    """Raise `Usage` for what the plain step cannot do, `Unavailable` without PEFT."""
    import importlib.util

    if entry.name not in ("lora", "e2e"):
        raise Usage(f"speed: there is no plain step of '{entry.name}', expected lora or e2e")
    if getattr(entry.config, "dropout", 0) or getattr(entry.config, "loss", "kl") != "kl":
        raise Usage(f"speed: '{entry.label}': dropout and losses other than kl cannot be compared")
    if spec.weights == "random" or (spec.scored == "not-special" and not spec.prepend_bos):
        raise Usage("speed: expected pretrained weights, and not-special only with a BOS put first")
    after_block = spec.site.endswith(("hook_resid_post", "hook_out")) and "+" not in spec.site
    if not after_block or spec.spliced != spec.scored:
        raise Usage(
            "speed: expected one site after a block, and the same positions spliced and scored"
        )
    if entry.name == "lora" and importlib.util.find_spec("peft") is None:
        raise Unavailable("speed compares with PEFT: pip install 'splicebench[speed]'")


def prepare(spec, folder, entry, sets, pairs):
    """Train the SAE and fill the cache in a process that takes its memory away with it."""
    from bench.race import Ours
    from bench.side import Side

    if spec.sae != "own" and not spec.cache_clean:
        return None
    side = Side(Ours, spec, str(folder), entry.label, sets, WARM_UP + pairs + 3)
    filling = side.call("prepare")
    side.close()
    if filling:
        took = filling * spec.batch_size * spec.seq_len
        say(f"filling the cache of the clean side took {took:.2f} s a batch, once")
    return filling


def race(spec, folder, entry, sets, pairs):
    """Both sides of one method, step by step in turn -> what was measured, as JSON values."""
    from bench.race import Ours, Plain
    from bench.side import Side

    cached = ", clean side from the cache" if spec.cache_clean else ""
    say(f"\n{entry.label}, {spec.batch_size} x {spec.seq_len} tokens, {spec.model}{cached}")
    taken = WARM_UP + pairs
    ours = Side(Ours, spec, str(folder), entry.label, sets, taken + 3)
    begun = ours.call("start")
    settings = plain_settings(spec, entry, begun)
    plain = Side(Plain, str(folder), begun["sae"], block_of(spec.site), settings)
    plain.call("start", begun["weights"])
    say(f"{'pair':>7} {'loss ours':>11} {'plain':>11}   differ   s ours    plain  ratio")
    rows = []
    for number in range(taken):
        mine = ours.call("step")
        theirs = plain.call("step", mine.pop("tokens"))
        difference = abs(mine["loss"] - theirs["loss"]) / abs(theirs["loss"])
        rows.append({"ours": mine, "plain": theirs, "difference": difference})
        name = "warm-up" if number < WARM_UP else str(number - WARM_UP + 1)
        say(
            f"{name:>7} {mine['loss']:11.6f} {theirs['loss']:11.6f} {difference:8.0e} "
            f"{mine['seconds']:8.2f} {theirs['seconds']:8.2f}  "
            f"{theirs['seconds'] / mine['seconds']:.2f}x"
        )
    result = {
        "label": entry.label,
        "config": entry.settings,
        "spec": vars(spec),
        **provenance(spec),
        "pairs": rows[WARM_UP:],
        "warm_up": rows[:WARM_UP],
        "largest_difference": max(row["difference"] for row in rows),
        "peak_bytes": {"ours": ours.call("peak"), "plain": plain.call("peak")},
    }
    plain.close()
    result["share_of_step"] = ours.call("profile")
    result["floor"] = ours.call("floor")
    result["harness_seconds"] = ours.call("overhead")
    ours.close()
    result |= summary(result)
    describe(result)
    return result


def plain_settings(spec, entry, begun):
    """What `Reference` wants to know besides the folders and the layer."""
    config = entry.config
    settings = {"lr": config.lr, "clip": config.clip, "skipped": int(spec.scored != "all")}
    if entry.name == "lora":
        names = [name.split(".lora_")[0].split(".") for name in begun["weights"]]
        settings["adapters"] = {
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": 0.0,
            "target_modules": sorted({name[-1] for name in names}),
            "layers_to_transform": sorted({int(name[4]) for name in names}),
            "task_type": "CAUSAL_LM",
        }
    return settings


def summary(result):
    """Medians over the pairs."""
    pairs = result["pairs"]
    ratios = [pair["plain"]["seconds"] / pair["ours"]["seconds"] for pair in pairs]
    seconds = {side: median(pair[side]["seconds"] for pair in pairs) for side in ("ours", "plain")}
    return {
        "median_seconds": seconds,
        "ratio": median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def describe(result):
    """The lines below the pairs."""
    seconds, floor = result["median_seconds"], result["floor"]
    low, high = result["ratio_range"]
    say(
        f" median {'':11} {'':11} {result['largest_difference']:8.0e} {seconds['ours']:8.2f} "
        f"{seconds['plain']:8.2f}  {result['ratio']:.2f}x ({low:.2f} to {high:.2f})"
    )
    shares = ", ".join(f"{k} {100 * v:.0f}%" for k, v in result["share_of_step"].items())
    say(f"our time: {shares}")
    least = floor["operations"] / floor["rate"]
    say(
        f"floor: {floor['operations'] / 1e9:.0f} GFLOP at {floor['rate'] / 1e9:.0f} GFLOP/s = "
        f"{least:.2f} s; our step takes {seconds['ours'] / least:.2f} times that"
    )
    peak = result["peak_bytes"]
    if None not in peak.values():
        say(
            f"peak memory above the loaded model: {peak['ours'] / 2**20:,.0f} MiB, plain "
            f"{peak['plain'] / 2**20:,.0f} MiB ({peak['plain'] / peak['ours']:.1f} times ours)"
        )
    spent = result["harness_seconds"]
    say(f"harness: {1000 * spent:.1f} ms a step, {100 * spent / seconds['ours']:.2f}%")
