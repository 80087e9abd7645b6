"""The measurements of `check`: an SAE at its site; a wrong layer, scale, sparsity or position."""

import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench.config.spec import ends_of
from bench.errors import Rejected
from bench.harness.evaluate import Gauge, HeldOut, parts
from bench.loading import peft_format
from bench.problem.blocks import Tokens
from bench.problem.objectives import flat, reconstruction
from bench.problem.problem import Problem

if TYPE_CHECKING:
    from sae_lens import SAE

Activations = Float[Tensor, "tokens d_site"]
Reconstruct = Callable[["SAE", Tensor], Tensor]
"""SAE and activations -> their reconstruction."""
See = Callable[[str, Tensor], None]
Key = TypeVar("Key")

POOR = 0.5
"""Above this unexplained share something is wrong with the SAE or with its site."""
BETTER = 0.8
"""Another layer, scale or sparsity must leave less than this times as much unexplained."""
TOKENS = 8_192
"""At most so many tokens are looked at."""
LATENTS_AT_ONCE = 2**26
KS = (8, 16, 32, 64, 128, 256)


@torch.no_grad()
def statistics(problem: Problem, index: int, held_out: HeldOut) -> dict[str, float]:
    """Statistics of one SAE on clean activations, at the spliced positions of held-out windows."""
    sae, fires, cosines = problem.saes[index], torch.tensor(0), []
    gauge = Gauge(sae)
    for part in parts(held_out.tokens):
        tokens = held_out.tokens[part]
        clean = problem.sites(tokens, known=held_out.entry[part])
        rows = problem.rows(tokens, problem.spliced)
        read, given = (flat(of[index])[rows].float() for of in (clean.sites, clean.targets))
        cosines.append(torch.cosine_similarity(given, gauge(read, given), dim=-1))
        fires = fires + sae.encode(read).count_nonzero(0)
    return {
        "fvu": gauge.fvu,
        "cosine": torch.cat(cosines).mean().item(),
        "l0": gauge.l0,
        "dead": (fires == 0).double().mean().item(),
        "tokens": gauge.n,
    }


def fired(problem: Problem) -> str:
    """Raise `Rejected` where a hook point fires more than once in a pass -> how many fire.

    The points of adapters and SAEs must fire. Others need not: the bridge names some that no pass
    ever reaches.
    """
    firing = (name for name in problem.points.widths if name.startswith("blocks."))
    names = list(dict.fromkeys([*firing, *expected_points(problem)]))
    counts: Counter[str] = Counter()
    _pass(problem, problem.train[:1], names, lambda name, _: counts.update([name]), all_fire=False)
    for name in names:
        if counts[name] != 1:
            raise Rejected(f"hook point '{name}' fired {counts[name]} times in one pass")
    return f"       each of {len(names):,} hook points fired once in a pass"


def expected_points(problem: Problem) -> list[str]:
    """The points of SAEs and adapters: the sites, and both ends of every linear map."""
    ends = [
        f"blocks.{block}.{linear}.{end}"
        for block in range(problem.n_blocks)
        for linear in peft_format.NAMES
        for end in ("hook_in", "hook_out")
    ]
    sites = (name for site in problem.site_names for name in ends_of(site))
    return [*sites, *(name for name in ends if name in problem.points)]


