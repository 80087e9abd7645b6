"""A run that has ended, shown by a tracker of the user's: wandb, trackio or TensorBoard.

The record stays the truth. It is sent once the run has ended, from a process of its own, so that
nothing of a tracker runs while seconds are measured. Each tracker has its own settings, by its own
environment variables: where it sends, with which account, or that it stays offline.
"""

import json
import math
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.errors import Unavailable, reason
from bench.io.record import Run, read

PROJECT = "splicebench"


def check(name: str) -> None:
    """Raise `Unavailable` for a tracker that is not installed."""
    if not find_spec(name):
        raise Unavailable(f"--tracker {name}: not installed; pip install {name}")


def send(name: str, path: Path) -> None:
    """The record at `path`, all of its rows and how it ended. Raises `Unavailable`, with what the
    tracker said, where it takes none."""
    try:
        if name == "tensorboard":
            _tensorboard(read(path))
        else:
            _wandb_like(name, read(path))
    except Exception as error:
        raise Unavailable(f"--tracker {name}: {reason(error)}") from error


def _wandb_like(name: str, run: Run) -> None:
    """trackio has wandb's calls."""
    tracker = import_module(name)
    where = {"dir": str(run.path.parent)} if name == "wandb" else {}
    tracker.init(project=PROJECT, name=run.name, config=about(run), **where)
    for step, values in points(run):
        tracker.log(values, step=step)
    tracker.finish()


def _tensorboard(run: Run) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run.path.parent / "tensorboard" / run.name)) as writer:
        writer.add_text("record", f"```json\n{json.dumps(about(run), indent=2)}\n```")
        for step, values in points(run):
            for key, value in values.items():
                writer.add_scalar(key, value, step)


def about(run: Run) -> dict[str, Any]:
    """The header without what is by document, and how the run ended."""
    fields = {k: v for k, v in run.header.items() if not isinstance(v, list)}
    return {**fields, "end": run.status}


def points(run: Run) -> list[tuple[int, dict[str, float]]]:
    """(step, values) of each evaluation on the curve set; last those on the validation set, the
    mean of what is by document."""
    rows = [(row["step"], _numbers(row)) for row in run.rows]
    ended = {f"validation/{k.removesuffix('_full')}": v for k, v in _numbers(run.end or {}).items()}
    return [*rows, *([(rows[-1][0], ended)] if rows and ended else [])]


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    found = {}
    for key, value in line.items():
        if key.endswith("_full") and isinstance(value, list) and value and None not in value:
            value = math.fsum(value) / len(value)
        if isinstance(value, int | float) and key != "step":
            found[key] = value
    return found
