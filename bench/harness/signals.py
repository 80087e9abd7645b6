"""Signals: a command ends with their exit code; in the process of a run they ask it to stop.

That stop comes after the step that is running, or at once where nothing can be torn.
"""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], None]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The command was ended by a signal, and nothing of it is running any more."""

    def __init__(self, number: int) -> None:
        self.code = 130 if number == signal.SIGINT else 143
        super().__init__(signal.Signals(number).name)


@contextmanager
def handling(handler: Handler) -> Iterator[None]:
    """Handle signals inside the block; one that is ignored, as after nohup, stays so."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        handle(handler)
        yield
    finally:
        for number in SIGNALS:
            signal.signal(number, before[number])


def handle(handler: Handler, signals: Iterable[int] = SIGNALS) -> None:
    """Handle signals from now on, those that are ignored excepted."""
    for number in signals:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def blocked() -> Iterator[None]:
    """Inside the block signals wait; a process that is forked there begins with waiting ones."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock() -> None:
    """Let the signals come that have waited."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def leave(number: int, frame: FrameType | None) -> None:
    """The handler of a command that runs nothing which has to be asked."""
    raise Interrupted(number)


class Stopped(BaseException):
    """Raised where a stop comes at once; no `except Exception` on the way swallows it."""


_state = {"asked": False, "at_once": False, "in_step": False}


def ask(*_: object) -> None:
    """Ask for a stop; also the handler of a signal."""
    _state["asked"] = True
    if _state["at_once"]:
        _state["at_once"] = False
        raise Stopped


def asked() -> bool:
    """Whether a stop was asked for."""
    return _state["asked"]


def only_in_step() -> None:
    """From now on no stop comes at once: several processes must stop at the same place."""
    _state["in_step"] = True


def forget() -> None:
    """Take back a request to stop, as at the start of a process."""
    _state.update(asked=False, at_once=False)


@contextmanager
def at_once() -> Iterator[None]:
    """Inside the block, which must leave nothing half done, a stop comes at once."""
    with _set(not _state["in_step"]):
        if asked() and not _state["in_step"]:
            raise Stopped
        yield


@contextmanager
def held() -> Iterator[None]:
    """Inside the block a stop waits until somebody asks `asked`."""
    with _set(False):
        yield


@contextmanager
def _set(value: bool) -> Iterator[None]:
    before, _state["at_once"] = _state["at_once"], value
    try:
        yield
    finally:
        _state["at_once"] = before
