"""`python -m tests.faulty INSTANT compare ...`: the command line, killed at one of the instants."""

import sys

from bench.__main__ import main
from tests import forked, plants

if __name__ == "__main__":
    plants.instants(forked.kill_all)[sys.argv.pop(1)]()
    sys.exit(main())
