"""Whether torchrun started this process, and which of its processes it is: no torch needed."""

import os
import shlex
import shutil
import sys

SET = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
"""What processes that are to work together find in their environment."""


def world() -> int:
    """How many processes work together; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in SET) else 1


def rank() -> int:
    """The number of this process; 0 leads, and writes."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def local_rank() -> int:
    """The number of this process on its machine: that of its accelerator."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def start_as_typed() -> str:
    """How this command begins, with what runs it: `python` (or `splicebench`) where that is the
    one on PATH, else its path."""
    name, space, words = start_of_command().partition(" ")
    program = {"python": sys.executable, "splicebench": sys.argv[0]}.get(name)
    on_path = shutil.which(name)
    # Not resolved: a virtual environment's interpreter is a link to another one's.
    if not program or (on_path and os.path.abspath(on_path) == os.path.abspath(program)):
        return f"{name}{space}{words}"
    path = min(program, os.path.relpath(program), key=len)
    return f"{shlex.quote(path)}{space}{words}"


def is_script() -> bool:
    """Whether the command `splicebench` was typed, not `python -m bench`."""
    return os.path.basename(sys.argv[0]) == "splicebench"


def start_of_command() -> str:
    """How a command of this kind begins, on whatever machine."""
    if world() == 1:
        return "splicebench" if is_script() else "python -m bench"
    return f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', '...')} -m bench"
