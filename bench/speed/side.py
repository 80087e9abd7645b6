"""A process of its own for each side of a race, so that neither sees the other's memory or code."""

import gc
import multiprocessing
import re
import traceback
from pathlib import Path

from bench.errors import Fault, RunFailed, Unavailable, out_of_memory


class Side:
    """An object made by `make(*arguments)` in a fresh process; `call` runs its methods there."""

    def __init__(self, make, *arguments):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def call(self, name, *arguments):
        """What the object's method gives; its fault is raised here."""
        self._connection.send((name, arguments))
        return self._receive()

    def close(self):
        """End the process, and wait until its memory is free."""
        self._connection.close()
        self._process.join(timeout=10)
        self._process.kill()
        self._process.join()

    def _receive(self):
        try:
            kind, value = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(timeout=10)
            code = self._process.exitcode
            raise RunFailed(f"a process of the race ended by itself (exit code {code})") from None
        if isinstance(value, Fault):
            raise value
        if kind == "error":
            raise RunFailed(f"a side of the race failed:\n{value}")
        return value


def _serve(connection, make, arguments):
    """Make the object, then answer until the other end hangs up."""
    from bench.runs.preflight import quiet_libraries

    quiet_libraries()
    try:
        subject = make(*arguments)
        connection.send(("done", None))
        while True:
            name, arguments = connection.recv()
            connection.send(("done", getattr(subject, name)(*arguments)))
    except (EOFError, KeyboardInterrupt):
        return
    except Fault as fault:
        connection.send(("fault", fault))
    except Exception as error:
        if out_of_memory(error):
            told = f"out of memory on the side '{make.__name__}': lower --batch-size or --seq-len"
            connection.send(("fault", Unavailable(told)))
        else:
            connection.send(("error", traceback.format_exc()))


class Memory:
    """Peak memory of this process above what it held when `start` was called; Linux only."""

    def __init__(self):
        self._before = None

    def start(self):
        """Take what is resident now as the floor, and forget earlier peaks."""
        gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _kib("VmRSS")
        except OSError:
            self._before = None

    def peak(self):
        """Bytes, or None where the system does not tell."""
        return None if self._before is None else 1024 * (_kib("VmHWM") - self._before)


def _kib(field):
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1])