@torch.no_grad()
def findings(problem: Problem, index: int, windows: Tokens) -> list[str]:
    """One line for each fault of the SAE at site number `index`; of a transcoder whether it is
    poor, without a search for a better place."""
    tokens = windows[: max(1, TOKENS // windows.shape[1])]
    sae, name = problem.saes[index], problem.site_names[index]
    rows = problem.rows(tokens, problem.spliced)
    if ":" in name:
        ends: dict[str, Tensor] = {}
        _pass(problem, tokens, list(ends_of(name)), ends.__setitem__)
        read, given = (flat(ends[end])[rows].float() for end in ends_of(name))
        share = unexplained(sae, read, given=given)
        return [f"poor: {share:.0%} of the usual token is unexplained"] if share > POOR else []
    point = re.sub(r"^blocks\.\d+\.", "", name)
    by_block: dict[str, Tensor] = {}
    names = [f"blocks.{block}.{point}" for block in range(problem.n_blocks)]
    _pass(problem, tokens, names, by_block.__setitem__)
    here = flat(by_block[name])[rows].float()
    share = unexplained(sae, here)
    answers = [_first_position(sae, here, rows % tokens.shape[1] == 0, tokens.shape[1])]
    if share > POOR:
        answers += [_sparsity(sae, here, share), _scale(sae, here, share)]
    answers.append(_layer(sae, by_block, name, rows, share))
    lines = [line for line in answers if line]
    if share > POOR and not lines:
        lines = [f"poor: {share:.0%} of the usual token is unexplained; no layer fits much better"]
    return lines


def unexplained(
    sae: "SAE",
    activations: Activations,
    reconstruct: Reconstruct = reconstruction,
    given: Activations | None = None,
) -> float:
    """Median over tokens of squared error over squared distance to the mean activation.

    It is about the usual token; FVU is decided by a few tokens of huge norm. `given` is what should
    come out, where that is not what goes in.
    """
    given = activations if given is None else given
    variance = (given - given.mean(0)).square().sum(-1)
    return (_errors(sae, activations, given, reconstruct) / variance).median().item()


def _errors(
    sae: "SAE",
    activations: Activations,
    given: Activations,
    reconstruct: Reconstruct = reconstruction,
) -> Float[Tensor, " tokens"]:
    """Squared error a token, in parts: an SAE of 131k latents needs half a megabyte for each."""
    size = max(64, LATENTS_AT_ONCE // sae.cfg.d_sae)
    parts = zip(activations.split(size), given.split(size), strict=True)
    return torch.cat([(reconstruct(sae, x) - y).square().sum(-1) for x, y in parts])


def _pass(
    problem: Problem, tokens: Tokens, names: list[str], see: See, all_fire: bool = True
) -> None:
    """One clean pass that calls `see(name, activation)` at each of these points."""
    pairs = [(name, lambda value, hook, name=name: see(name, value)) for name in names]
    with problem.points.attached(pairs, all_fire=all_fire):
        problem.bridge(tokens, use_cache=False, logits_to_keep=1)


def _best(shares: dict[Key, float], share: float) -> Key | None:
    """The key of the smallest of `shares`, if clearly less is unexplained than `share`."""
    best = min(shares, key=shares.__getitem__, default=None)
    return best if best is not None and shares[best] < BETTER * share else None


def _layer(
    sae: "SAE", by_block: dict[str, Tensor], name: str, rows: Int[Tensor, " rows"], share: float
) -> str | None:
    shares = {n: unexplained(sae, flat(value)[rows].float()) for n, value in by_block.items()}
    if best := _best(shares, share):
        return (
            f"wrong layer: {share:.0%} of the usual token is unexplained at {name}, "
            f"{shares[best]:.0%} at {best}"
        )
    return None


def _scale(sae: "SAE", activations: Activations, share: float) -> str | None:
    norm = activations.norm(dim=-1).mean().item()
    factors = [2.0**power for power in range(-10, 11) if power]
    factors.append(activations.shape[-1] ** 0.5 / norm)  # SAELens' expected_average_only_in

    def scaled_by(factor: float) -> Reconstruct:
        return lambda sae, x: reconstruction(sae, x * factor) / factor

    shares = {factor: unexplained(sae, activations, scaled_by(factor)) for factor in factors}
    if best := _best(shares, share):
        return (
            f"wrong scale: {share:.0%} of the usual token is unexplained, {shares[best]:.0%} "
            f"when activations are multiplied by {best:.3g}"
        )
    return None


def _sparsity(sae: "SAE", activations: Activations, share: float) -> str | None:
    """A TopK checkpoint declared ReLU: every positive latent fires."""
    kind = sae.cfg.architecture()
    if kind == "topk":
        return None

    def largest(k: int) -> Reconstruct:
        def keep(sae: "SAE", x: Tensor) -> Tensor:
            latents = sae.encode(x)
            top = latents.topk(k)
            return sae.decode(torch.zeros_like(latents).scatter_(-1, top.indices, top.values))

        return keep

    ks = [k for k in KS if k < sae.cfg.d_sae]
    shares = {k: unexplained(sae, activations, largest(k)) for k in ks}
    if best := _best(shares, share):
        l0 = (sae.encode(activations[:512]) != 0).sum(-1).float().mean().item()
        return (
            f"wrong kind: declared '{kind}', {l0:,.0f} latents fire and {share:.0%} of the usual "
            f"token is unexplained; with the {best} largest alone {shares[best]:.0%}: a TopK?"
        )
    return None


def _first_position(
    sae: "SAE", activations: Activations, first: Bool[Tensor, " tokens"], seq_len: int
) -> str | None:
    """Most of the error at a window's first position: the SAE was not trained on it."""
    if not first.any() or first.all():
        return None
    error = _errors(sae, activations, activations)
    share = (error[first].sum() / error.sum()).item()
    if share > max(POOR, 10 / seq_len):
        return (
            f"wrong positions: {share:.0%} of the squared error is at the first position of a "
            "window; try --spliced not-first"
        )
    return None
