"""A process' share of a step and of an evaluation, and how the shares come together again.

What several processes cannot share is refused where a method asks for it, in all of them alike.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench import devices
from bench.distributed.group import any_of, check_same, rank, sharded, sum_in_place, total, world
from bench.errors import OutOfMemory, Usage


def share(windows: Int[Tensor, "n seq"]) -> Int[Tensor, "share seq"]:
    """The windows [n, seq] that this process passes, some as many as others or one more."""
    return windows.tensor_split(world())[rank()]


def bounds(n: int) -> tuple[int, int]:
    """(first, end) of the share of this process in n windows; all of them where the LM is sharded,
    so that no process passes more often than another."""
    if sharded():
        return 0, n
    sizes = [len(part) for part in torch.empty(n).tensor_split(world())]
    return sum(sizes[: rank()]), sum(sizes[: rank() + 1])


def put_together(part: Float[Tensor, " part"], first: int, n: int) -> Float[Tensor, " n"]:
    """The n values of which this process has those from number `first` on."""
    if world() == 1 or sharded():
        return part
    whole = part.new_zeros(n)
    whole[first : first + len(part)] = part
    return sum_in_place(whole)


def mean(part: Float[Tensor, "tokens d"]) -> Float[Tensor, " d"]:
    """The mean over the tokens of all processes, each of which has a part of them."""
    if world() == 1:
        return part.mean(0)
    sums = torch.cat([part.sum(0), part.new_full((1,), len(part))])
    sum_in_place(sums)
    return sums[:-1] / sums[-1]


def check_alike(parameters: Iterable[Tensor]) -> None:
    """Raise `Usage` where the parameters are not the same in every process, bit by bit."""
    if world() > 1:
        bits = (p.detach().flatten().view(torch.uint8) for p in parameters)
        check_same([int(each.sum(dtype=torch.int64)) for each in bits], "start (sums of bytes)")


@contextmanager
def own_random_numbers() -> Iterator[None]:
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


def gradients_before(parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Take the gradients away that are there already, for `add_up`: nobody's share.

    One process leaves them where they are -> [].
    """
    if world() == 1:
        return []
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return before


@torch.no_grad()
def add_up(
    loss: Float[Tensor, ""] | float, parameters: Sequence[Tensor], before: Sequence[Tensor | None]
) -> Float[Tensor, ""] | float:
    """Sum the gradients of all processes, and what was there `before` -> the sum of their losses.

    In one piece, in the order of `parameters`. A process whose share has no scored position has
    no gradient; one that nobody has stays as it was.
    """
    if world() == 1:
        return loss
    loss = _add_up(loss, [p for p in parameters if p.requires_grad])
    for p, kept in zip(parameters, before, strict=True):
        if kept is not None:
            p.grad = kept if p.grad is None else kept + p.grad
    return loss


def _add_up(loss: Float[Tensor, ""] | float, parameters: Sequence[Tensor]) -> Float[Tensor, ""]:
    have = any_of(*(p.grad is not None for p in parameters))
    trained = [p for p, has in zip(parameters, have, strict=True) if has]
    if not trained:
        return total(torch.as_tensor(loss))
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    loss = torch.as_tensor(loss, dtype=torch.float32, device=trained[0].device)
    whole = torch.cat([loss.reshape(1), *(g.flatten().float() for g in gradients)])
    sum_in_place(whole)
    for p, summed in zip(trained, whole[1:].split([p.numel() for p in trained]), strict=True):
        p.grad = summed.view_as(p).to(p.dtype)
    return whole[0].clone()


def check_loss(loss: Callable[..., object]) -> None:
    """Raise `Usage` for a loss that is not a mean over tokens: its shares do not add up."""
    if not getattr(loss, "mean_over_tokens", False):
        _refuse("method's loss is one of the whole batch, expected a mean over tokens (KL)")


def check_looks() -> None:
    """Raise `Usage` for a method without gradients: what it sums up has no shares."""
    _refuse("method takes no gradients (it looks at all tokens itself)")


def _refuse(why: str) -> None:
    if world() > 1:
        raise Usage(f"{world()} processes: the {why}; run it in one process")


def check_copies() -> None:
    """Raise `Usage` for a method that trains the LM's blocks where they are spread."""
    if sharded():
        raise Usage("--shard-model: the method trains copies of the LM's blocks")


def check_may_halve() -> None:
    """Raise `OutOfMemory` where one process cannot pass more often than the others."""
    if sharded():
        raise OutOfMemory(
            f"out of memory in process {rank()}, and with --shard-model all must pass as often: "
            "lower --micro-batch or --seq-len"
        )
