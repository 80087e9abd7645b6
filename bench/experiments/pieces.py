"""Long work as a list of commands, run in turn under a time limit; records say what is done."""

import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.harness.signals import Interrupted, handling, leave
from bench.io import clock

ROOT = Path(__file__).resolve().parents[2]
"""Where the commands are run: the checkout."""
GRACE = 45
"""Seconds that a piece has to write what it must when it is stopped."""
LEAST = 20
"""Seconds that have to be left for a piece to begin."""


@dataclass(frozen=True)
class Piece:
    """A command, and how to know that its records are there."""

    name: str
    command: Callable  # () -> the words of the command line
    done: Callable  # () -> bool
    after: Callable = lambda: None
    """What is done when the command has ended by itself."""
    minutes: float = 0
    """For a piece that begins anew where it was stopped: how long it takes, at most."""
    waits_for: tuple = ()
    """Names of pieces without which this one means nothing."""


def call(pieces, missing, minutes, only_list=False):
    """Run for so many minutes what is not done, or only list it -> exit code.

    `missing(piece)` says why a piece cannot be run here, or None: it is named and left out.
    """
    whys = {piece.name: missing(piece) for piece in pieces}
    for name, why in whys.items():
        if why:
            print(f"left out: {name}: {why}")
    pieces = [piece for piece in pieces if not whys[piece.name]]
    if only_list:
        return tell(pieces, {}, over=True)
    try:
        with handling(leave):
            return run_all(pieces, minutes)
    except Interrupted as stop:
        return stop.code


def run_all(pieces, minutes):
    """Run what is not done until the time is over -> exit code."""
    began, failed, ran = clock.read(), {}, False
    for piece in pieces:
        if piece.done():
            continue
        waiting = [p.name for p in pieces if p.name in piece.waits_for and not p.done()]
        if waiting:
            failed[piece.name] = f"waits for {', '.join(waiting)}"
            continue
        seconds = 60 * minutes - clock.read().since(began).seconds
        if ran and seconds < max(LEAST, 60 * piece.minutes):
            return tell(pieces, failed, over=True)
        ran, code = True, run(piece, seconds)
        if code is None:
            return tell(pieces, failed, over=True)
        piece.after()
        if not piece.done():
            failed[piece.name] = f"exit code {code}"
    return tell(pieces, failed, over=False)


def tell(pieces, failed, over):
    """Say what is left -> exit code."""
    left = [piece.name for piece in pieces if not piece.done()]
    for name in left:
        print(f"left: {name}" + (f" ({failed[name]})" if name in failed else ""))
    again = "call it again" if over else "these failed: see above"
    print(
        f"{len(pieces) - len(left)} of {len(pieces)} pieces done" + (f"; {again}" if left else "")
    )
    return (75 if over else 5) if left else 0


def run(piece, seconds):
    """The piece's command, stopped after so many seconds -> its exit code, or None if stopped."""
    words = [str(word) for word in piece.command()]
    print(f"\n== {piece.name}: {shlex.join(['python', *words[1:]])}", flush=True)
    process = subprocess.Popen(words, cwd=ROOT)
    try:
        return process.wait(max(1, seconds))
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            stop(process)


def stop(process):
    """Have a command write and end."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
