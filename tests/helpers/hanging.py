"""`python -m tests.helpers.hanging HOW FOLDER`: a command whose process is deaf to signals.

HOW is `asleep` (in C, for ever) or `busy` (in C, for longer than the grace is). The process writes
FOLDER/pid when it is there, and FOLDER/done when its step has ended.
"""

import ctypes
import hashlib
import os
import sys
from pathlib import Path

from bench.cli.commands import tell
from bench.harness import signals
from bench.harness.signals import Interrupted
from bench.runs import process


def work(how, folder):
    """A step that no handler interrupts: Python's are called between its own instructions only."""
    (folder / "pid").write_text(str(os.getpid()))
    with signals.held():
        while how == "asleep":
            ctypes.PyDLL(None).sleep(1000)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 5_000_000)
        (folder / "done").touch()


if __name__ == "__main__":
    process.GRACE, process.QUIET = 0.5, 1.0
    try:
        process.call(work, sys.argv[1], Path(sys.argv[2]))
    except Interrupted as stop:
        tell(stop)
        sys.exit(stop.code)
