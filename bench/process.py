"""Functions in processes of their own, so that whatever ends such a process costs no other.

Ctrl-C and SIGTERM go to this process; the others are asked to stop, and have the time to finish
their step and write. The second Ctrl-C leaves at once. The parent must compute nothing: a process
whose threads have worked, or that has started CUDA, must not be forked.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from contextlib import contextmanager
from multiprocessing import connection

from bench import interrupts
from bench.errors import Fault, RunFailed, Unavailable, out_of_memory
from bench.interrupts import Interrupted, blocked, handle, handling


class Died(RunFailed):
    """The process ended without an answer."""


def call(function, *arguments):
    """What the function gives in a process of its own; its fault is raised here.

    Raises `Died` where the process was killed or left, `Interrupted` where a signal came.
    """
    with together() as tasks:
        task = tasks.start(function, *arguments)
        tasks.first()
    return task.result()


@contextmanager
def together():
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

    def __init__(self, function, arguments):
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.answers, answer = context.Pipe(duplex=False)
        sys.stdout.flush()
        settings = (answer, os.getpid(), function, arguments)
        self.process = context.Process(target=_work, args=settings)
        self.process.start()
        answer.close()
        self.kind, self._value = "died", None

    def end(self):
        """Wait until it has ended."""
        try:
            self.kind, self._value = self.answers.recv()
        except (EOFError, OSError):  # nothing came, or half of it
            self.kind = "died"
        self.process.join()
        self.answers.close()

    def result(self):
        """What the function gave; its fault, or `Died`, is raised."""
        if self.kind == "died":
            raise Died(_how(self.process.exitcode))
        if self.kind == "fault":
            raise self._value
        return self._value


class Tasks:
    """Several tasks at a time; what ends them all is a signal, and `Interrupted` is raised."""

    def __init__(self):
        self._running, self._came = [], []

    def start(self, function, *arguments):
        """Begin a task -> the `Task`."""
        with blocked():  # no signal finds a process that nobody asks, or that does not listen yet
            self.check()
            self._running.append(Task(function, arguments))
            return self._running[-1]

    def first(self):
        """Wait for the first of them that ends -> that `Task`."""
        ended = connection.wait([task.answers for task in self._running])
        task = next(task for task in self._running if task.answers in ended)
        task.end()
        self._running.remove(task)
        if task.kind == "stopped" and not self._came:  # by a signal to that process alone
            self._came.append(signal.SIGTERM)
        if self._came:
            self.end_all()
        self.check()
        return task

    def check(self):
        """Raise `Interrupted` where a signal has come."""
        if self._came:
            raise Interrupted(self._came[0])

    def end_all(self):
        """Ask all that still run to stop, and wait for them."""
        self._ask_all()
        while self._running:
            self._running[-1].end()
            self._running.pop()

    def ask(self, number, frame):
        """The handler of signals: ask all to stop; the second Ctrl-C kills them."""
        self._came.append(number)
        if number == signal.SIGINT and self._came.count(number) > 1:
            for task in self._running:
                task.process.kill()
            while self._running:
                self._running.pop().process.join()
            raise Interrupted(number)
        self._ask_all()

    def _ask_all(self):
        for task in self._running:
            if task.process.is_alive():
                os.kill(task.process.pid, signal.SIGTERM)


def _how(code):
    """How a process without an answer ended, in words."""
    if code >= 0:
        return f"its process left with exit code {code}"
    name = signal.Signals(-code).name
    memory = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{memory}"


def _work(answer, parent, function, arguments):
    """What the new process does: the function, and the answer."""
    interrupts.forget()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to both
    handle(interrupts.ask, (signal.SIGTERM, signal.SIGHUP))
    _die_with(parent)
    try:
        interrupts.unblock()
        with interrupts.at_once():
            told = ("value", function(*arguments))
    except (interrupts.Stopped, Interrupted):
        told = ("stopped", None)
    except Fault as fault:
        told = ("fault", fault)
    except Exception as error:
        told = ("fault", _unexpected(error))
    answer.send(told)


def _unexpected(error):
    if out_of_memory(error):
        return Unavailable("out of memory; lower --batch-size or --seq-len")
    traceback.print_exc()
    return RunFailed(f"{type(error).__name__}: {error}")


def _die_with(parent):
    """Have the kernel kill this process when its parent is gone (Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # gone already
            os.kill(os.getpid(), signal.SIGKILL)
