"""A function in a process of its own, so that whatever ends that process costs no other.

Ctrl-C and SIGTERM go to this process; the other one is asked to stop, and has the time to finish
its step and write. The second Ctrl-C leaves at once. The parent must compute nothing: a process
whose threads have worked, or that has started CUDA, must not be forked.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from contextlib import contextmanager

from bench import interrupts
from bench.errors import Fault, RunFailed, Unavailable, out_of_memory
from bench.interrupts import Interrupted, blocked, handle, handling, unblock


class Died(RunFailed):
    """The process ended without an answer."""


def call(function, *arguments):
    """What the function gives in a process of its own; its fault is raised here.

    Raises `Died` where the process was killed or left, `Interrupted` where a signal came.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    answers, answer = context.Pipe(duplex=False)
    sys.stdout.flush()
    process = context.Process(target=_work, args=(answer, os.getpid(), function, arguments))
    with blocked():  # no signal finds a process that nobody asks, or that does not listen yet
        process.start()
        answer.close()
        with _asking(process) as came:
            unblock()
            try:
                kind, value = answers.recv()
            except (EOFError, OSError):  # nothing came, or half of it
                kind, value = "died", None
            process.join()
    if came or kind == "stopped":
        raise Interrupted(came[0] if came else signal.SIGTERM)
    if kind == "died":
        raise Died(_how(process.exitcode))
    if kind == "fault":
        raise value
    return value


def _how(code):
    """How a process without an answer ended, in words."""
    if code >= 0:
        return f"its process left with exit code {code}"
    name = signal.Signals(-code).name
    memory = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{memory}"


@contextmanager
def _asking(process):
    """Signals ask the process to stop; the second Ctrl-C kills it -> the signals that came."""
    came = []

    def ask(number, frame):
        came.append(number)
        if number == signal.SIGINT and came.count(number) > 1:
            process.kill()
            process.join()
            raise Interrupted(number)
        if process.is_alive():
            os.kill(process.pid, signal.SIGTERM)

    with handling(ask):
        yield came


def _work(answer, parent, function, arguments):
    """What the new process does: the function, and the answer."""
    interrupts.forget()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to both
    handle(interrupts.ask, (signal.SIGTERM, signal.SIGHUP))
    _die_with(parent)
    try:
        unblock()
        with interrupts.at_once():
            told = ("value", function(*arguments))
    except interrupts.Stopped:
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
