"""Imported once by the server that processes are forked from (`process.py`), and only there.

Imports take seconds and are shared by all that is forked. Nothing is computed by torch here,
loaded or fetched: a process whose threads have worked must not be forked.
"""

from bench.runs.process import die_with_parent


def preload() -> None:
    """Import what runs need, with the libraries' own warnings and bars off."""
    die_with_parent()  # first: a command may be ended while this imports
    from bench.runs.preflight import quiet_libraries

    quiet_libraries()
    from bench.runs import code_hash, worker  # noqa: F401

    code_hash.code()  # of the files as they are now, which is what was imported


preload()
