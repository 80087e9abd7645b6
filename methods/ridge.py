"""Ridge regression from what the SAE gives to the clean activation, without a backward pass."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bench.errors import require_positive
from bench.problem import Adapted, Batches, Problem, correct, reconstruction, weights_of

TUNED = ("shrink",)
"""What `tune` chooses."""


@dataclass(frozen=True)
class Config:
    """Fields of `--set ridge.FIELD=VALUE`."""

    shrink: float = 10.0
    """Pull towards the identity, in multiples of the mean variance of a dimension."""
    weighted: bool = True
    """Whether a token counts by 1/|x|^2: a few of huge norm else decide the regression."""

    def __post_init__(self) -> None:
        require_positive(self, "shrink")


class Ridge(torch.nn.Module):
    """[y, 1] W, with the sums that W is computed from: y is what the SAE made of the clean x."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.eye(d + 1, d), requires_grad=False)
        self.register_buffer("gram", torch.zeros(d + 1, d + 1, dtype=torch.float64))
        self.register_buffer("cross", torch.zeros(d + 1, d, dtype=torch.float64))

    def forward(self, y: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens d"]:
        return y @ self.w[:-1] + self.w[-1]

    def add(
        self,
        y: Float[Tensor, "tokens d"],
        x: Float[Tensor, "tokens d"],
        weights: Float[Tensor, "tokens 1"],
    ) -> None:
        y = torch.nn.functional.pad(y, (0, 1), value=1.0).double()
        weighted = (y * weights).T
        self.gram += weighted @ y
        self.cross += weighted @ x.double()

    def solve(self, shrink: float) -> None:
        """The W with the least |x - [y, 1] W|^2 + pull |W - I|^2; the shift is not pulled."""
        gram, cross = self.gram / self.gram[-1, -1], self.cross / self.gram[-1, -1]
        start = torch.eye(*self.w.shape, dtype=gram.dtype, device=gram.device)
        pull = shrink * (gram.diagonal() - gram[-1].square())[:-1].mean() * start @ start.T
        self.w.copy_(start + torch.linalg.solve(gram + pull, cross - gram @ start))


def train(problem: Problem, batches: Batches, config: Config) -> Iterator[Adapted]:
    """Yield the adapted model before training and after every batch."""
    maps, saes = correct(problem.saes, Ridge)
    adapted = Adapted(saes=saes, state={"maps": maps})
    yield adapted
    for tokens in batches:
        for seen in problem.look(tokens, adapted):
            each = zip(maps, problem.saes, seen.sites, seen.targets, strict=True)
            for ridge, sae, site, x in each:
                weights = weights_of(x) if config.weighted else torch.ones_like(x[:, :1])
                ridge.add(reconstruction(sae, site), x, weights)
                ridge.solve(config.shrink)
        yield adapted
