"""The training batches of a run."""

import torch


class Batches:
    """`steps` tensors [batch, seq] of training windows, in an order set by the seed.

    Counter-based: batch i of a run is the same whatever was drawn before, so a run can go on
    at any `cursor`. Windows repeat only after all of them have been seen.
    """

    def __init__(self, windows, batch_size, steps, seed, fetched=lambda tokens: None):
        self._windows, self._batch_size, self._steps = windows, batch_size, steps
        self._seed, self._fetched = seed, fetched
        self._epoch, self._order = None, []
        self.cursor = 0
        """The number of batches handed out so far."""

    def __len__(self):
        return self._steps

    def __iter__(self):
        while self.cursor < self._steps:
            first = self.cursor * self._batch_size
            rows = [self._row(first + offset) for offset in range(self._batch_size)]
            tokens = self._windows[rows]
            self.cursor += 1
            self._fetched(tokens)
            yield tokens

    def _row(self, position):
        epoch, place = divmod(position, len(self._windows))
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._order = torch.randperm(len(self._windows), generator=generator).tolist()
            self._epoch = epoch
        return self._order[place]


def noise(vocabulary, batch_size, seq_len, steps, device):
    """Batches of random tokens, for the warm-up."""
    generator = torch.Generator().manual_seed(0)
    shape = (steps * batch_size, seq_len)
    windows = torch.randint(vocabulary, shape, generator=generator).to(device)
    return Batches(windows, batch_size, steps, seed=0)
