"""`python -m bench`, and `splicebench`, which finds what is installed wherever it is typed."""

import os
import signal
import sys
from typing import NoReturn

from bench.cli.commands import main
from bench.io import ranks
from bench.io.console import flush


def command() -> NoReturn:
    """Run the command line and leave with its exit code."""
    # `python -m` looks into the working folder first, and so do the processes that it starts:
    # a file analysis.py there would be taken for ours.
    if ranks.is_script():
        os.environ["PYTHONSAFEPATH"] = "1"
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is written: Python takes a while to leave
    flush()
    if ranks.world() > 1:  # a thread may still wait for another process
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    command()
