"""Errors that end a command with one line on stderr and an exit code, never a traceback."""

import difflib
from collections.abc import Iterable


class Fault(Exception):
    """A message for the user: the value, what was expected, the nearest valid choice."""

    code = 1


class Usage(Fault):
    """The command or its configuration is wrong; a path that is not there included."""

    code = 2


class Rejected(Fault):
    """An input was read and does not fit: an SAE, a model, a text, a record."""

    code = 3


class Unavailable(Fault):
    """The environment is in the way: disk, memory, network, device, a missing package."""

    code = 4


class Lost(Unavailable):
    """Another process of the run is gone, or this one leaves it with the exit code of its fault."""

    def __init__(self, message: str, code: int = Unavailable.code) -> None:
        super().__init__(message)
        self.code = code


class Locked(Fault):
    """Another process is at it."""

    code = 75


class RunFailed(Fault):
    """At least one run diverged or raised; its record says which."""

    code = 5


def reason(error: BaseException | str) -> str:
    """What a library's error says, on one line; what a terminal would obey is escaped."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return line if line.isprintable() else repr(line)


class OutOfMemory(Unavailable):
    """One window at a time is still too much."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python's or torch's says that memory ran out."""
    signs = (
        "out of memory",
        "not enough memory",
        "can't allocate memory",
        "cannot allocate memory",
    )
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)


def disk_full(error: BaseException) -> bool:
    """Whether an exception of whatever library says that there was no room to write to."""
    signs = ("no space left", "file too large", "disk quota", "os error 28", "os error 27")
    return any(sign in str(error).lower() for sign in signs)


def unknown(kind: str, value: object, choices: Iterable[object]) -> Usage:
    """A `Usage` for a name that is not one of `choices`, with the nearest one."""
    names = sorted(map(str, choices))
    expected = f"expected one of {', '.join(names)}"
    return Usage(f"unknown {kind} '{value}': {nearest(str(value), names)}{expected}")


def nearest(value: str, names: Iterable[str]) -> str:
    """A question with the one of `names` that is most like `value`, "" where none is like it."""
    near = difflib.get_close_matches(value, list(names), n=1, cutoff=0.4)
    return f"did you mean '{near[0]}'? " if near else ""


def require_positive(config: object, *fields: str) -> None:
    """ValueError where a field of a config is not above 0."""
    for field in fields:
        if not getattr(config, field) > 0:
            raise ValueError(f"{field} must be above 0, got {getattr(config, field)}")
