"""A comparison that can be killed and gone on with, and what must then be the same."""

import hashlib
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
    """What must be the same to the byte, flat, so that a failed test names what differs: of each
    run its status, its rows, the losses at its end, what it trained."""
    found = {}
    for path in sorted(out.glob("*.jsonl")):
        run = read(path)
        state = path.with_suffix("") / "state.safetensors"
        trained = state.read_bytes() if state.exists() else b""
        found[f"{run.name}: status"] = run.status
        for row in run.rows:
            values = json.dumps([row[name] for name in FIELDS])
            found[f"{run.name}: row of step {row['step']}"] = values
        found[f"{run.name}: ce_full of the end"] = json.dumps(run.end["ce_full"])
        found[f"{run.name}: sha256 of the weights"] = hashlib.sha256(trained).hexdigest()
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
