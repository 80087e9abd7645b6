"""A process of its own for each side of a race, so that neither sees the other's memory or code."""

import multiprocessing
import signal
import traceback
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from bench.errors import Fault, RunFailed, Unavailable, out_of_memory
from bench.harness.signals import blocked, unblock
from bench.runs.preflight import quiet_libraries
from bench.runs.process import die_with_parent


class Side:
    """`Ours` or `Plain` in a process of its own; `call` runs its methods there.

    The process starts with the first call inside the `with` block and ends with the block, where
    something was raised without waiting for its step.
    """

    def __init__(self, name: str, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, self._theirs = context.Pipe()
        arguments = (self._theirs, name, arguments)
        self._process = context.Process(target=begin, args=arguments, daemon=True)

    @property
    def pid(self) -> int:
        """Of the process, once it has started."""
        return self._process.pid or 0

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of a method of the side.

        Raises the `Fault` of the side; `Unavailable` if it runs out of memory; `RunFailed` if it
        fails otherwise, or if its process ends.
        """
        if not self.pid:
            with blocked():  # a signal finds it started or not, never between
                self._process.start()
            self._theirs.close()
        try:
            self._connection.send((method, arguments))
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(timeout=10)
            code = self._process.exitcode
            raise RunFailed(f"a process of the race ended by itself (exit code {code})") from None
        if isinstance(answer, Fault):
            raise answer
        return answer

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """End the process, and wait until its memory is free."""
        self._connection.close()
        if self.pid:
            self._process.join(timeout=0 if kind else 10)
            self._process.kill()
            self._process.join()


def begin(*arguments: Any) -> None:
    """`serve` in a new process. Ctrl-C, which a terminal sends to it too, is the command's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    unblock()
    die_with_parent()
    serve(*arguments)


def serve(connection: Connection, name: str, arguments: tuple) -> None:
    """Make the side of this name, then answer calls with results until the other end hangs up.

    A fault is the last answer.
    """
    quiet_libraries()
    try:
        make = getattr(import_module(f"bench.speed.{name.lower()}"), name)
        side = make(*arguments)
        while True:
            method, arguments = connection.recv()
            connection.send(getattr(side, method)(*arguments))
    except EOFError:
        return
    except Fault as fault:
        connection.send(fault)
    except Exception as error:
        if out_of_memory(error):
            message = f"out of memory on the side '{name}': lower --batch-size or --seq-len"
            connection.send(Unavailable(message))
        else:
            connection.send(RunFailed(f"a side of the race failed:\n{traceback.format_exc()}"))
