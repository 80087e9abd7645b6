"""Worlds for the tests of the claims: experiments whose records make a claim true or false."""

import json
import math

from tests.helpers.records import experiment, make, scratch, write

SHARES = (0.1, 0.5, 1.0)
STEPS = (0, 1, 2, 4, 8, 16)
LONG = (0, 1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192)
BARE = make().header["ce_full_spliced"]


def timing(
    folder,
    e2e_step=4.0,
    e2e_end=3.7,
    mse_end=3.95,
    lora_end=3.75,
    pace=2.0,
    passes=1,
    gains=None,
    seeds=(0, 1, 2),
    missing=(),
    step_tokens=65_536,
    early=0.0,
    **header,
):
    """The experiment `timing`; by default every claim on it but C10, B1 and B2 is true.
    The SAE at a tenth is `early` nats above the others."""
    header["step_tokens"] = step_tokens
    entries, gains = [], gains or {"e2e": 0.05, 0.1: 0.09, 0.5: 0.1, 1.0: 0.11}
    for seed in seeds:
        for role, level, tau, step, took in (
            ("mse", mse_end, 15, 0.5, 0),
            ("e2e", e2e_end, 40, e2e_step, passes),
        ):
            ces = [level + 6 * math.exp(-at / tau) for at in LONG]
            ends = [ce - gains["e2e"] for ce in BARE] if role == "e2e" else BARE
            drops = [a - b for a, b in zip([11.0, 12.0, 11.2, 11.4], ends, strict=True)]
            told = {"step_seconds": step, "backwards": took, "gains": drops}
            run = scratch(role, ces, LONG, seed, **told, **header)
            run.rows[-1]["l0"] = 32.0
            entries.append((role, seed, {}, run))
        for share in SHARES:
            spent = {"seconds": 96 * share, "backwards": 0, "tokens": 98304 * share}
            for role, level in (("lora", lora_end), ("e2e-finetune", lora_end + 0.01)):
                ces = [level + (4.0 - level) * math.exp(-at / pace) for at in STEPS]
                drop = [gains[share] * part for part in (0.9, 1.1, 1.0, 1.0)]
                run = make(
                    role.split("-")[0],
                    seed,
                    steps=STEPS,
                    losses=ces,
                    gains=drop,
                    label=f"{role}:share={share}",
                    sae_cost={**spent, "device": "cpu"},
                    ce_full_spliced=[ce + early * (share == 0.1) for ce in BARE],
                    **header,
                )
                entries.append((role, seed, {"share": share}, run))
    entries = [(*at, None if at[0] in missing else run) for *at, run in entries]
    return experiment(folder, "timing", entries)


def sweep(folder, name, gains, seeds=(0, 1), **fixed):
    """An experiment of LoRA; `gains` is (what is varied, value) -> nats gained."""
    entries = []
    for number, (at, gain) in enumerate(gains):
        for seed in seeds:
            drop = None if gain is None else [gain * part for part in (0.9, 1.1, 1.0, 1.0)]
            told = {"label": f"lora:{name}-{number}", "l0_full": at.get("k", 32.0)}
            run = make("lora", seed, gains=drop, **told, **fixed)
            entries.append(("lora", seed, at, None if gain is None else run))
    return experiment(folder, name, entries)


def rank(folder, gains=(0.06, 0.08, 0.09, 0.095, 0.1), **fixed):
    at = [{"rank": number, "alpha": "fixed"} for number in (1, 4, 16, 64, 256)]
    return sweep(folder, "rank", list(zip(at, gains, strict=True)), **fixed)


def one_layer(folder, gains=(0.08, 0.06, 0.05, 0.03, 0.02, 0.1)):
    at = [{"layer": layer} for layer in (16, 19, 22, 25, 29, "after")]
    spec = {**make().header["spec"], "site": "blocks.15.hook_resid_post"}
    return sweep(folder, "one-layer", list(zip(at, gains, strict=True)), spec=spec)


