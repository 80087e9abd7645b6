"""Whether torchrun started this process, and which of its processes it is: no torch needed."""

import os


def world():
    """How many processes work together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank():
    """The number of this process; 0 leads, and writes."""
    return int(os.environ.get("RANK", "0"))


def local_rank():
    """The number of this process on its machine: that of its accelerator."""
    return int(os.environ.get("LOCAL_RANK", "0"))
