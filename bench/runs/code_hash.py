"""Hash of the code that decides a number, so that none in the cache outlives a change of it."""

from functools import cache
from pathlib import Path

from bench.config.method_files import source
from bench.io.record import digest

BENCH = Path(__file__).resolve().parents[1]
PACKAGES = ("config", "distributed", "harness", "loading", "problem", "runs")
"""Where the numbers of a run are made, beside `devices.py`, which sets the number formats. Whole
packages: a list of files by hand would one day lack the file that changed."""


@cache
def code(method: str = "mse") -> str:
    """sha256 of what decides the numbers of a method; by default of the one that trains SAEs."""
    files = [BENCH / "devices.py"]
    files += [path for name in PACKAGES for path in sorted((BENCH / name).glob("*.py"))]
    return digest([source(method), *(path.read_text(encoding="utf-8") for path in files)])
