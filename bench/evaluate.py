"""Held-out CE, KL, L0 and FVU of an adapted model; the clean side is measured once and cached.

All sums are over scored positions; a CE needs a next token, so a window's last position has
none. Off the clock.
"""

import math
from dataclasses import dataclass

import torch

from bench import cache, progress
from bench.losses import cross_entropy, kl_and_cross_entropy
from bench.problem import Adapted, Clean
from bench.seen import flat

TOKENS_AT_ONCE = 2_048
"""Tokens that go through the model at once."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out windows with what the clean model makes of them."""

    tokens: torch.Tensor  # [windows, seq]
    documents: list
    """The document of each window."""
    entry: torch.Tensor  # [windows, seq, d_model]
    """The clean residual that the spliced model restarts at."""
    final: torch.Tensor  # [windows, seq, d_model]
    """The clean final hidden state."""
    ce_clean: list
    """The clean model's CE, one per document, in nats per scored token."""


@dataclass(frozen=True)
class Score:
    """An adapted model on held-out windows."""

    ce: list
    """CE per document, in nats per scored token."""
    kl: float
    """KL(clean || adapted) in nats per scored token."""
    l0: list
    """Mean number of latents that fire, by site."""
    fvu: list
    """Fraction of variance unexplained, by site."""


class Gauge:
    """An SAE's reconstruction that also sums up L0 and FVU as activations pass through."""

    def __init__(self, sae):
        self.sae = sae
        self.n, self.fired, self.error, self.squares, self.sum = 0, 0, 0.0, 0.0, 0.0

    def __call__(self, activations):
        latents = self.sae.encode(activations)
        made = self.sae.decode(latents)
        self.n += len(activations)
        self.fired += int(latents.count_nonzero())
        given = activations.double()
        self.error += float((given - made).square().sum())
        self.squares += float(given.square().sum())
        self.sum = self.sum + given.sum(0)
        return made

    @property
    def l0(self):
        """Latents that fire, a token."""
        return self.fired / self.n

    @property
    def fvu(self):
        """Squared error over the variance around the mean activation."""
        variance = self.squares - float(self.sum.square().sum()) / self.n
        return self.error / variance if variance else math.nan


@torch.no_grad()
def measure(problem, held_out, adapted):
    """`Score` of the adapted model; its modules are left as they were found (see harness)."""
    gauges = [Gauge(sae) for sae in adapted.saes]
    start = problem.start_of(adapted)
    kls, entropies = [], []
    for part in progress.bar(parts(held_out.tokens), desc="evaluating"):
        tokens = held_out.tokens[part]
        if start == problem.site_start:
            entry = held_out.entry[part]
        else:
            entry = problem.sites(tokens, start).entry
        clean = Clean(tokens, start, entry, sites=[], reached=())
        final = problem.final(clean, adapted, reconstruct=gauges)
        rows, targets = predictions(problem, tokens)
        kl, entropy = kl_and_cross_entropy(
            flat(held_out.final[part])[rows], flat(final)[rows], targets, problem.head
        )
        kls.append(kl)
        entropies.append(entropy)
    return Score(
        per_document(torch.cat(entropies), held_out.documents),
        torch.cat(kls).double().mean().item(),
        [gauge.l0 for gauge in gauges],
        [gauge.fvu for gauge in gauges],
    )


def clean_side(problem, windows, path):
    """`HeldOut` for these windows, kept at `path` (a file in the cache)."""
    from safetensors.torch import load_file, save_file

    if not path.exists():
        arrays = _measure_clean(problem, windows.tokens)
        cache.new_file(path, lambda temporary: save_file(arrays, temporary))
    arrays = load_file(path, device=str(windows.tokens.device))
    ce = per_document(arrays["ce"], windows.documents)
    return HeldOut(windows.tokens, windows.documents, arrays["entry"], arrays["final"], ce)


@torch.no_grad()
def _measure_clean(problem, tokens):
    bare = Adapted(saes=problem.saes)
    entries, finals, entropies = [], [], []
    for part in progress.bar(parts(tokens), desc="clean model"):
        clean = problem.clean(tokens[part], bare)
        rows, targets = predictions(problem, tokens[part])
        entries.append(clean.entry)
        finals.append(clean.final)
        entropies.append(cross_entropy(flat(clean.final)[rows], targets, problem.head))
    return {
        "entry": torch.cat(entries),
        "final": torch.cat(finals),
        "ce": torch.cat(entropies),
    }


def parts(tokens):
    """Slices of windows that go through the model at once."""
    size = max(1, TOKENS_AT_ONCE // tokens.shape[1])
    return [slice(at, at + size) for at in range(0, len(tokens), size)]


def predictions(problem, tokens):
    """Flat positions whose next-token prediction is scored, and the tokens they should give."""
    seq = tokens.shape[1]
    rows = problem.rows(tokens, problem.scored)
    rows = rows[rows % seq < seq - 1]
    return rows, tokens.flatten()[rows + 1]


def per_document(entropies, documents):
    """CE per scored token [windows * scored] -> mean of each document, in their order."""
    of_window = entropies.double().view(len(documents), -1).mean(1).tolist()
    sums = {}
    for name, value in zip(documents, of_window, strict=True):
        sums.setdefault(name, []).append(value)
    return [math.fsum(values) / len(values) for values in sums.values()]


def mean(values):
    """The mean of a list of floats."""
    return math.fsum(values) / len(values)
