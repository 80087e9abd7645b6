"""One process at a time for a run: the kernel's lock on a file, which no kill leaves behind."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.errors import Locked
from bench.io.clock import timestamp
from bench.io.console import say
from bench.io.files import os_errors


@contextmanager
def held(folder: Path, key: str, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock called `key` in `folder`; `Locked`, with who has it, where another does.

    With `wait` wait until it is free. A process that is forked inside the block holds it too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{key}.lock"
    descriptor = _take(path, what, wait)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def check_free(folder: Path, wanted: Mapping[str, str]) -> None:
    """Raise `Locked` where another process holds one of these locks: key -> what it stands for."""
    for key, what in wanted.items():
        if (folder / f".{key}-run.lock").exists():
            with held(folder, f"{key}-run", what):
                pass  # left behind by a process that was killed: removed here


def _take(path: Path, what: str, wait: bool) -> int:
    """Lock the file -> its descriptor, which holds the lock until it is closed."""
    while True:
        with os_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _in_words(os.pread(descriptor, 4096, 0))
            if not wait:
                os.close(descriptor)
                raise Locked(f"{what}: {holder}") from None
            say(f"waiting for {what}: {holder}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            say(f"{path.parent}: cannot be locked here ({error.strerror}); start no run twice")
            return descriptor
        if _is_still(path, descriptor):
            break
        os.close(descriptor)  # its holder has just removed it
    me = {"pid": os.getpid(), "host": socket.gethostname(), "since": timestamp()}
    with suppress(OSError):  # a full disk: then nobody knows who holds it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(me).encode(), 0)
    return descriptor


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _in_words(text: bytes) -> str:
    try:
        holder = json.loads(text)
        return f"locked by pid {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "locked by another process"
