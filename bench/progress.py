"""Progress bars that are silent when stdout is not a terminal."""

import io
import os
import sys
import threading
from contextlib import nullcontext, redirect_stderr

from tqdm.auto import tqdm

from bench import launched

# Its own lock is shared between processes: one that is killed while it holds it would stop all.
tqdm.set_lock(threading.RLock())


def bar(items=None, **settings):
    """tqdm over `items`, or a bar to be moved by hand (`total=`); gone when it is done."""
    return tqdm(items, leave=False, disable=not _is_watched(), **settings)


def _is_watched():
    return sys.stdout.isatty() and not launched.rank()


def others_quiet():
    """A context manager that keeps libraries' own bars off a stdout that is no terminal."""
    return nullcontext() if sys.stdout.isatty() else redirect_stderr(io.StringIO())


def say(text):
    """A line for the reader of the terminal, between the bars; none may be reading any more.

    Of several processes the first one speaks.
    """
    if launched.rank():
        return
    try:
        tqdm.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # as after `| head`: what runs goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
