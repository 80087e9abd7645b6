"""`python -m bench`."""

import os
import signal
import sys

from bench.cli.commands import main
from bench.io import ranks
from bench.io.console import flush

if __name__ == "__main__":
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is written: Python takes a while to leave
    flush()
    if ranks.world() > 1:  # a thread may still wait for another process
        os._exit(code)
    sys.exit(code)
