"""`python -m tests.faulty INSTANT compare ...`: the command line, killed at one of the instants."""

import multiprocessing
import sys

from bench import process
from bench.__main__ import main
from tests import forked, plants

if __name__ == "__main__":
    process.CONTEXT = multiprocessing.get_context("fork")  # so that runs have the plant too
    plants.instants(forked.kill_all)[sys.argv.pop(1)]()
    sys.exit(main())
