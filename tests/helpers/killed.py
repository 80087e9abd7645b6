"""A comparison that can be killed and gone on with, and what must then be the same."""

import json
import os
import signal

from bench.harness import checkpoint
from bench.io.record import read
from bench.io.verify import verify
from tests.helpers import plants

METHODS = "lora:dropout=0.2,e2e"
FIELDS = ("step", "tokens", "forwards", "backwards", "backward_tokens", "ce")


def arguments(folder, small, out, *more, **changes):
    """A comparison that writes a checkpoint after every step."""
    fields = {"model": folder / "model", "text": folder / "text", **small, "steps": 16, **changes}
    flags = [item for pair in fields.items() for item in (f"--{pair[0]}", pair[1])]
    return ["compare", *flags, "--methods", METHODS, "--checkpoint-every", 0, "--out", out, *more]


def deterministic(out):
    """What must be the same to the byte, as text: rows, the end's losses, what was trained."""
    found = {}
    for path in sorted(out.glob("*.jsonl")):
        run = read(path)
        rows = [json.dumps([row[name] for name in FIELDS]) for row in run.rows]
        state = path.with_suffix("") / "state.safetensors"
        weights = state.read_bytes() if state.exists() else b""
        found[run.name] = (run.status, rows, json.dumps(run.end["ce_full"]), weights)
    return found


def check_goes_on(start, out, reference):
    """The same command again ends well, with the same results."""
    again = start()
    assert again.wait() == 0, again.err
    assert deterministic(out) == deterministic(reference)
    assert not list(out.glob("*/step-*"))  # a run that is done needs none
    verify([out])
    return again


def stopped_after(n_checkpoints):
    """A plant: the run is asked to stop when it has written so many checkpoints."""

    def ask():
        os.kill(os.getpid(), signal.SIGTERM)

    return plants.after(checkpoint, "write", n_checkpoints, ask)


def runs_of(out, method):
    return [read(path) for path in sorted(out.glob(f"{method}-*.jsonl"))]
