"""What is printed: lines and bars on a stdout that may be a pipe, full, closed, or know no `±`;
and what is typed, where that is wrong.

Bars are silent when stdout is not a terminal.
"""

import argparse
import io
import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, suppress
from typing import Any, NoReturn, TextIO

from tqdm.auto import tqdm

from bench.errors import Unavailable, Usage, nearest
from bench.io import ranks

# Its own lock is shared between processes: one that is killed while it holds it would stop all.
tqdm.set_lock(threading.RLock())

_refused: list[str] = []
"""Why stdout has taken no more, once it did not; a reader that left is no reason."""


def bar(items: Iterable[Any] | None = None, **settings: Any) -> tqdm:
    """tqdm over `items`, or a bar moved by hand (`total=`); it disappears at the end."""
    return tqdm(items, leave=False, disable=not _is_watched(), **settings)


def _is_watched() -> bool:
    return sys.stdout.isatty() and ranks.rank() == 0


def others_quiet() -> AbstractContextManager[object]:
    """A context manager that keeps libraries' own bars off a stdout that is no terminal."""
    return nullcontext() if sys.stdout.isatty() else redirect_stderr(io.StringIO())


def tolerate() -> None:
    """Have stdout and stderr take any text, also where they are closed or their encoding is poor.

    A closed one gets the null device, as else the next file that is opened would be in its place.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number is taken
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        with suppress(AttributeError):  # a stand-in, as in a notebook
            getattr(sys, name).reconfigure(errors="backslashreplace")


def say(text: object) -> None:
    """A line for the reader of the terminal, between the bars; none may be reading any more.

    Of several processes the first one speaks.
    """
    if not ranks.rank():
        _write(lambda: tqdm.write(str(text)))


def flush() -> None:
    """Flush stdout, if it is still open."""
    _write(lambda: None)


def check_output() -> None:
    """Raise `Unavailable` where stdout did not take all that was printed."""
    flush()
    if _refused:
        raise Unavailable(f"cannot write to stdout: {_refused[0]}; what was run is kept")


def _write(write: Callable[[], object]) -> None:
    try:
        write()
        sys.stdout.flush()
    except BrokenPipeError:  # as after `| head`: what runs goes on
        _to_nowhere(sys.stdout)
    except OSError as error:
        _refused.append(error.strerror or str(error))
        _to_nowhere(sys.stdout)


def _to_nowhere(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def in_words(seconds: float) -> str:
    """`about 40 s`, `about 7 min`, `about 3.5 h`."""
    if seconds < 90:
        return f"about {10 * max(1, round(seconds / 10))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


class Parser(argparse.ArgumentParser):
    """argparse that ends a wrong command with one line, which names the help of that command."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; what is left over it would leave to the parser above."""
        known, left = super().parse_known_args(args, namespace)
        if left:
            word = left[0].partition("=")[0]
            hint = nearest(word, self._option_string_actions) if word[0] == "-" else ""
            self.error(f"unknown argument '{left[0]}': {hint}".rstrip(": "))
        return known, left

    def error(self, message: str) -> NoReturn:
        raise Usage(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: object = None) -> None:
        """Help and version; argparse would swallow that stdout is full."""
        if message:
            say(message.rstrip("\n"))
