"""What training did to an SAE's latents (`latents`), and to what they do in the model (`effects`).

Measurements of a finished run on its validation windows, by site. "Before" is the SAE that the run
began with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cosine_similarity

from bench.devices import wide
from bench.harness.evaluate import Gauge, HeldOut, at_once, finals_of, parts, predictions
from bench.problem.blocks import Tokens
from bench.problem.hooks import end_block, start_block
from bench.problem.losses import Head
from bench.problem.objectives import Reconstruct, by, decoded, flat, reconstruction, unchanged
from bench.problem.problem import Adapted, Clean, Problem

LATENTS = 200
"""So many of the most active latents are zeroed, one at a time."""
VOCABULARY_AT_ONCE = 16_384
"""Rows of the unembedding that are copied into a wider format at once."""
Hidden = Float[Tensor, "positions d_model"]
Product = Callable[[tuple[Hidden, Hidden], tuple[Hidden, Hidden]], Float[Tensor, "positions 3"]]
"""Two models' (final hidden states changed, unchanged) -> at each position the products over the
vocabulary of their changes of logits, centred: of the first with itself, with the second, and of
the second with itself."""


@torch.no_grad()
def latents(problem: Problem, held_out: HeldOut, adapted: Adapted) -> dict[str, Any]:
    """Each site's SAE before and after, latent by latent, on the clean residual -> {site: values}.

    The Jaccard index is that of a token's two sets of active latents, its mean over tokens. The
    cosines are those of latents that either SAE has active anywhere. Adapters on the model leave
    the SAE as it was, and all of these at 1: what they change, `effects` shows.
    """
    pairs = [Pair(*both) for both in zip(problem.saes, adapted.saes, strict=True)]
    for part in parts(held_out.tokens):
        tokens = held_out.tokens[part]
        clean = problem.sites(tokens, known=held_out.entry[part])
        rows = problem.rows(tokens, problem.spliced)
        for pair, *both in zip(pairs, clean.sites, clean.targets, strict=True):
            pair.see(*(flat(values)[rows].float() for values in both))
    return {name: pair.values() for name, pair in zip(problem.site_names, pairs, strict=True)}


class Pair:
    """The SAE of a site before and after training, and sums over the tokens that they see."""

    def __init__(self, before: Module, after: Module) -> None:
        self.saes = before, after
        self.gauges = Gauge(before), Gauge(after)
        self.jaccard: Any = 0.0
        self.active: Any = False
        """Whether each latent was active anywhere, [before and after, latents]."""

    def see(self, read: Float[Tensor, "tokens d"], given: Float[Tensor, "tokens d"]) -> None:
        """Add these tokens to the sums: what the SAEs read of them, and what they should give."""
        for gauge in self.gauges:
            gauge(read, given)
        before, after = (sae.encode(read) != 0 for sae in self.saes)
        shared, either = (before & after).sum(-1), (before | after).sum(-1)
        # Two empty sets are the same set.
        self.jaccard += torch.where(either > 0, shared / either, 1.0).sum()
        self.active = torch.stack([before.any(0), after.any(0)]) | self.active

    def values(self) -> dict[str, Any]:
        """What was measured, as JSON values: [before, after] of what each SAE has one of."""
        before, after = self.saes
        alive = self.active.any(0)
        return {
            "tokens": self.gauges[0].n,
            "jaccard": float(self.jaccard) / self.gauges[0].n,
            "decoder_cosine": spread(_cosines(before.W_dec, after.W_dec)[alive]),
            "encoder_cosine": spread(_cosines(before.W_enc.T, after.W_enc.T)[alive]),
            "fvu": [gauge.fvu for gauge in self.gauges],
            "l0": [gauge.l0 for gauge in self.gauges],
            "dead": (~self.active).double().mean(-1).tolist(),
        }


def _cosines(
    before: Float[Tensor, "latents d"], after: Float[Tensor, "latents d"]
) -> Float[Tensor, " latents"]:
    return cosine_similarity(before.float(), after.float(), dim=-1)


def spread(
    values: Float[Tensor, " n"], percents: tuple[int, ...] = (5, 50, 95)
) -> dict[str, float] | None:
    """Mean and percentiles (`mean`, `p5`, `p50`, ...); None of no values."""
    if not len(values):
        return None
    values = values.double().cpu()
    quantiles = [torch.quantile(values, percent / 100).item() for percent in percents]
    names = [f"p{percent}" for percent in percents]
    return {"mean": values.mean().item(), **dict(zip(names, quantiles, strict=True))}


@torch.no_grad()
def effects(problem: Problem, held_out: HeldOut, adapted: Adapted) -> dict[str, Any]:
    """Whether a latent does in the adapted model what its vector does in the clean one, by site.

    Each of the `LATENTS` most active latents is zeroed in the window where it is the most active,
    and the same vector is taken from the clean residual. `correlation` is Pearson's, of the two
    changes of logits: over the vocabulary, centred at each position, and the predicted positions
    from the first active one on. `ratio` is the adapted model's change over the clean one's, as
    norms. `before` is the same of the spliced model with its own most active latents: the unit in
    which a change counts. A latent that changes nothing has None, and is in no mean.
    """
    models = {"before": Adapted(saes=problem.saes), "adapted": adapted}
    product = products(problem.head)
    return {
        site: {
            name: Zeroing(problem, held_out, model, index, product).values()
            for name, model in models.items()
        }
        for index, site in enumerate(problem.site_names)
    }


@dataclass(frozen=True)
class Zeroing:
    """The latents of one site of a model, each zeroed in the window where it is most active."""

    problem: Problem
    held_out: HeldOut
    model: Adapted
    site: int
    product: Product

    def values(self) -> dict[str, Any]:
        """Correlation and ratio (`effects`) of the most active latents, and over all of them."""
        chosen, windows = self.most_active()
        size = at_once(windows.device, self.held_out.tokens.shape[1])
        sums = [
            self.zeroed(chosen[at : at + size], windows[at : at + size])
            for at in range(0, len(chosen), size)
        ]
        # A dead SAE has no latent to zero.
        own, both, clean = torch.cat([self.held_out.entry.new_zeros(0, 3), *sums]).T
        there = (own > 0) & (clean > 0)
        values: dict[str, Any] = {"latents": chosen.tolist(), "with_effect": int(there.sum())}
        found = {"correlation": both / (own * clean).sqrt(), "ratio": (own / clean).sqrt()}
        for name, numbers in found.items():
            values[name] = spread(numbers[there], (25, 50, 75))
            each = zip(numbers.tolist(), there.tolist(), strict=True)
            values[f"{name}_by_latent"] = [number if known else None for number, known in each]
        return values

    def most_active(self) -> tuple[Int[Tensor, " latents"], Int[Tensor, " latents"]]:
        """The latents of largest summed activation, and the window where each has most of it.

        In the order of the windows, so that neighbours share them.
        """
        sae, tokens = self.model.saes[self.site], self.held_out.tokens
        total = sae.W_dec.new_zeros(len(sae.W_dec))
        most, window = total.clone(), total.long()
        for part in parts(tokens):
            entry = self.held_out.entry[part]
            x = activations(self.problem, tokens[part], self.model, entry)[self.site]
            which = self.problem.rows(tokens[part], self.problem.spliced) // tokens.shape[1]
            sums = total.new_zeros(len(tokens[part]), len(total))
            larger, at = sums.index_add_(0, which, sae.encode(x)).max(0)
            total += sums.sum(0)
            window = torch.where(larger > most, at + part.start, window)
            most = torch.maximum(larger, most)
        chosen = total.topk(min(LATENTS, int((total > 0).sum()))).indices
        chosen = chosen[window[chosen].argsort(stable=True)]
        return chosen, window[chosen]

    def zeroed(
        self, latents: Int[Tensor, " latents"], windows: Int[Tensor, " latents"]
    ) -> Float[Tensor, "latents 3"]:
        """The `product` of the model and the clean one for each latent in its window, summed over
        the positions from the first on where the latent adds something."""
        tokens, saes = self.held_out.tokens[windows], self.model.saes
        rows = self.problem.rows(tokens, self.problem.spliced)
        without = Without(saes[self.site], latents[rows // tokens.shape[1]])
        own = self.change(windows, self.model, list(map(by, saes)), without)
        bare, nothing = Adapted(saes=self.problem.saes), [unchanged] * len(saes)
        clean = self.change(windows, bare, nothing, lambda read, given: given - without.removed)
        active = torch.zeros(tokens.numel(), dtype=torch.long, device=tokens.device)
        active[rows] = without.removed.any(-1).long()
        later = active.view(tokens.shape).cumsum(1) > 0
        found = self.product(*((new[later], old[later]) for new, old in (own, clean)))
        return found.new_zeros(len(tokens), 3).index_add_(0, later.nonzero()[:, 0], found)

    def change(
        self,
        windows: Int[Tensor, " windows"],
        model: Adapted,
        functions: Sequence[Reconstruct],
        at_site: Reconstruct,
    ) -> tuple[Hidden, Hidden]:
        """Final hidden states [windows, seq, d_model] of a model with these `functions` at its
        sites: with `at_site` at this one, and without."""
        changed = [*functions[: self.site], at_site, *functions[self.site + 1 :]]
        once, which = windows.unique(return_inverse=True)
        return self.finals(windows, model, changed), self.finals(once, model, functions)[which]

    def finals(
        self, windows: Int[Tensor, " windows"], model: Adapted, functions: Sequence[Reconstruct]
    ) -> Float[Tensor, "windows seq d_model"]:
        """Final hidden states of these windows at their predicted positions, 0 elsewhere."""
        tokens, entry = self.held_out.tokens[windows], self.held_out.entry[windows]
        part = replace(self.held_out, tokens=tokens, entry=entry)
        found = finals_of(self.problem, part, model, list(functions))
        whole = found.new_zeros(tokens.numel(), found.shape[-1])
        whole[predictions(self.problem, tokens)[0]] = found
        return whole.view(*tokens.shape, -1)


class Without:
    """An SAE's reconstruction with one latent of each token zeroed; keeps what that `removed`."""

    def __init__(self, sae: Module, latent: Int[Tensor, " tokens"]) -> None:
        self.sae, self.latent = sae, latent[:, None]

    def __call__(self, x: Float[Tensor, "tokens d"], given: Tensor) -> Float[Tensor, "tokens d"]:
        whole = reconstruction(self.sae, x)
        # Encoded anew: an SAE that scales each token forgets the scale when it has decoded.
        less = decoded(self.sae, self.sae.encode(x).scatter(1, self.latent, 0.0), x)
        self.removed: Float[Tensor, "tokens d"] = whole - less
        return less


