"""`compare` under torchrun: the first process leads and writes, the others do what it says.

Who cannot go on leaves, and the others notice: the same command then goes on with the run. A fault
that meets all of them, as of a method that raises, ends the command as well: what was run before
it is kept.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from bench.config.method import MethodRequest
from bench.config.request import Request
from bench.distributed import group as parallel
from bench.distributed.group import GO_ON, GONE
from bench.errors import Fault, Lost, Unavailable, Usage
from bench.harness import signals
from bench.harness.signals import Interrupted, Stopped, handling
from bench.io import ranks
from bench.runs import compare as alone
from bench.runs import worker  # noqa: F401  here, as it takes seconds, and later others wait

PATIENCE = timedelta(seconds=30)
"""What a process may be silent for before the others take it for dead."""
BEAT = 1.0
"""Seconds between two signs of life."""
GRACE = 5.0
"""Seconds for the main thread to end with a message of its own."""


def compare(
    request: Request, methods: list[MethodRequest], seeds: Sequence[int]
) -> alone.Ended | None:
    """`compare.compare` in every process of torchrun -> what it gives in the first, else None.

    Raises `Lost` where one of the others is gone, `Usage` for what cannot be shared.
    """
    check(request)
    signals.only_in_step()
    with handling(signals.ask):
        parallel.start(request.spec.device)
        with _watching():
            if parallel.is_first():
                return _lead(request, methods, seeds)
            _follow()
            return None


def check(request: Request) -> None:
    """Raise `Usage` for a request that several processes cannot share."""
    alone.check_request(request)
    spec, world = request.spec, ranks.world()
    if spec.batch_size < world:
        raise Usage(f"--batch-size {spec.batch_size}: {world} processes need a window each")
    if request.tracker:
        raise Usage(f"--tracker {request.tracker}: for one process")
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


class Leader:
    """The first process: what it does alone, and what it has every process do."""

    def __init__(self) -> None:
        self.others_wait = True
        """Whether the others are waiting for what to do next."""

    def run_alone(self, function: Callable[..., Any], *arguments: object) -> Any:
        """Result of the function, run by this process alone."""
        _check_asked()
        with parallel.alone():
            return _do(function, arguments)

    def run_together(self, function: Callable[..., Any], *arguments: object) -> Any:
        """What the function gives here, while every other process runs it too."""
        _check_asked()
        parallel.from_first((function, arguments))
        self.others_wait = False
        result = _do(function, arguments)
        self.others_wait = True
        return result


def _lead(request: Request, methods: list[MethodRequest], seeds: Sequence[int]) -> alone.Ended:
    leader = Leader()
    prepare = leader.run_together if request.shard_model else leader.run_alone
    try:
        return alone.compare(request, methods, seeds, leader.run_together, prepare)
    finally:
        if leader.others_wait:  # if they do not, they notice that this one left
            parallel.from_first(None)


def _follow() -> None:
    while task := parallel.from_first(None):
        _do(*task)


def _check_asked() -> None:
    if signals.asked():
        raise Interrupted(signal.SIGTERM)


def _do(function: Callable[..., Any], arguments: tuple) -> Any:
    """What the function gives. A fault of its own ends this process."""
    try:
        return function(*arguments)
    except Stopped:
        raise Interrupted(signal.SIGTERM) from None
    except Lost:
        raise
    except Fault as fault:
        raise Lost(str(fault), fault.code) from None


@contextmanager
def _watching() -> Iterator[None]:
    """A thread that notices a lost process while this one waits for an accelerator."""
    group, over = dist.new_group(backend="gloo", timeout=PATIENCE), threading.Event()
    threading.Thread(target=_watch, args=(group, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(group: dist.ProcessGroup, over: threading.Event) -> None:
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
