"""What is wrong with an SAE that does not fit its site: layer, scale, sparsity or positions."""

import re

import torch

from bench.problem.objectives import flat, reconstruction

POOR = 0.5
"""Above this share unexplained, something is wrong with the SAE or with where it is put."""
BETTER = 0.8
"""Another layer, scale or sparsity must leave less than this times as much unexplained."""
TOKENS = 8_192
"""Tokens that are looked at, at most."""
LATENTS_AT_ONCE = 2**26
KS = (8, 16, 32, 64, 128, 256)


def unexplained(sae, activations, reconstruct=reconstruction):
    """Median over tokens of squared error over squared distance to the mean activation.

    Unlike FVU, which a few tokens of huge norm decide, it is about the usual token.
    """
    error = _errors(sae, activations, reconstruct)
    variance = (activations - activations.mean(0)).square().sum(-1)
    return (error / variance).median().item()


def _errors(sae, activations, reconstruct=reconstruction):
    """Squared error a token, in parts: an SAE of 131k latents needs half a megabyte for each."""
    parts = activations.split(max(64, LATENTS_AT_ONCE // sae.cfg.d_sae))
    return torch.cat([(reconstruct(sae, part) - part).square().sum(-1) for part in parts])


@torch.no_grad()
def findings(problem, index, windows):
    """One line for everything that is wrong with the SAE of site number `index`, or none."""
    tokens = windows[: max(1, TOKENS // windows.shape[1])]
    sae, name = problem.saes[index], problem.site_names[index]
    rows = problem.rows(tokens, problem.spliced)
    at = _activations(problem, name, tokens)
    here = flat(at[name])[rows].float()
    share = unexplained(sae, here)
    found = [_first_position(sae, here, rows % tokens.shape[1] == 0, tokens.shape[1])]
    if share > POOR:
        found += [_sparsity(sae, here, share), _scale(sae, here, share)]
    found.append(_layer(sae, at, name, rows, share))
    found = [line for line in found if line]
    if share > POOR and not found:
        found = [f"poor: {share:.0%} of the usual token is unexplained; no other layer fits better"]
    return found


def _activations(problem, name, tokens):
    """The clean activations at the same point of every block: name -> [batch, seq, ...]."""
    point = re.sub(r"^blocks\.\d+\.", "", name)
    names = [f"blocks.{block}.{point}" for block in range(problem.n_blocks)]
    caught = {}

    def keeper(name):
        def keep(value, hook):
            caught[name] = value

        return keep

    with problem.points.attached([(name, keeper(name)) for name in names]):
        problem.bridge(tokens, use_cache=False, logits_to_keep=1)
    return caught


def _layer(sae, at, name, rows, share):
    others = {n: unexplained(sae, flat(value)[rows].float()) for n, value in at.items()}
    best = min(others, key=others.get)
    if best != name and others[best] < BETTER * share:
        return (
            f"wrong layer: {share:.0%} of the usual token is unexplained at {name}, "
            f"{others[best]:.0%} at {best}"
        )


def _scale(sae, activations, share):
    norm = activations.norm(dim=-1).mean().item()
    factors = [2.0**power for power in range(-10, 11) if power]
    factors.append(activations.shape[-1] ** 0.5 / norm)  # SAELens' expected_average_only_in

    def scaled_by(factor):
        return lambda sae, x: reconstruction(sae, x * factor) / factor

    shares = {factor: unexplained(sae, activations, scaled_by(factor)) for factor in factors}
    best = min(shares, key=shares.get)
    if shares[best] < BETTER * share:
        return (
            f"wrong scale: {share:.0%} of the usual token is unexplained, {shares[best]:.0%} "
            f"when activations are multiplied by {best:.3g}"
        )


def _sparsity(sae, activations, share):
    """A TopK checkpoint declared ReLU: every positive latent fires."""
    kind = sae.cfg.architecture()
    if kind == "topk":
        return None

    def largest(k):
        def keep(sae, x):
            latents = sae.encode(x)
            top = latents.topk(k)
            return sae.decode(torch.zeros_like(latents).scatter_(-1, top.indices, top.values))

        return keep

    ks = [k for k in KS if k < sae.cfg.d_sae]
    shares = {k: unexplained(sae, activations, largest(k)) for k in ks}
    best = min(shares, key=shares.get, default=None)
    if best and shares[best] < BETTER * share:
        few = activations[:512]
        l0 = (sae.encode(few) != 0).sum(-1).float().mean().item()
        return (
            f"wrong kind: declared '{kind}', {l0:,.0f} latents fire and {share:.0%} of the usual "
            f"token is unexplained; with the {best} largest alone {shares[best]:.0%}: a TopK?"
        )


def _first_position(sae, activations, first, seq_len):
    """Most of the error at a window's first position: the SAE was not trained on it."""
    if not first.any() or first.all():
        return None
    error = _errors(sae, activations)
    share = (error[first].sum() / error.sum()).item()
    if share > max(POOR, 10 / seq_len):
        return (
            f"wrong positions: {share:.0%} of the squared error is at the first position of a "
            "window; try --spliced not-first"
        )
