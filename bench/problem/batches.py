"""The training batches of a run."""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor


@runtime_checkable
class Windows(Protocol):
    """Training windows [windows, seq]: a tensor, or what packs each one when it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | list[int], /) -> Int[Tensor, "batch seq"]: ...


class Batches:
    """`steps` tensors [batch, seq] of training windows, in an order set by the seed.

    Counter-based: batch i of a run is the same whatever was drawn before, so a run can go on
    at any `cursor`. Windows repeat only after all of them have been seen.
    """

    def __init__(
        self,
        windows: Windows,
        batch_size: int = 1,
        steps: int = 0,
        seed: int = 0,
        fetched: Callable[[Tensor], None] = lambda tokens: None,
    ) -> None:
        self._windows, self._batch_size, self._steps = windows, batch_size, steps
        self._seed, self._fetched = seed, fetched
        self._epoch, self._order = -1, list[int]()
        self.cursor = 0
        """The number of batches handed out so far."""

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Int[Tensor, "batch seq"]]:
        while self.cursor < self._steps:
            first = self.cursor * self._batch_size
            rows = [self._row(first + offset) for offset in range(self._batch_size)]
            tokens = self._windows[rows]
            self.cursor += 1
            self._fetched(tokens)
            yield tokens

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, len(self._windows))
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._order = torch.randperm(len(self._windows), generator=generator).tolist()
            self._epoch = epoch
        return self._order[place]


def noise(
    vocabulary: int, batch_size: int, seq_len: int, steps: int, device: torch.device | str
) -> Batches:
    """Batches of random tokens, for the warm-up."""
    generator = torch.Generator().manual_seed(0)
    shape = (steps * batch_size, seq_len)
    windows = torch.randint(vocabulary, shape, generator=generator).to(device)
    return Batches(windows, batch_size, steps, seed=0)
