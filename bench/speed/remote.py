"""A process of its own for each side of a race, so that neither sees the other's memory or code."""

import multiprocessing
import traceback
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from bench.errors import Fault, RunFailed, Unavailable, out_of_memory
from bench.runs.preflight import quiet_libraries


class Side:
    """`Ours` or `Plain`, made in a fresh process; `call` runs its methods there.

    Both raise the `Fault` of the side; `Unavailable` if it runs out of memory; `RunFailed` if it
    fails otherwise, or if its process ends.
    """

    def __init__(self, name: str, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of a method of the side."""
        self._connection.send((method, arguments))
        return self._receive()

    def close(self) -> None:
        """End the process, and wait until its memory is free."""
        self._connection.close()
        self._process.join(timeout=10)
        self._process.kill()
        self._process.join()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(timeout=10)
            code = self._process.exitcode
            raise RunFailed(f"a process of the race ended by itself (exit code {code})") from None
        if isinstance(answer, Fault):
            raise answer
        return answer


def serve(connection: Connection, name: str, arguments: tuple) -> None:
    """Make the side of this name, then answer calls with results until the other end hangs up.

    A fault is the last answer.
    """
    quiet_libraries()
    try:
        make = getattr(import_module(f"bench.speed.{name.lower()}"), name)
        side = make(*arguments)
        connection.send(None)
        while True:
            method, arguments = connection.recv()
            connection.send(getattr(side, method)(*arguments))
    except (EOFError, KeyboardInterrupt):
        return
    except Fault as fault:
        connection.send(fault)
    except Exception as error:
        if out_of_memory(error):
            message = f"out of memory on the side '{name}': lower --batch-size or --seq-len"
            connection.send(Unavailable(message))
        else:
            connection.send(RunFailed(f"a side of the race failed:\n{traceback.format_exc()}"))
