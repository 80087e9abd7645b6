"""Runs made up for the tests of the analysis, as records in memory and on disk."""

import json
from pathlib import Path

from bench.io.record import Run, Writer

CLEAN, SPLICED = 3.6, 4.0
DOUBLING = (0, 1, 2, 4, 8, 16, 20)


def make(
    method="lora",
    seed=0,
    shares=(0.0, 0.1, 0.2),
    steps=None,
    step_seconds=1.0,
    backwards=1,
    end="finished",
    gains=None,
    losses=None,
    step_tokens=512,
    **header,
):
    """A run that closes `shares` of the gap at `steps`; `gains` is its CE drop per document.

    `losses`, where given, are the CE at these steps, whatever share of the gap that is.
    """
    if losses:
        shares = [(SPLICED - ce) / (SPLICED - CLEAN) for ce in losses]
    steps = steps or range(len(shares))
    rows = [
        {
            "step": step,
            "ce": None if share is None else SPLICED - share * (SPLICED - CLEAN),
            "seconds": step * step_seconds,
            "forwards": 2 * step,
            "backwards": backwards * step,
            "tokens": step_tokens * step,
        }
        for step, share in zip(steps, shares, strict=True)
    ]
    defaults = {
        "schema": 1,
        "method": method,
        "label": method,
        "config": {},
        "spec": {"model": "m", "site": "s", "seq_len": 128, "batch_size": 4, "steps": 20},
        "seed": seed,
        "sae": {"source": "own", "sha256": "a" * 64, "run": "mse-00000000", "share": 1.0},
        "sae_cost": {"seconds": 100.0, "backwards": 0, "tokens": 5120, "device": "cpu"},
        "ce_clean": CLEAN,
        "ce_spliced": SPLICED,
        "ce_full_clean": [3.0, 3.5, 3.4, 3.1],
        "ce_full_spliced": [3.5, 3.9, 3.7, 3.6],
        "weights": "pretrained",
        "device": "cpu",
        "machine": "box",
        "threads": 2,
        "started": f"2026-11-22T15:00:{seed:02d}Z",
    }
    header = {**defaults, **header}
    if header["sae_cost"]:
        header["sae_cost"] = {"threads": header["threads"], **header["sae_cost"]}
    last = {"end": end} if end else None
    if gains:
        pairs = zip(header["ce_full_spliced"], gains, strict=True)
        last["ce_full"] = [spliced - gain for spliced, gain in pairs]
    path = Path(f"{header['label'].replace(':', '-')}-{seed:08x}.jsonl")
    return Run(path, header, rows, last)


def write(folder, *runs):
    """Runs -> records in a folder, through the harness's own writer."""
    for number, run in enumerate(runs):
        writer = Writer(folder / run.path)
        writer.write({**run.header, "started": f"2026-11-22T15:{number:02d}:00Z"})
        for row in run.rows:
            writer.write(row)
        if run.end:
            writer.write(run.end)
        writer.close()
    return folder


def scratch(method, losses, steps, seed=0, **header):
    """A run from a random SAE, as `experiment timing` has them: its own seed is 1000 and up."""
    fresh = {"sae": {"source": "fresh", "sha256": "f" * 64}, "sae_cost": None}
    bare = {"ce_spliced": 11.5, "ce_full_spliced": [11.0, 12.0, 11.2, 11.4]}
    return make(method, 1000 + seed, losses=losses, steps=steps, **{**fresh, **bare, **header})


def experiment(folder, name, entries, scale="laptop"):
    """Entries (role, seed, at, run) -> a manifest beside their records; a run may be None, which
    was planned and not made yet, or the dict of a measurement."""
    told = []
    for role, seed, at, made in entries:
        record = None
        if isinstance(made, dict):
            record = made["name"]
            (folder / f"{record}.json").write_text(json.dumps(made), encoding="utf-8")
        elif made:
            record = made.name
            write(folder, made)
        told.append({"record": record, "role": role, "seed": seed, "at": at})
    manifest = {"experiment": name, "scale": scale, "command": "bench experiment", "runs": told}
    (folder / f"{name}.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def rivals(seeds=(0, 1, 2), **header):
    """none, lora and e2e, over seeds; lora closes 20 % and e2e half of it at every step."""
    lora = [0, 0.04, 0.08, 0.12, 0.16, 0.19, 0.20]
    gains = [0.1, 0.08, 0.06, 0.1]
    found = []
    for seed in seeds:
        shift = 1 + 0.01 * seed
        found += [
            make("none", seed, [0.0], gains=[0.0] * 4, **header),
            make("lora", seed, [x * shift for x in lora], DOUBLING, gains=gains, **header),
            make(
                "e2e",
                seed,
                [x * shift / 2 for x in lora],
                DOUBLING,
                gains=[g / 2 for g in gains],
                **header,
            ),
        ]
    return found