def swept(folder, name, variable, values, gains):
    at = [{variable: value, "rank": number} for value in values for number in (16, 64)]
    return sweep(folder, name, list(zip(at, [g for g in gains for _ in "ab"], strict=True)))


def additivity(folder, second=0.02, more=0.02, stages=(1, 2), seeds=(0, 1, 2), noise=0.0):
    """LoRA and e2e gain 0.1 nats alone; then the second kind `second`, more of the first `more`."""
    entries = []
    for seed in seeds:
        for kind in ("lora", "e2e"):
            run = make(kind, seed, gains=[0.1] * 4, label=f"{kind}:1")
            entries.append((kind, seed, {"stage": 1}, run))
        for first in ("lora", "e2e"):
            for then in ("lora", "e2e"):
                gain = 0.1 + (more if first == then else second + noise * (seed - 1))
                label = f"{first}+{then}"
                run = make(then, 100 + seed, gains=[gain] * 4, label=label)
                entries.append((label, seed, {"stage": 2}, run if 2 in stages else None))
    return experiment(folder, "additivity", entries)


def rivals(folder, lora=0.08, e2e=0.1, seeds=(0, 1, 2), missing=(), **header):
    """LoRA and e2e from the whole SAE, over 12 million tokens."""
    gains, entries = {"lora": lora, "e2e": e2e}, []
    header = {"step_tokens": 6_000_000, **header}
    for seed in seeds:
        for role, gain in gains.items():
            drop = [gain * part for part in (0.95, 1.05, 1.0, 1.0)]
            made = make(role, seed, gains=drop, label=f"{role}:rival", **header)
            entries.append((role, seed, {"share": 1.0}, None if role in missing else made))
    return experiment(folder, "rivals", entries)


def distance(folder, difference=-0.5, error=0.1, run=True):
    """Ten layers, the SAE after layer 5: the later half of those after it is 8 and 9."""
    spec = {**make().header["spec"], "site": "blocks.5.hook_resid_post"}
    entries = []
    for seed in (0, 1, 2):
        made = make("lora", seed, gains=[0.1] * 4, spec=spec)
        if run:
            write(folder, made)
        values = {"l2": [0.1] * 8 + [difference] * 2, "l2_error": [error] * 10}
        told = {"name": f"MEASURE-{seed:08x}", "of": made.name, "measure": "distance"}
        told["values"] = {"layers": list(range(10)), "difference": values}
        entries.append(("lora", seed, {"share": 1.0}, told))
    return experiment(folder, "distance", entries)


def multi(folder, gains=(0.1, 0.2, 0.3)):
    at = [{"saes": number} for number in (1, 2, 5)]
    return sweep(folder, "multi-sae", list(zip(at, gains, strict=True)))


def size(folder, gains=(0.1, 0.08, 0.07)):
    at = [{"model": f"Gemma-2-{size}", "rank": 64} for size in ("2B", "9B", "27B")]
    return sweep(folder, "size", list(zip(at, gains, strict=True)))


def on(name, variable, values, gains):
    return lambda folder: swept(folder, name, variable, values, gains)


def adapted_for_long(folder, gain):
    """Rank 64 over two million tokens; the gap is 0.425 nats."""
    at = {"rank": 64, "alpha": "fixed"}
    return sweep(folder, "rank", [(at, gain)], steps=(0, 1, 4000))


AROUND = {"own": 0.1, "frozen": 0.1, "shuffled": 0.02}
"""SAE -> nats that an arm gains around it; the gap is 0.425."""
PARTS = (0.95, 1.05, 1.0, 1.0)


