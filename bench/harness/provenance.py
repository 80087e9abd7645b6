"""Where a record comes from: commit, versions, device, machine, command."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import __version__
from bench.config.spec import Spec
from bench.io import ranks
from bench.io.clock import timestamp

CODE = ("bench", "methods", "analysis", "pyproject.toml", "constraints.txt")
"""What a record is `dirty` for when it differs from the commit."""

PACKAGES = ("torch", "transformers", "transformer-lens", "sae-lens")


def provenance(spec: Spec) -> dict[str, Any]:
    """The header's fields on weights, code, machine and moment."""
    from bench.distributed import group  # torch
    from bench.loading import compiled

    changes, timed_on = _git("status", "--porcelain", "--", *CODE), clock(spec.device)
    return {
        "weights": spec.weights,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        **timed_on,
        "tf32": timed_on["matmul"] == "TF32",
        **({"compiled": True} if compiled.wanted() else {}),
        **group.together(),
        "load": os.getloadavg()[0],
        "versions": {"splicebench": __version__, **versions()},
        "started": timestamp(),
        "command": " ".join([ranks.start_of_command(), *sys.argv[1:]]),
    }


def clock(device: str) -> dict[str, Any]:
    """What seconds depend on."""
    import torch

    from bench import devices
    from bench.loading import cpu_kernels

    products = cpu_kernels.install() if device == "cpu" else devices.float32_products(device)
    threads = torch.get_num_threads()
    return {"device": device, "machine": machine(device), "threads": threads, "matmul": products}


def versions() -> dict[str, str]:
    """Versions of the packages that the numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def machine(device: str) -> str:
    """The processor's name and number of cores, or the accelerator's name."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores"


@cache
def _git(*arguments: str) -> str | None:
    """The output of a git command on this package's checkout; None where it is none.

    Asked once a process: the code that runs is the code that was there when it started.
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
