"""Instants at which a run is killed: each is a function that is called in the process first.

`at` counts from 1: which checkpoint, row or evaluation it is.
"""

import os
import time
from pathlib import Path

from bench.harness import checkpoint
from bench.harness import run as one_run
from bench.io import record
from bench.loading import saes


def _instead(owner, name, wrap):
    original = getattr(owner, name)
    setattr(owner, name, wrap(original))


def _counted(at, condition=lambda *a: True):
    """Whether this is call number `at` of those that meet the condition."""
    seen = [0]

    def now(*arguments):
        seen[0] += bool(condition(*arguments))
        return seen[0] == at and condition(*arguments)

    return now


def before(owner, name, at, kill, condition=lambda *a: True):
    """Kill before a function is called for the `at`-th time."""
    now = _counted(at, condition)

    def wrap(original):
        def planted(*arguments, **settings):
            if now(*arguments):
                kill()
            return original(*arguments, **settings)

        return planted

    return lambda: _instead(owner, name, wrap)


def after(owner, name, at, kill, condition=lambda *a: True):
    """Kill when a function has been called for the `at`-th time."""
    now = _counted(at, condition)

    def wrap(original):
        def planted(*arguments, **settings):
            found = original(*arguments, **settings)
            if now(*arguments):
                kill()
            return found

        return planted

    return lambda: _instead(owner, name, wrap)


def together(*all_of_them):
    """Several plants at once."""

    def plant():
        for one in all_of_them:
            one()

    return plant


def at_steps(owner, name, numbers):
    """A method that is asked after every step says yes at these calls of it only."""
    seen = [0]

    def wrap(original):
        def planted(*arguments):
            seen[0] += 1
            return seen[0] in numbers

        return planted

    return lambda: _instead(owner, name, wrap)


def is_row_of_lora(writer, line):
    """Whether a row of a run of `lora` is written."""
    return "step" in line and writer._path.name.startswith("lora")


def slowly(owner, name, seconds):
    """A function takes so long, without holding signals up."""

    def wrap(original):
        def planted(*arguments, **settings):
            time.sleep(seconds)
            return original(*arguments, **settings)

        return planted

    return lambda: _instead(owner, name, wrap)


def _is_checkpoint(path, target):
    return path.name.startswith(".step-")


def _is_named(path, target):
    return path.name.endswith(".writing")


def _is_row(writer, line):
    return "step" in line


def _trains(*arguments):
    """Whether this is about a run that trains: its record or its folder is an argument."""
    given = [getattr(argument, "_path", argument) for argument in arguments]
    return any(isinstance(p, Path) and p.name.startswith(("lora", "e2e")) for p in given)


def mid_row(at, kill):
    """Half of a row is on the disk."""

    def write(original):
        now = _counted(at, _is_row)

        def planted(writer, line):
            if now(writer, line):
                text = record.encoded(line).encode()
                writer._file.write(text[: len(text) // 2])
                os.fsync(writer._file)
                kill()
            original(writer, line)

        return planted

    return lambda: _instead(record.Writer, "write", write)


def mid_checkpoint(at, kill):
    """A part of checkpoint number `at` is on the disk."""
    seen = {"checkpoints": 0, "parts": 0}

    def count(original):
        def planted(*arguments):
            seen.update(checkpoints=seen["checkpoints"] + 1, parts=0)
            return original(*arguments)

        return planted

    def write(original):
        def planted(watched, data):
            seen["parts"] += 1
            if seen["checkpoints"] == at and seen["parts"] == 5:
                original(watched, bytes(data)[: len(data) // 2])
                watched.flush()
                kill()
            return original(watched, data)

        return planted

    def plant():
        _instead(checkpoint, "write", count)
        _instead(checkpoint._Watched, "write", write)

    return plant


def instants(kill):
    """Name -> plant, for every kind of instant."""
    return {
        "before the header": before(record.Writer, "__init__", 1, kill, _trains),
        "after the header": after(record.Writer, "__init__", 1, kill, _trains),
        "mid-row": mid_row(3, kill),
        "after a row": after(record.Writer, "write", 4, kill, _is_row),
        "in the first evaluation": before(one_run, "measure", 1, kill),
        "in an evaluation": before(one_run, "measure", 4, kill),
        "in the last evaluation": before(one_run, "measure", 7, kill),
        "mid-checkpoint": mid_checkpoint(6, kill),
        "before a checkpoint is renamed": before(Path, "replace", 3, kill, _is_checkpoint),
        "after a checkpoint is renamed": after(Path, "replace", 3, kill, _is_checkpoint),
        "before a checkpoint has its name": before(Path, "replace", 5, kill, _is_named),
        "after a checkpoint has its name": after(Path, "replace", 5, kill, _is_named),
        "before the SAE is saved": before(saes, "save", 1, kill),
        "after the SAE is saved": after(saes, "save", 1, kill),
        "before the state is saved": before(one_run, "save_state", 1, kill, _trains),
        "after the state is saved": after(one_run, "save_state", 1, kill, _trains),
        "before the end line": before(record.Writer, "end", 1, kill, _trains),
        "after the end line": after(record.Writer, "end", 1, kill, _trains),
    }
