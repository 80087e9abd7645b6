"""Functions in processes of their own, so that whatever ends such a process costs no other.

No process that has computed is ever forked: its threads would be missing in the copy, which then
waits for them for ever. A server that has imported the slow libraries and computes nothing
(`bench.runs.preloaded`) is forked instead, so a process costs a few milliseconds.

Ctrl-C and SIGTERM go to this process; the others are asked to stop, and have the time to finish
their step and write. One that does not answer is killed. The second Ctrl-C kills all at once.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import connection, forkserver, resource_tracker
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
"""Seconds between two looks at processes that were asked to stop."""


class Died(RunFailed):
    """The process ended without an answer."""


def call(function: Callable[..., Result], *arguments: object) -> Result:
    """What the function gives in a process of its own; its fault is raised here.

    Function and arguments are pickled. Raises `Died` where the process was killed or left,
    `Interrupted` where a signal came.
    """
    with together() as tasks:
        task = tasks.start(function, *arguments)
        tasks.first()
    return task.result()


@contextmanager
def together() -> Iterator["Tasks"]:
    """A `Tasks`, all of which have ended when the block has; signals ask them all to stop."""
    tasks = Tasks()
    with handling(tasks.ask):
        try:
            yield tasks
        finally:
            tasks.end_all()
    tasks.check()  # a signal may have come after the last of them


class Task:
    """A function in a process of its own, from when this is made."""

    def __init__(self, function: Callable[..., Any], arguments: tuple) -> None:
        self.answers, answer = CONTEXT.Pipe(duplex=False)
        flush()
        settings = (answer, dict(os.environ), function, arguments)
        self.process = CONTEXT.Process(target=_work, args=settings)
        self.process.start()
        assert self.process.pid is not None
        self._pid = self.process.pid
        answer.close()
        self.kind = "died"
        self._value: Any = None
        self._asked: clock.Reading | None = None
        self._active: clock.Reading | None = None
        self._cpu = 0.0

    def ask(self) -> None:
        """Ask it to stop; from now on `end_if_silent` counts."""
        if self._asked is None:
            self._asked = self._active = clock.read()
        if self.process.is_alive():
            os.kill(self._pid, signal.SIGTERM)

    def end_if_silent(self) -> None:
        """Kill it where it was asked to stop, its grace is over, and it computes nothing."""
        if self._asked is None or self._active is None:
            return
        now, cpu = clock.read(), cpu_seconds(self._pid)
        if cpu > self._cpu + 0.1:
            self._cpu, self._active = cpu, now
        silent = now.since(self._asked).seconds
        if silent > GRACE and now.since(self._active).seconds > QUIET:
            say(f"a process did not answer for {silent:.0f} s and was killed")
            self.process.kill()

    def end(self) -> None:
        """Take its answer, or that there is none, and wait until it has ended."""
        try:
            self.kind, self._value = self.answers.recv()
        except (EOFError, OSError):  # nothing came, or half of it
            self.kind = "died"
        self.process.join(GRACE)
        self.process.kill()  # one that has answered is not waited for any longer
        self.process.join()
        self.answers.close()

    def result(self) -> Any:
        """What the function gave; its fault, or `Died`, is raised."""
        if self.kind == "died":
            raise Died(_how(self.process.exitcode))
        if self.kind == "fault":
            raise self._value
        return self._value


class Tasks:
    """Several tasks at a time; what ends them all is a signal, and `Interrupted` is raised."""

    def __init__(self) -> None:
        self._running: list[Task] = []
        self._came: list[int] = []
        self._waits_for_server = False

    def start(self, function: Callable[..., Any], *arguments: object) -> Task:
        """Begin a task -> the `Task`."""
        self._waits_for_server = True  # for seconds: a signal ends that wait at once
        self.check()
        server()
        self._waits_for_server = False
        with blocked():  # no signal finds a process that nobody asks, or that does not listen yet
            self.check()
            self._running.append(Task(function, arguments))
            return self._running[-1]

    def first(self) -> Task:
        """Wait for the first of them that ends -> that `Task`."""
        task = self._next()
        if task.kind == "stopped" and not self._came:  # by a signal to that process alone
            self._came.append(signal.SIGTERM)
        if self._came:
            self.end_all()
        self.check()
        return task

    def check(self) -> None:
        """Raise `Interrupted` where a signal has come."""
        if self._came:
            raise Interrupted(self._came[0])

    def end_all(self) -> None:
        """Ask all that still run to stop, and wait for them."""
        self._ask_all()
        while self._running:
            self._next()

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The handler of signals: ask all to stop; the second Ctrl-C kills them."""
        self._came.append(number)
        if self._waits_for_server:
            raise Interrupted(number)
        if number == signal.SIGINT and self._came.count(number) > 1:
            for task in self._running:
                task.process.kill()
            while self._running:
                self._running.pop().process.join()
            raise Interrupted(number)
        self._ask_all()

    def _next(self) -> Task:
        """The first task that ends; on the way those are killed that do not answer."""
        while not (ready := connection.wait([task.answers for task in self._running], TICK)):
            for task in self._running:
                task.end_if_silent()
        task = next(task for task in self._running if task.answers in ready)
        task.end()
        self._running.remove(task)
        return task

    def _ask_all(self) -> None:
        for task in self._running:
            task.ask()


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
    """Have the kernel kill this process when the one that started it is gone (Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def cpu_seconds(pid: int) -> float:
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
    """End this process when the one that it works for is gone, which is not who forked it."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a child
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def unexpected(error: Exception) -> Fault:
    """The fault that stands for an exception which nobody foresaw; its traceback is printed."""
    if out_of_memory(error):
        return Unavailable("out of memory; lower --batch-size or --seq-len")
    traceback.print_exc()
    return RunFailed(f"{type(error).__name__}: {error}")
