"""What a training loss may look at: clean sites, reconstructions, final states, the KL."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from bench.config.spec import ends_of
from bench.problem.losses import kl, kl_to

if TYPE_CHECKING:
    from bench.problem.problem import Adapted, Clean, Problem


def kl_to_clean(seen: "Seen") -> Float[Tensor, ""]:
    """KL(clean || adapted) in nats per scored token: what methods train on by default."""
    return seen.kl


# So it is the same in however many micro-batches; `problem.py` and `shares.py` ask for it.
kl_to_clean.mean_over_tokens = True  # type: ignore[attr-defined]


def kl_and_mse(seen: "Seen") -> Float[Tensor, ""]:
    """0.5 * (alpha * KL + MSE), alpha = MSE / KL held constant in each step.

    Karvonen 2503.17272, `train_model`: the KL takes the MSE's size, so that a step size found
    for reconstruction carries over.
    """
    pairs = zip(seen.reconstructions, seen.targets, strict=True)
    mse = sum(torch.nn.functional.mse_loss(made, given) for made, given in pairs)
    alpha = (mse / (seen.kl + 1e-8)).detach()
    return 0.5 * (alpha * seen.kl + mse)


def kl_with_and_without(keep: float) -> Callable[["Seen"], Tensor]:
    """The loss KL(clean || adapted) + keep * KL(clean || adapted without its SAEs)."""

    def loss(seen: Seen) -> Float[Tensor, ""]:
        return seen.kl + keep * seen.kl_without_saes

    loss.mean_over_tokens = True  # type: ignore[attr-defined]
    return loss


LOSSES = {"kl": kl_to_clean, "kl+mse": kl_and_mse}
"""What a method's field `loss` may say."""


class Seen:
    """What a loss may look at, each computed when it is first asked for.

    A loss that asks for no final state (`mse`) runs no block after the last site and costs no
    backward pass through the LM.
    """

    def __init__(
        self, problem: "Problem", tokens: Int[Tensor, "batch seq"], adapted: "Adapted"
    ) -> None:
        self.problem, self.tokens, self.adapted = problem, tokens, adapted

    @cached_property
    def _clean(self) -> "Clean":
        problem, cache = self.problem, self.problem.clean_cache
        known = cache and cache.entry(problem, self.tokens)
        return problem.sites(self.tokens, problem.start_of(self.adapted), known)

    @cached_property
    def sites(self) -> list[Float[Tensor, "tokens d_site"]]:
        """The clean activations at the spliced positions of each site, as its SAE reads them;
        float32, as SAEs are."""
        return self._spliced(self._clean.sites)

    @cached_property
    def targets(self) -> list[Float[Tensor, "tokens d_site"]]:
        """What the SAE of each site should give there: `sites`, but for a transcoder."""
        pairs = [*zip(self._clean.sites, self._clean.targets, strict=True)]
        return self.sites if all(x is y for x, y in pairs) else self._spliced([y for _, y in pairs])

    def _spliced(self, values: list[Tensor]) -> list[Float[Tensor, "tokens d_site"]]:
        rows = self.problem.rows(self.tokens, self.problem.spliced)
        return [flat(value)[rows].float() for value in values]

    @cached_property
    def reconstructions(self) -> list[Float[Tensor, "tokens d_site"]]:
        """What each SAE makes of its clean activations."""
        return [
            reconstruction(sae, site)
            for sae, site in zip(self.adapted.saes, self.sites, strict=True)
        ]

    @cached_property
    def clean_final(self) -> Float[Tensor, "tokens d_model"]:
        """The clean model's final hidden state at the scored positions."""
        return self._scored(self.problem.finish(self._clean).final)

    @cached_property
    def final(self) -> Float[Tensor, "tokens d_model"]:
        """The adapted model's final hidden state at the scored positions."""
        known = None
        if self._the_site_sees_clean() and "reconstructions" in vars(self):
            known = [lambda read, given: self.reconstructions[0]]
        return self._scored(self.problem.final(self._clean, self.adapted, reconstruct=known))

    @cached_property
    def kl(self) -> Float[Tensor, ""]:
        """KL(clean || adapted) in nats per scored token."""
        return self._kl(self.final)

    @cached_property
    def kl_without_saes(self) -> Float[Tensor, ""]:
        """KL(clean || adapted) with the SAEs taken out, in nats per scored token."""
        nothing = [unchanged] * len(self.adapted.saes)
        return self._kl(self._scored(self.problem.final(self._clean, self.adapted, nothing)))

    def _kl(self, final: Float[Tensor, "tokens d_model"]) -> Float[Tensor, ""]:
        problem, cache = self.problem, self.problem.clean_cache
        if cache:
            return kl_to(cache.teacher(problem, self.tokens), final, problem.head).mean()
        return kl(self.clean_final, final, problem.head).mean()

    def _the_site_sees_clean(self) -> bool:
        """One SAE and no adapters: its input in the student pass is the clean one."""
        return len(self.adapted.saes) == 1 and not self.adapted.hooks

    def _scored(self, hidden: Tensor) -> Float[Tensor, "tokens d_model"]:
        return flat(hidden)[self.problem.rows(self.tokens, self.problem.scored)]


def reconstruction(
    sae: torch.nn.Module, activations: Float[Tensor, "tokens d_site"]
) -> Float[Tensor, "tokens d_site"]:
    """What a SAELens SAE makes of activations: encode, then decode, once each."""
    return decoded(sae, sae.encode(activations), activations)


def decoded(sae: torch.nn.Module, latents: Tensor, activations: Tensor) -> Tensor:
    """What an SAE gives for these latents; a transcoder may add a linear map of what it read."""
    made = sae.decode(latents)
    if not hasattr(sae, "W_skip"):
        return made
    return made + activations.to(sae.W_skip.dtype) @ sae.W_skip.T


def weights_of(activations: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens 1"]:
    """1/|x|^2 of each token, their mean 1: a few tokens of huge norm else outweigh all others."""
    weights = activations.square().sum(-1, keepdim=True).clamp_min(1e-12).reciprocal()
    return weights / weights.mean()


Reconstruct = Callable[[Tensor, Tensor], Tensor]
"""(what is read at a site, what is there to be replaced) -> what takes its place; [tokens, d]."""


def by(sae: torch.nn.Module) -> Reconstruct:
    """An SAE in its place."""
    return lambda read, given: reconstruction(sae, read)


def unchanged(read: Tensor, given: Tensor) -> Tensor:
    """No SAE in its place."""
    return given


def zero(read: Tensor, given: Tensor) -> Tensor:
    """Nothing in its place, as SAELens ablates."""
    return torch.zeros_like(given)


def splice(site: str, reconstruct: Reconstruct, rows: Int[Tensor, " rows"]) -> list:
    """The (hook point, hook) pairs that put what `reconstruct` makes at flat positions `rows` of
    a site: what replaces, then what reads where that is another point."""
    seen: list[Tensor] = []
    at, to = ends_of(site)

    def read(value: Tensor, hook: torch.nn.Module) -> None:
        seen[:] = [flat(value)[rows]]

    def replace(value: Tensor, hook: torch.nn.Module) -> Tensor:
        tokens = flat(value)
        given = tokens[rows]
        put = reconstruct(seen.pop() if at != to else given, given).to(value.dtype)
        return tokens.index_copy(0, rows, put).view_as(value)

    return [(to, replace), *([(at, read)] if at != to else [])]


def flat(value: Float[Tensor, "batch seq *d"]) -> Float[Tensor, "tokens d"]:
    """One row a token; of an activation by heads, the heads one after the other."""
    return rearrange(value, "batch seq ... -> (batch seq) (...)")
