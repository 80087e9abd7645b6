"""`compare` under torchrun: the first process leads and writes, the others do what it says.

Who cannot go on leaves, and the others notice: the same command then goes on with the run. A fault
that meets all of them, as of a method that raises, ends the command as well: what was run before
it is kept.
"""

import os
import signal
import sys
import threading
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from bench.distributed import group as parallel
from bench.distributed.group import GO_ON, GONE
from bench.errors import Fault, Lost, Unavailable, Usage
from bench.harness import signals
from bench.harness.signals import Interrupted, Stopped, handling
from bench.io import ranks
from bench.runs import compare as alone
from bench.runs import worker

PATIENCE = timedelta(seconds=30)
"""What a process may be silent for before the others take it for dead."""
BEAT = 1.0
"""Seconds between two signs of life."""
GRACE = 5.0
"""Seconds for the main thread to end with a message of its own."""


def compare(request, labels, seeds):
    """`compare.compare` in every process of torchrun -> what it gives in the first, else None.

    Raises `Lost` where one of the others is gone, `Usage` for what cannot be shared.
    """
    check(request, labels)
    signals.only_in_step()
    with handling(signals.ask):
        parallel.start(request.spec.device)
        with _watching():
            if parallel.is_first():
                return _lead(request, labels, seeds)
            return _follow()


def check(request, labels):
    """Raise `Usage` for a request that several processes cannot share."""
    alone.check_order(request, labels)
    spec, world = request.spec, ranks.world()
    if spec.batch_size < world:
        raise Usage(f"--batch-size {spec.batch_size}: {world} processes need a window each")
    if spec.cache_clean:
        raise Usage("--cache-clean: for one process, which pays for what it fills")
    if not request.shard_model:
        return
    if spec.sae == "own":
        raise Usage("--shard-model: an own SAE is trained by one process; expected --sae DIR")
    if "not-special" in (spec.spliced, spec.scored):
        raise Usage("--shard-model: not with not-special positions, which a share may lack")
    size = request.micro_batch or spec.batch_size
    if spec.batch_size % world or spec.batch_size // world % min(size, spec.batch_size // world):
        raise Usage(
            f"--shard-model: every process must pass as often: --batch-size {spec.batch_size} is "
            f"not {world} equal shares of whole micro-batches"
        )


def _lead(request, labels, seeds):
    together = []

    def call(function, *arguments):
        """Have every process do it; what is measured once and kept is done here alone."""
        if signals.asked():
            raise Interrupted(signal.SIGTERM)
        if function is worker.prepare and not request.shard_model:
            with parallel.alone():
                return _do(function, arguments)
        parallel.from_first((function, arguments))
        together.append(function)
        result = _do(function, arguments)
        together.pop()
        return result

    try:
        return alone.compare(request, labels, seeds, call)
    finally:
        if not together:  # otherwise the others are not listening: they notice that this one left
            parallel.from_first(None)


def _follow():
    while told := parallel.from_first(None):
        _do(*told)


def _do(function, arguments):
    """What the function gives. A fault of its own ends this process."""
    try:
        return function(*arguments)
    except Stopped:
        raise Interrupted(signal.SIGTERM) from None
    except Lost:
        raise
    except Fault as fault:
        lost = Lost(str(fault))
        lost.code = fault.code
        raise lost from None


@contextmanager
def _watching():
    """A thread that notices a process which is gone while this one waits for an accelerator."""
    group, over = dist.new_group(backend="gloo", timeout=PATIENCE), threading.Event()
    threading.Thread(target=_watch, args=(group, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(group, over):
    while not over.wait(BEAT):
        try:
            dist.barrier(group)
        except RuntimeError:
            if not over.wait(GRACE):
                silent = f"{PATIENCE.total_seconds():.0f} s"
                message = f"{GONE}, or has not been heard of for {silent}; {GO_ON}"
                print(f"bench: rank {ranks.rank()}: {message}", file=sys.stderr, flush=True)
                os._exit(Unavailable.code)
            return