def frontier(
    folder,
    lora=AROUND,
    e2e=AROUND,
    arms=(),
    kl=0.1,
    noise=0.0,
    l0=32.0,
    main=(0, 1, 2),
    **header,
):
    """The experiment `frontier`: `lora` and `e2e` around each SAE, and `arms` (role, what it is at
    beside the fork, nats gained). In KL, whose gap is 0.4, `frozen` gains `kl`, the others 0.1;
    its L0 is `l0`, theirs 32. `main` are the seeds of `lora` and `e2e` around the own SAE."""
    planned = [
        (role, {"sae": sae}, g)
        for sae in lora
        for role, g in zip(("lora", "e2e"), (lora[sae], e2e[sae]), strict=True)
    ]
    entries = []
    for number, (role, at, gain) in enumerate([*planned, *arms]):
        for seed in main if number < len(planned) and at["sae"] == "own" else (0, 1, 2):
            drop = None if gain is None else [(gain + noise * (seed - 1)) * p for p in PARTS]
            gained, before = (kl, l0) if at["sae"] == "frozen" else (0.1, 32.0)
            told = {"label": f"{role}:{number}", "kl_full_spliced": [0.4] * 4, "l0_full": before}
            told["config"] = {"rank": 2 if role == "sae-lora-2" else 64}
            run = make(role, seed, gains=drop, **(told | header))
            if drop:
                run.end.update(kl_full=[0.4 - gained] * 4, l0_full=32.0)
            entries.append((role, seed, {"fork": 0.25, **at}, None if gain is None else run))
    return experiment(folder, "frontier", entries)


def low_rank(folder, two=0.069, whole=0.1, ranks=(2, 64), **header):
    names = {2: "sae-lora-2", 64: "sae-lora"}
    arms = [(names[rank], {"sae": "own"}, two + 0.001 * rank / 8) for rank in ranks]
    return frontier(folder, e2e=AROUND | {"own": whole}, arms=arms, **header)


def without_sae(folder, keep=0.02, plain=0.067, share=0.098, seeds=(0, 1, 2)):
    """LoRA with the extra KL and without it: harm without the SAE, nats that the first gains."""
    entries = []
    for role, harm, gain in (("lora-keep", keep, share), ("lora", plain, 0.1)):
        for seed in seeds:
            label, drop = f"lora:{role}", [gain * part for part in PARTS]
            run = make("lora", seed, gains=drop, label=label)
            write(folder, run)
            clean = run.header["ce_full_clean"]
            losses = [ce + harm * part for ce, part in zip(clean, PARTS, strict=True)]
            told = {"name": f"NO-SAE-{role}-{seed}", "of": run.name, "measure": "no-sae"}
            told["values"] = {"ce_clean": clean, "ce_without_sae": losses}
            entries.append((role, seed, {"fork": 0.25, "sae": "own"}, told))
    return experiment(folder, "frontier-no-sae", entries)


def thresholds(folder, frozen=0.1, kind="jumprelu", moved=33.0):
    """e2e with frozen and with trained thresholds, which move L0 from 32 to 33 and to `moved`."""
    place = {"fork": 0.25, "sae": "jumprelu"}
    entries = []
    for role, gain, l0 in (("e2e-frozen", frozen, 33.0), ("e2e", 0.1, moved)):
        for seed in (0, 1, 2):
            sae = {"source": "other", "sha256": "a" * 64, "kind": kind}
            drop = [gain * part for part in PARTS]
            run = make("e2e", seed, gains=drop, label=f"e2e:{role}", sae=sae, l0_full=32.0)
            run.end["l0_full"] = l0
            entries.append((role, seed, place, run))
    return experiment(folder, "frontier", entries)


def tuned(folder, rates, seeds=(0, 1), inside=True):
    """A tuning: label -> the best step size, on a grid of a factor 2.5, with its records."""
    frontier(folder)
    (folder / "tuning").mkdir()
    methods = {}
    for number, (label, best) in enumerate(rates.items()):
        runs = [make("lora", seed, label=f"t{number}", gains=[0.1] * 4) for seed in seeds]
        write(folder / "tuning", *runs)
        grid = [best / 2.5, best, best * 2.5]
        tried = [
            {"settings": {"lr": lr}, "kl": 0.1, "ce": 4.0, "record": r.name}
            for lr in grid
            for r in runs
        ]
        told = {"label": label, "choice": {"lr": best}, "interior": inside, "tried": tried}
        methods[label] = told
    (folder / "tuning" / "tuned.json").write_text(json.dumps({"methods": methods}))
    return folder
