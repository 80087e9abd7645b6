"""`python -m bench` in a process that is forked from this one, to be killed or stopped.

Forked after the imports, which take seconds; otherwise a process like any other, with a process
of its own for every run.
"""

import os
import signal
import sys
import time
import traceback

from analysis import report
from bench.cli.commands import main
from bench.io.clock import read


def draw_nothing(replace):
    """Leave figures out of what a command does: they take half of its time."""
    replace(report, "draw", lambda comparison: None)
    replace(report.figures, "draw", lambda experiment: None)
    replace(report, "save", lambda figure, stem: [])


class Command:
    """One call of the command line; `plant()` is called in the new process first.

    Figures are left out unless it `draws`: they take half of the time.
    """

    def __init__(self, arguments, log, plant=lambda: None, draws=False):
        self._log = log
        log.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(arguments, plant, draws)

    def _become(self, arguments, plant, draws):
        code = 99
        try:
            os.setsid()
            hear_ctrl_c()
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(self._log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            sys.argv = ["bench", *map(str, arguments)]
            if not draws:
                draw_nothing(setattr)
            plant()
            code = main()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def send(self, number):
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, seconds=120):
        """Its exit code; the number of the signal that ended it, negative."""
        ended = []

        def has_ended():
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            ended.append(status)
            return pid

        try:
            until(has_ended, seconds)
        except TimeoutError:
            os.killpg(self.pid, signal.SIGKILL)
            raise
        return os.waitstatus_to_exitcode(ended[-1])

    @property
    def out(self):
        """What it has printed."""
        return (self._log / "out").read_text()

    @property
    def err(self):
        """What it has printed on stderr."""
        return (self._log / "err").read_text()


def hear_ctrl_c():
    """As in a terminal: a shell that starts something in the background has it ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def until(condition, seconds=60):
    """Wait until `condition()` holds."""
    started = read()
    while not condition():
        time.sleep(0.002)
        if read().since(started).seconds > seconds:
            raise TimeoutError


def kill_all():
    """In the process of a run: kill the command and this process, as `kill -9` of both does."""
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_this():
    """In the process of a run: kill this process alone."""
    os.kill(os.getpid(), signal.SIGKILL)
