"""Several processes at one run, over PyTorch's own process groups: data parallel.

Every process has the whole frozen LM; with `--shard-model` its part of every block. All fetch the
same batches, and each passes its share of the windows. Gradients are summed before any clipping, so
all take the same step. Methods do not know. With one process, or inside `alone()`, every function
here returns its input.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bench import devices
from bench.errors import Lost, Usage, reason
from bench.io import ranks

JOINING = timedelta(minutes=5)
"""What processes wait for each other to start."""
LONG = timedelta(days=7)
"""What they wait for each other later, as for the training of an SAE: who dies is seen at once."""
SIGNS = ("closed by peer", "reset by peer", "broken pipe", "gloo/transport", "nccl", "socket")
"""The text of an error that comes from a lost process."""

Value = TypeVar("Value")

GONE = "another process of the run is gone"
GO_ON = "the same command goes on from the last checkpoint"

_state: dict[str, Any] = {"group": None, "alone": False, "sharded": False}


def start(device: str) -> None:
    """Join the processes that torchrun has started; this one takes its accelerator."""
    devices.check(device)
    if device == "mps":
        raise Usage("--device mps: one process only; several work on cpu or cuda")
    if device == "cuda":
        n_gpus = torch.cuda.device_count()
        if ranks.local_rank() >= n_gpus:
            raise Usage(f"--nproc-per-node: {n_gpus} GPUs are here, expected one a process")
        torch.cuda.set_device(ranks.local_rank())
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    # A process that waits for a dead one is ended by `bench.runs.torchrun`, with a line of its own.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    try:
        dist.init_process_group(backend, timeout=JOINING)
    except RuntimeError as error:
        raise Lost(f"not all {ranks.world()} processes have come ({reason(error)})") from None
    _state["group"] = dist.new_group(backend=backend, timeout=LONG)


def world() -> int:
    """How many processes share this work."""
    return dist.get_world_size() if _state["group"] is not None and not _state["alone"] else 1


def rank() -> int:
    """The number of this process among them."""
    return dist.get_rank() if world() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Inside the block this process works by itself."""
    before, _state["alone"] = _state["alone"], True
    try:
        yield
    finally:
        _state["alone"] = before


def sharded() -> bool:
    """Whether the blocks of the LM are spread over the processes: then each passes as often."""
    return world() > 1 and _state["sharded"]


def together() -> dict[str, Any]:
    """What a record says of the processes that worked at it."""
    return {"world_size": world()} | ({"sharded": True} if sharded() else {})


def shard(blocks: Iterable[torch.nn.Module], device: str) -> None:
    """Spread the weights of each block over the processes (FSDP2); gathered where they are used.

    A block is freed after its forward pass and gathered again for the backward one.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (world(),))
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    _state["sharded"] = True


def total(tensor: Any) -> Any:
    """The sum over all processes of a tensor of one shape, or of a number."""
    if world() == 1:
        return tensor
    if not isinstance(tensor, torch.Tensor):
        return type(tensor)(total(torch.tensor(tensor, dtype=torch.float64)).item())
    return sum_in_place(tensor.clone())


def sum_in_place(tensor: Tensor) -> Tensor:
    """The sum over all processes, in the memory of `tensor`."""
    with telling_losses():
        dist.all_reduce(tensor, group=_state["group"])
    return tensor


def any_of(*facts: bool) -> tuple[bool, ...]:
    """For each fact, whether it holds in one of the processes at least."""
    if world() == 1:
        return facts
    return tuple(bool(n) for n in total(torch.tensor(facts, dtype=torch.int32)))


def all_of(fact: bool) -> bool:
    """Whether it holds in every process."""
    return not any_of(not fact)[0]


def gathered(value: Any) -> list[Any]:
    """A plain value of every process, by rank."""
    if world() == 1:
        return [value]
    values = [None] * world()
    with telling_losses():
        dist.all_gather_object(values, value, group=_state["group"])
    return values


def from_first(value: Any) -> Any:
    """What the first process gives here, in every process."""
    if world() == 1:
        return value
    values = [value]
    with telling_losses():
        dist.broadcast_object_list(values, src=0, group=_state["group"], device=torch.device("cpu"))
    return values[0]


def first_then_others(make: Callable[[], Value]) -> Value:
    """`make()`, by the first process before the others: what it leaves on the disk they find."""
    if not is_first():
        from_first(None)
        return make()
    made = make()
    from_first(None)
    return made


def check_same(value: object, what: str) -> None:
    """Raise `Usage`, in every process, where one has another value than the first."""
    first, *others = gathered(value)
    for number, other in enumerate(others, start=1):
        if other != first:
            raise Usage(f"rank {number} has another {what} than rank 0: {other}, not {first}")


@contextmanager
def telling_losses() -> Iterator[None]:
    """Inside the block, errors caused by a lost process are raised as `Lost`."""
    try:
        yield
    except RuntimeError as error:
        if world() == 1 or not any(sign in str(error).lower() for sign in SIGNS):
            raise
        why = re.sub(r"\[.*?\]", "", reason(error)).partition(". ")[0].strip()
        raise Lost(f"{GONE} ({why}); {GO_ON}") from None
