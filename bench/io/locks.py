"""One process at a time for a run: the kernel's lock on a file, which no kill leaves behind."""

import fcntl
import json
import os
import socket
from contextlib import contextmanager, suppress

from bench.errors import Locked
from bench.io.clock import timestamp
from bench.io.console import say
from bench.io.files import os_errors


@contextmanager
def held(folder, key, what, wait=False):
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


def check_free(folder, wanted):
    """Raise `Locked` where another process holds one of these locks: key -> what it stands for."""
    for key, what in wanted.items():
        if (folder / f".{key}-run.lock").exists():
            with held(folder, f"{key}-run", what):
                pass  # left behind by a process that was killed: taken, and gone


def _take(path, what, wait):
    while True:
        with os_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise Locked(f"{what}: {_in_words(holder)}") from None
        except OSError as error:
            say(f"{path.parent}: cannot be locked here ({error.strerror}); start no run twice")
            return descriptor
        if _is_still(path, descriptor):
            break
        os.close(descriptor)  # its holder has just removed it
    told = {"pid": os.getpid(), "host": socket.gethostname(), "since": timestamp()}
    with suppress(OSError):  # a full disk: then nobody knows who holds it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(told).encode(), 0)
    return descriptor


def _is_still(path, descriptor):
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _in_words(holder):
    try:
        told = json.loads(holder)
        return f"locked by pid {told['pid']} on {told['host']} since {told['since']}"
    except (ValueError, KeyError, TypeError):
        return "locked by another process"
