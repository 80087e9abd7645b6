"""What several processes cannot share: refused where a method asks for it, in every one alike."""

from bench.distributed.group import rank, sharded, world
from bench.errors import OutOfMemory, Usage


def check_loss(loss):
    """Raise `Usage` for a loss that is not a mean over tokens: its shares do not add up."""
    if world() > 1 and not getattr(loss, "mean_over_tokens", False):
        raise Usage(
            f"{world()} processes: the method's loss is one of the whole batch, expected a mean "
            "over tokens (KL); run it in one process"
        )


def check_looks():
    """Raise `Usage` for a method without gradients: what it sums up has no shares."""
    if world() > 1:
        raise Usage(
            f"{world()} processes: the method takes no gradients (it looks at all tokens itself); "
            "run it in one process"
        )


def check_copies():
    """Raise `Usage` for a method that trains the LM's blocks where they are spread."""
    if sharded():
        raise Usage("--shard-model: the method trains copies of the LM's blocks")


def check_may_halve():
    """Raise `OutOfMemory` where one process cannot pass more often than the others."""
    if sharded():
        raise OutOfMemory(
            f"out of memory in process {rank()}, and with --shard-model all must pass as often: "
            "lower --micro-batch or --seq-len"
        )
