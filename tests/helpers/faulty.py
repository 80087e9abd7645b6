"""`python -m tests.helpers.faulty INSTANT compare ...`: the command, killed at an instant."""

import multiprocessing
import sys

from bench.cli.commands import main
from bench.runs import process
from tests.helpers import forked, plants

if __name__ == "__main__":
    process.CONTEXT = multiprocessing.get_context("fork")  # so that runs have the plant too
    plants.instants(forked.kill_all)[sys.argv.pop(1)]()
    sys.exit(main())
