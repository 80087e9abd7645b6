"""A function in a process of its own, so that whatever ends such a process costs no other.

No process that has computed is ever forked: its threads would be missing in the copy, which then
waits for them for ever. A server that has imported the slow libraries and computes nothing
(`bench.runs.preloaded`) is forked instead, so a process costs a few milliseconds.

Ctrl-C and SIGTERM go to this process; the other is asked to stop, and has the time to finish its
step and write. Where it does not answer it is killed. The second Ctrl-C kills it at once.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import cache
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from bench.errors import Fault, RunFailed, Unavailable, out_of_memory
from bench.harness import signals
from bench.harness.signals import Interrupted, blocked, handle, handling
from bench.io import clock
from bench.io.console import flush, say, tolerate

CONTEXT = (
    multiprocessing.get_context("forkserver")
    if sys.platform == "linux"
    else multiprocessing.get_context("spawn")
)
Result = TypeVar("Result")
GRACE = 30.0
"""Seconds that a process which was asked to stop may go on without an answer."""
QUIET = 5.0
"""A process that took no CPU for so many seconds is in no step: its grace is not extended."""
TICK = 0.5
"""Seconds between two looks at a process that was asked to stop."""


class Died(RunFailed):
    """The process ended without an answer."""


def call(function: Callable[..., Result], *arguments: object) -> Result:
    """What the function gives in a process of its own; its fault is raised here.

    Function and arguments are pickled. Raises `Died` where the process was killed or left,
    `Interrupted` where a signal came.
    """
    task = Task()
    with handling(task.handle):
        try:
            task.start(function, arguments)
            task.wait()
        finally:
            task.end()
    return task.result()


class Task:
    """A function in a process of its own, which signals ask to stop."""

    def __init__(self) -> None:
        self._process: BaseProcess | None = None
        self._kind = ""
        self._value: Any = None
        self._signals: list[int] = []
        self._waits_for_server = False
        self._asked: clock.Reading | None = None
        self._active: clock.Reading | None = None
        self._cpu = 0.0

    def start(self, function: Callable[..., Any], arguments: tuple) -> None:
        """Begin; no signal finds a process that does not listen yet."""
        self._waits_for_server = True  # for seconds: a signal ends that wait at once
        server()
        self._waits_for_server = False
        with blocked():
            if self._signals:
                raise Interrupted(self._signals[0])
            self._answers, answer = CONTEXT.Pipe(duplex=False)
            flush()
            settings = (answer, dict(os.environ), function, arguments)
            process = CONTEXT.Process(target=_work, args=settings)
            process.start()
            self._process = process  # not before it runs: `end` would wait for an answer
            answer.close()

    def wait(self) -> None:
        """Take the answer, or that there is none, and wait until the process has ended."""
        process = self._process
        assert process is not None  # `start` comes before
        while not self._answers.poll(TICK):
            self._kill_if_silent(process)
        try:
            self._kind, self._value = self._answers.recv()
        except (EOFError, OSError):  # nothing came, or half of it
            self._kind = "died"
        process.join(GRACE)
        process.kill()  # one that has answered is not waited for any longer
        process.join()
        self._code = process.exitcode
        self._answers.close()

    def end(self) -> None:
        """Where something was raised before the process had ended: ask it to stop, and wait."""
        if self._process and not self._kind:
            self._ask()
            self.wait()

    def result(self) -> Any:
        """What the function gave; its fault, `Died` or `Interrupted` is raised."""
        if self._signals:
            raise Interrupted(self._signals[0])
        if self._kind == "stopped":  # by a signal to that process alone
            raise Interrupted(signal.SIGTERM)
        if self._kind == "died":
            raise Died(_how(self._code))
        if self._kind == "fault":
            raise self._value
        return self._value

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler of signals: ask the process to stop; the second Ctrl-C kills it."""
        self._signals.append(number)
        if self._waits_for_server:
            raise Interrupted(number)
        if self._process and number == signal.SIGINT and self._signals.count(number) > 1:
            self._process.kill()
            raise Interrupted(number)
        self._ask()

    def _ask(self) -> None:
        if self._asked is None:
            self._asked = self._active = clock.read()
        if self._process and self._process.pid and self._process.is_alive():
            os.kill(self._process.pid, signal.SIGTERM)

    def _kill_if_silent(self, process: BaseProcess) -> None:
        """Kill it where it was asked to stop, its grace is over, and it computes nothing."""
        if self._asked is None or self._active is None:
            return
        now, cpu = clock.read(), cpu_seconds(process.pid)
        if cpu > self._cpu + 0.1:
            self._cpu, self._active = cpu, now
        silent = now.since(self._asked).seconds
        if silent > GRACE and now.since(self._active).seconds > QUIET:
            say(f"a process did not answer for {silent:.0f} s and was killed")
            process.kill()


@cache
def server() -> None:
    """Start the server that processes are forked from; back when it has imported everything.

    Signals wait in it and in what it forks, until a process listens. Raises `Unavailable` where it
    does not start.
    """
    if CONTEXT.get_start_method() != "forkserver":
        return
    CONTEXT.set_forkserver_preload(["bench.runs.preloaded"])
    resource_tracker.ensure_running()  # here, as it would unblock signals below
    with blocked():
        forkserver.ensure_running()
    try:
        first = CONTEXT.Process(target=int)
        first.start()
        first.join()
    except (EOFError, OSError) as error:
        raise Unavailable(f"no process of its own can be started: {error}") from None


def die_with_parent() -> None:
    """Have the kernel kill this process when its starter has ended (Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def cpu_seconds(pid: int | None) -> float:
    """Seconds of CPU that all threads of a process have taken; 0 where that is not known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    user, system = 11, 12  # counted from after the name, which may hold anything
    return (int(fields[user]) + int(fields[system])) / os.sysconf("SC_CLK_TCK")


def _how(code: int | None) -> str:
    """How a process without an answer ended, in words."""
    if code is None or code >= 0:
        return f"its process left with exit code {code}"
    name = signal.Signals(-code).name
    memory = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{memory}"


def _work(
    answer: connection.Connection, environment: dict[str, str], function: Callable, arguments: tuple
) -> None:
    """What the new process does: the function, and the answer."""
    signals.forget()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to both
    handle(signals.ask, (signal.SIGTERM, signal.SIGHUP))
    tolerate()
    os.environ.update(environment)  # the server may be older than a change of it
    die_with_parent()
    threading.Thread(target=_watch_parent, daemon=True).start()
    try:
        signals.unblock()
        with signals.at_once():
            answered = ("value", function(*arguments))
    except (signals.Stopped, Interrupted):
        answered = ("stopped", None)
    except Fault as fault:
        answered = ("fault", fault)
    except Exception as error:
        answered = ("fault", unexpected(error))
    answer.send(answered)


def _watch_parent() -> None:
    """End this process when its employer has ended; the server that forked it is another one."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a child
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def unexpected(error: Exception) -> Fault:
    """The fault for an unforeseen exception; its traceback is printed."""
    if out_of_memory(error):
        return Unavailable("out of memory; lower --batch-size or --seq-len")
    traceback.print_exc()
    return RunFailed(f"{type(error).__name__}: {error}")
