"""Several processes at one run, over PyTorch's own process groups: data parallel.

Every process has the whole frozen LM (or, with `--shard-model`, its part of every block), fetches
the same batches, passes its share of the windows, and takes the same step, as gradients are
summed before anybody clips them. Methods do not know. Where there is one process, or inside
`alone()`, all of this gives back what it is given.
"""

import re
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from bench import devices, launched
from bench.errors import Fault, Lost, Usage, reason

LONG = timedelta(days=7)
"""What processes wait for each other, as for the training of an SAE: who dies is seen at once."""

GONE = "another process of the run is gone"
GO_ON = "the same command goes on from the last checkpoint"

_state = {"alone": False, "sharded": False}


def start(device):
    """Join the processes that torchrun has started; this one takes its accelerator."""
    devices.check(device)
    if device == "mps":
        raise Usage("--device mps: one process only; several work on cpu or cuda")
    if device == "cuda":
        if launched.local_rank() >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise Usage(f"--nproc-per-node: {found} GPUs are here, expected one a process")
        torch.cuda.set_device(launched.local_rank())
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=LONG)


def world():
    """How many processes share this work."""
    return dist.get_world_size() if dist.is_initialized() and not _state["alone"] else 1


def rank():
    """The number of this process among them."""
    return dist.get_rank() if world() > 1 else 0


def is_first():
    """Whether this process is the one that writes."""
    return rank() == 0


@contextmanager
def alone():
    """Inside the block this process works by itself."""
    before, _state["alone"] = _state["alone"], True
    try:
        yield
    finally:
        _state["alone"] = before


def sharded():
    """Whether the blocks of the LM are spread over the processes: then each passes as often."""
    return world() > 1 and _state["sharded"]


def shard(blocks, device):
    """Spread the weights of each block over the processes (FSDP2); gathered where they are used.

    A block is freed after its forward pass and gathered again for the backward one.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (world(),))
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    _state["sharded"] = True


def share(windows):
    """The windows [n, seq] that this process passes, some as many as others or one more."""
    return windows.tensor_split(world())[rank()]


def bounds(n):
    """(first, end) of the share of this process in n windows; all of them where the LM is sharded,
    so that no process passes more often than another."""
    if sharded():
        return 0, n
    sizes = [len(part) for part in torch.empty(n).tensor_split(world())]
    return sum(sizes[: rank()]), sum(sizes[: rank() + 1])


def total(tensor):
    """The sum over all processes of a tensor of one shape, or of a number."""
    if world() == 1:
        return tensor
    if not isinstance(tensor, torch.Tensor):
        return type(tensor)(total(torch.tensor(tensor, dtype=torch.float64)).item())
    summed = tensor.clone()
    with _telling_losses():
        dist.all_reduce(summed)
    return summed


def put_together(part, first, n):
    """The n values of which this process has those from number `first` on."""
    if world() == 1 or sharded():
        return part
    whole = part.new_zeros(n)
    whole[first : first + len(part)] = part
    return total(whole)


def any_of(*facts):
    """For each fact, whether it holds in one of the processes at least."""
    if world() == 1:
        return facts
    return tuple(bool(n) for n in total(torch.tensor(facts, dtype=torch.int32)))


def all_of(fact):
    """Whether it holds in every process."""
    return not any_of(not fact)[0]


def gathered(value):
    """A plain value of every process, by rank."""
    if world() == 1:
        return [value]
    values = [None] * world()
    with _telling_losses():
        dist.all_gather_object(values, value)
    return values


def from_first(value):
    """What the first process gives here, in every process."""
    if world() == 1:
        return value
    told = [value]
    with _telling_losses():
        dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
    return told[0]


def first_then_others(make):
    """`make()`, by the first process before the others: what it leaves on the disk they find."""
    made = make() if is_first() else None
    from_first(None)
    return made if is_first() else make()


def own_meter(taken):
    """The state of this process' meter in a checkpoint; the first one's where it had none."""
    meters = taken.get("meters", [taken["meter"]])
    return meters[rank()] if len(meters) == world() else taken["meter"]


def check_same(value, what):
    """Raise `Usage` where a process has another value than the first."""
    for number, other in enumerate(gathered(value)):
        if other != value:
            raise Usage(f"rank {number} has another {what} than rank {rank()}: {other}, {value}")


@contextmanager
def own_random_numbers():
    """Inside the block each process draws numbers of its own, as for dropout; after it all go on
    with the same."""
    if world() == 1:
        yield
        return
    seed = int(torch.randint(2**31, (1,)))
    drawn = devices.random_state()
    torch.manual_seed(seed + rank())
    try:
        yield
    finally:
        devices.set_random_state(drawn)


@torch.no_grad()
def add_up(loss, parameters):
    """Sum the gradients of all processes in place -> the sum of their losses.

    In one piece, in the order of `parameters`. A process whose share has no scored position has
    no gradient; one that nobody has stays None.
    """
    if world() == 1:
        return loss
    trained = [p for p in parameters if p.requires_grad]
    known = any_of(*(p.grad is not None for p in trained))
    trained = [p for p, n in zip(trained, known, strict=True) if n]
    if not trained:
        return total(torch.as_tensor(loss))
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    loss = torch.as_tensor(loss, dtype=torch.float32, device=trained[0].device)
    whole = total(torch.cat([loss.reshape(1), *(g.flatten().float() for g in gradients)]))
    for p, summed in zip(trained, whole[1:].split([p.numel() for p in trained]), strict=True):
        p.grad = summed.view_as(p).to(p.dtype)
    return whole[0].clone()


@contextmanager
def _telling_losses():
    """What a process group raises when a process is gone, as `Lost`."""
    try:
        yield
    except Fault:
        raise
    except RuntimeError as error:
        said = re.sub(r"\[.*?\]", "", reason(error)).partition(". ")[0].strip()
        raise Lost(f"{GONE} ({said}); {GO_ON}") from None