def activations(
    problem: Problem, tokens: Tokens, adapted: Adapted, known: Tensor | None = None
) -> list[Float[Tensor, "rows d_site"]]:
    """What reaches the SAE at the spliced positions of each site, in the adapted model.

    `known` is the clean residual at the problem's `site_start`, where it is known.
    """
    if sees_clean(problem, adapted):
        rows = problem.rows(tokens, problem.spliced)
        return [flat(site)[rows].float() for site in problem.sites(tokens, known=known).sites]
    seen: dict[int, Tensor] = {}

    def watched(index: int, sae: Module) -> Reconstruct:
        return lambda read, given: reconstruction(sae, seen.setdefault(index, read))

    start = problem.start_of(adapted)
    entry = problem.entry(tokens, start)
    clean = Clean(tokens, start, entry, sites=[], reached=(start, entry))
    problem.final(clean, adapted, [watched(*pair) for pair in enumerate(adapted.saes)])
    return [seen[index].float() for index in range(len(adapted.saes))]


def sees_clean(problem: Problem, adapted: Adapted) -> bool:
    """Whether clean activations reach the SAE: there is one, and no adapter comes before it."""
    end = max(end_block(name, problem.n_blocks) for name in problem.site_names)
    starts = [start_block(name, problem.n_blocks) for name, _ in adapted.hooks]
    return len(problem.site_names) == 1 and min(starts, default=end) >= end


