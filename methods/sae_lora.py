"""Low-rank pairs on the SAE's own encoder and decoder, on the model's predictions.

Karvonen (2503.17272) finetunes SAEs so: W + (alpha / rank) * B A for W_enc and W_dec. The rest of
the SAE stays as it is; the pairs are folded into its weights when it is saved.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import parametrize

from bench.errors import require_positive
from bench.problem import LOSSES, Adapted, Batches, Descent, Problem, descend

WEIGHTS = ("W_enc", "W_dec")


@dataclass(frozen=True)
class Config(Descent):
    """Fields of `--set sae_lora.FIELD=VALUE`."""

    lr: float = 2.5e-3
    rank: int = 16
    """Rank of each pair."""
    alpha: float = 16.0
    """Scale of the update: it is multiplied by alpha / rank."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "rank", "alpha")


class Pair(torch.nn.Module):
    """W -> W + (alpha / rank) * B A, with A as PEFT starts it and B = 0."""

    def __init__(self, weight: Float[Tensor, "rows columns"], config: Config) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.a = torch.nn.Parameter(weight.new_empty(config.rank, columns))
        self.b = torch.nn.Parameter(weight.new_zeros(rows, config.rank))
        torch.nn.init.kaiming_uniform_(self.a, a=5**0.5)
        self.scale = config.alpha / config.rank

    def forward(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        return torch.addmm(weight, self.b, self.a, alpha=self.scale)


class LowRankSAE(torch.nn.Module):
    """A frozen SAE with a `Pair` on each of `WEIGHTS`."""

    def __init__(self, sae: torch.nn.Module, config: Config) -> None:
        super().__init__()
        self.sae, self.cfg = deepcopy(sae), sae.cfg
        self._plain = (sae,)  # in a tuple: it is no part of this module
        for name in WEIGHTS:
            pair = Pair(getattr(self.sae, name), config)
            parametrize.register_parametrization(self.sae, name, pair)

    def encode(self, activations: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_sae"]:
        """The latents."""
        return self.sae.encode(activations)

    def decode(self, latents: Float[Tensor, "tokens d_sae"]) -> Float[Tensor, "tokens d_in"]:
        """The reconstruction."""
        return self.sae.decode(latents)

    @property
    def W_skip(self) -> Tensor:
        """Of a transcoder that has one; `AttributeError` without."""
        return self.sae.W_skip

    @torch.no_grad()
    def folded(self) -> torch.nn.Module:
        """A plain SAE with the same latents and outputs."""
        sae = deepcopy(self._plain[0])
        for name in WEIGHTS:
            getattr(sae, name).copy_(getattr(self.sae, name))
        return sae


def train(problem: Problem, batches: Batches, config: Config) -> Iterator[Adapted]:
    """Yield the adapted model before training and after every step."""
    saes = torch.nn.ModuleList(LowRankSAE(sae, config) for sae in problem.saes)
    adapted = Adapted(saes=saes, state={"saes": saes})
    yield from descend(problem, batches, adapted, config, LOSSES["kl"])
