"""`python -m bench speed`: our step against the plain one, in turn, on the same tokens.

Two processes: one drives the method as `compare` does, the other runs `bench.speed.reference` and
nothing of ours. Both start from the same adapters, take the same batches and must show the same
loss at every step.
"""

import math
from pathlib import Path

from bench.config import method
from bench.config.spec import block_of
from bench.errors import Rejected, RunFailed, Unavailable, Usage
from bench.io.console import say
from bench.io.files import new_json
from bench.io.record import digest
from bench.runs import process
from bench.runs.preflight import asks_the_hub, check_inputs, check_model, set_environment
from bench.speed import raced

WARM_UP = 1
"""Pairs that are run and checked but not timed."""


def speed(spec, labels, sets=(), pairs=5, out="runs", plain_dtype=None, best_batch=False):
    """Race each method; a table of each and a JSON file of all that was measured.

    `plain_dtype` is the number format of the plain side's LM, that of the spec if None; with
    `best_batch` each side is then also timed at the batch that is best for it. Raises `RunFailed`
    where the losses are not the same.
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
    if best_batch and spec.cache_clean:
        raise Usage("--best-batch: not with --cache-clean, filling the cache would be timed")
    set_environment(online=asks_the_hub(spec))
    folder, config = process.call(check_model, spec, labels, sets)
    if not config["model_type"].startswith(("llama", "gemma")):
        raise Rejected(f"speed: the plain step is for Llama and Gemma, not {config['model_type']}")
    filling, apart = prepare(spec, folder, entries[0], sets, pairs), []
    for entry in entries:
        result, plain = race(spec, folder, entry, sets, pairs, plain_dtype or spec.dtype)
        result["fill_seconds_per_token"] = filling
        path = out / f"speed-{digest(identity(result, plain_dtype))[:8]}.json"
        new_json(path, result)
        if best_batch:
            from bench.speed.best_batch import both_sides

            result["best_batch"] = both_sides(spec, folder, entry, sets, plain)
            new_json(path, result)
        say(f"wrote {path}")
        if result["largest_difference"] > result["tolerance"]:
            apart.append(result)
    if apart:
        worst, allowed = (max(r[k] for r in apart) for k in ("largest_difference", "tolerance"))
        raise RunFailed(f"the losses differ by up to {worst:.1e}, {allowed:.0e} is allowed")


def identity(result, plain_dtype):
    """What names the file; a number format of the plain side counts where it is another."""
    named = [result["label"], result["spec"], result["matmul"]]
    return named + [plain_dtype] * (plain_dtype not in (None, result["spec"]["dtype"]))


def check_reference(spec, entry):
    """Raise `Usage` for what the plain step cannot do, `Unavailable` without PEFT."""
    import importlib.util

    if entry.name not in ("lora", "e2e"):
        raise Usage(f"speed: there is no plain step of '{entry.name}', expected lora or e2e")
    if getattr(entry.config, "dropout", 0) or getattr(entry.config, "loss", "kl") != "kl":
        raise Usage(f"speed: '{entry.label}': dropout and losses other than kl cannot be compared")
    if spec.weights == "random" and spec.sae == "own":
        raise Usage("speed: --sae own on random weights: expected fresh, or an SAE that is there")
    after_block = spec.site.endswith(("hook_resid_post", "hook_out")) and "+" not in spec.site
    if not after_block or spec.spliced != spec.scored:
        raise Usage(
            "speed: expected one site after a block, and the same positions spliced and scored"
        )
    if spec.scored == "not-special":
        check_not_special(spec)
    if entry.name == "lora" and importlib.util.find_spec("peft") is None:
        raise Unavailable("speed compares with PEFT: pip install 'splicebench[speed]'")


def check_not_special(spec):
    """Raise `Usage` where `not-special` is more than the first position, all the plain side knows.

    A text has no special token but the BOS that is put first; random tokens are special ones too.
    """
    if not spec.prepend_bos:
        raise Usage("speed: not-special only with a BOS put first: --prepend-bos true")
    if spec.text == "random":
        raise Usage(
            "speed: not-special on random tokens, some of which are special: expected a --text, "
            "or --spliced and --scored both not-first or all"
        )


def prepare(spec, folder, entry, sets, pairs):
    """Train the SAE and fill the cache in a process that takes its memory away with it."""
    from bench.speed.race import Ours
    from bench.speed.side import Side

    if spec.sae != "own" and not spec.cache_clean:
        return None
    side = Side(Ours, spec, str(folder), entry.label, sets, WARM_UP + pairs + 3)
    filling = side.call("prepare")
    side.close()
    if filling:
        took = filling * spec.batch_size * spec.seq_len
        say(f"filling the cache of the clean side took {took:.2f} s a batch, once")
    return filling


def race(spec, folder, entry, sets, pairs, plain_dtype):
    """Both sides of one method, step by step in turn -> (what was measured, as JSON values;
    what `Plain` is made of and starts at)."""
    from bench.speed.race import Ours, Plain
    from bench.speed.side import Side

    cached = ", clean side from the cache" if spec.cache_clean else ""
    say(f"\n{entry.label}, {spec.batch_size} x {spec.seq_len} tokens, {spec.model}{cached}")
    ours = Side(Ours, spec, str(folder), entry.label, sets, WARM_UP + pairs + 3)
    begun = ours.call("start")
    settings = plain_settings(spec, entry, begun, plain_dtype)
    made = (str(folder), begun["sae"], block_of(spec.site), settings, spec.dtype)
    plain = Side(Plain, *made)
    plain.call("start", begun["weights"])
    rows = step_in_turn(ours, plain, WARM_UP + pairs)
    sides = {"ours": ours.call("setting"), "plain": plain.call("setting")}
    result = {
        "label": entry.label,
        "config": entry.settings,
        "spec": vars(spec),
        **ours.call("provenance"),
        "sides": sides,
        "pairs": rows[WARM_UP:],
        "warm_up": rows[:WARM_UP],
        "largest_difference": max(row["difference"] for row in rows),
        "tolerance": raced.tolerance(sides),
        "peak_bytes": {"ours": ours.call("peak"), "plain": plain.call("peak")},
    }
    plain.close()
    shares = ours.call("profile")
    if shares:
        result["share_of_step"] = shares
    result["floor"] = ours.call("floor")
    result["harness_seconds"] = ours.call("overhead")
    ours.close()
    raced.add_summary(result)
    raced.describe(result)
    return result, (made, begun["weights"])


def step_in_turn(ours, plain, n_pairs):
    """Pairs of steps on the same tokens -> what each side says of its own, a dict each."""
    say(f"{'pair':>7} {'loss ours':>11} {'plain':>11}   differ   s ours    plain  ratio")
    rows = []
    for number in range(n_pairs):
        mine = ours.call("step")
        theirs = plain.call("step", mine.pop("tokens"))
        if not math.isfinite(mine["loss"] + theirs["loss"]):
            raise RunFailed(f"a loss is not finite: ours {mine['loss']}, plain {theirs['loss']}")
        difference = abs(mine["loss"] - theirs["loss"]) / abs(theirs["loss"])
        rows.append({"ours": mine, "plain": theirs, "difference": difference})
        name = "warm-up" if number < WARM_UP else str(number - WARM_UP + 1)
        say(
            f"{name:>7} {mine['loss']:11.6f} {theirs['loss']:11.6f} {difference:8.0e} "
            f"{mine['seconds']:8.3f} {theirs['seconds']:8.3f}  "
            f"{theirs['seconds'] / mine['seconds']:.2f}x"
        )
    return rows


def plain_settings(spec, entry, begun, dtype=None):
    """What `Reference` wants to know besides the folders and the layer."""
    config = entry.config
    settings = {"lr": config.lr, "clip": config.clip, "skipped": int(spec.scored != "all")}
    settings |= {"device": spec.device, "dtype": dtype or spec.dtype}
    if spec.weights == "random":
        settings["drawn"] = spec.dtype  # other formats draw other numbers
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