def products(head: Head) -> Product:
    """The `Product` for this head.

    Logits are linear in hidden states, so the products over the whole vocabulary are one small
    quadratic form; where a softcap bends them, they are formed a chunk of positions at a time.
    """
    if head.softcap is not None:
        return lambda a, b: torch.cat([_by_logits(head, a, b, c) for c in head.chunks(len(a[0]))])
    form = centred_gram(head.weight)

    def by_form(a: tuple[Hidden, Hidden], b: tuple[Hidden, Hidden]) -> Float[Tensor, "positions 3"]:
        own, other = (new.to(form.dtype) - old.to(form.dtype) for new, old in (a, b))
        pairs = (own, own), (own, other), (other, other)
        return torch.stack([torch.linalg.vecdot(x @ form, y) for x, y in pairs], -1)

    return by_form


def _by_logits(
    head: Head, a: tuple[Hidden, Hidden], b: tuple[Hidden, Hidden], chunk: slice
) -> Float[Tensor, "positions 3"]:
    own, other = (head.logits(new[chunk]).sub_(head.logits(old[chunk])) for new, old in (a, b))
    for change in (own, other):
        change.sub_(change.mean(-1, keepdim=True))
    pairs = (own, own), (own, other), (other, other)
    found = [torch.linalg.vecdot(x, y) for x, y in pairs]
    return torch.stack(found, -1).to(wide(own.device))


def centred_gram(weight: Float[Tensor, "vocab d"]) -> Float[Tensor, "d d"]:
    """W_c^T W_c, where W_c is W less the mean of its rows."""
    dtype = wide(weight.device)
    mean = sum(part.to(dtype).sum(0) for part in weight.split(VOCABULARY_AT_ONCE)) / len(weight)
    centred = (part.to(dtype) - mean for part in weight.split(VOCABULARY_AT_ONCE))
    return sum(part.T @ part for part in centred)
