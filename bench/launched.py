"""Whether torchrun started this process, and which of its processes it is: no torch needed."""

import os

SET = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
"""What processes that are to work together find in their environment."""


def world():
    """How many processes work together; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in SET) else 1


def rank():
    """The number of this process; 0 leads, and writes."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def local_rank():
    """The number of this process on its machine: that of its accelerator."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def start_of_command():
    """How a command of this kind begins, as it is typed."""
    if world() == 1:
        return "python -m bench"
    return f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', '...')} -m bench"
