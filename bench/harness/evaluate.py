"""Held-out CE, KL, L0 and FVU of an adapted model; the clean side is measured once and cached.

All sums are over scored positions; a CE needs a next token, so a window's last position has
none. Off the clock.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.devices import wide
from bench.distributed import group, shares
from bench.errors import Rejected, Usage
from bench.io import console
from bench.io.files import new_file
from bench.loading.text import Windows
from bench.problem import losses
from bench.problem.blocks import Tokens
from bench.problem.losses import Teacher
from bench.problem.objectives import Reconstruct, decoded, flat, zero
from bench.problem.problem import Adapted, Clean, Problem

TOKENS_AT_ONCE = {"cpu": 2_048, "cuda": 16_384, "mps": 4_096}
"""Tokens that go through the model at once."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out windows with what the clean model makes of them."""

    tokens: Int[Tensor, "windows seq"]
    documents: list
    """The document of each window."""
    entry: Float[Tensor, "windows seq d_model"]
    """The clean residual that the spliced model restarts at."""
    ce_clean: list[float]
    """The clean model's CE, one per document, in nats per scored token."""
    teacher: Teacher | None = None
    """What a KL needs of the clean model, by predicted token; None where none is asked for."""


@dataclass(frozen=True)
class Score:
    """An adapted model on held-out windows."""

    ce: list[float]
    """CE per document, in nats per scored token."""
    kl: list[float]
    """KL(clean || adapted) per document, in nats per scored token."""
    l0: list[float]
    """Mean number of latents that fire, by site."""
    fvu: list[float]
    """Fraction of variance unexplained, by site."""
    fvu_weighted: list[float]
    """The same with each token weighted by 1/|x|^2, so that those of huge norm do not decide."""
    dead: list[float]
    """Share of the latents that fire nowhere, by site."""


def by_site(score: Score, part: str = "") -> dict[str, list[float]]:
    """L0 and FVU of each SAE as fields of a record, where there are several; `part` is `_full`
    for the validation set."""
    several = len(score.l0) > 1
    return {f"l0{part}_by_site": score.l0, f"fvu{part}_by_site": score.fvu} if several else {}


def of_saes(score: Score) -> dict[str, Any]:
    """What a record says of the SAEs on the validation set: means over the sites, and each."""
    return {
        "l0_full": mean(score.l0),
        "fvu_full": mean(score.fvu),
        "fvu_weighted_full": mean(score.fvu_weighted),
        "dead_full": mean(score.dead),
        **by_site(score, "_full"),
    }


class Gauge:
    """An SAE's reconstruction that also sums up L0 and FVU as activations pass through."""

    SUMS = ("n", "firings", "error", "squares", "sum", "weight", "weighted_error", "weighted_sum")

    def __init__(self, sae: torch.nn.Module) -> None:
        self.sae = sae
        self.n, self.error, self.squares = 0, 0.0, 0.0
        self.weight, self.weighted_error = 0.0, 0.0
        self.sum: Any = 0.0
        self.weighted_sum: Any = 0.0
        self.firings: Any = 0
        """Sums over tokens, on the device: nothing waits for it in between."""

    def __call__(
        self, read: Float[Tensor, "tokens d"], given: Float[Tensor, "tokens d"]
    ) -> Float[Tensor, "tokens d"]:
        latents = self.sae.encode(read)
        made = decoded(self.sae, latents, read)
        self.n += len(given)
        self.firings = self.firings + latents.count_nonzero(0)
        given = given.to(wide(given.device))
        errors, squares = (given - made).square().sum(-1), given.square().sum(-1)
        weights = squares.clamp_min(1e-12).reciprocal()
        self.error += errors.sum()
        self.squares += squares.sum()
        self.sum = self.sum + given.sum(0)
        self.weight += weights.sum()
        self.weighted_error += (weights * errors).sum()
        self.weighted_sum = self.weighted_sum + weights @ given
        return made

    def add_up(self) -> None:
        """Add what the other processes have seen."""
        if not group.sharded():
            for name in self.SUMS:
                setattr(self, name, group.total(getattr(self, name)))

    @property
    def l0(self) -> float:
        """Latents that fire, a token."""
        return int(self.firings.sum()) / self.n

    @property
    def dead(self) -> float:
        """Share of the latents that fire nowhere."""
        return 1 - int(self.firings.count_nonzero()) / len(self.firings)

    @property
    def fvu(self) -> float:
        """Squared error over the variance around the mean activation."""
        variance = float(self.squares) - float(self.sum.square().sum()) / self.n
        return float(self.error) / variance if variance else math.nan

    @property
    def fvu_weighted(self) -> float:
        """The same with each token weighted by 1/|x|^2: its own squares then add up to 1."""
        variance = self.n - float(self.weighted_sum.square().sum()) / float(self.weight)
        return float(self.weighted_error) / variance if variance else math.nan


@torch.no_grad()
def measure(problem: Problem, held_out: HeldOut, adapted: Adapted) -> Score:
    """`Score` of an adapted model; several processes take a share of the windows each."""
    gauges = [Gauge(sae) for sae in adapted.saes]
    mine, first, n = share_of(problem, held_out)
    with group.telling_losses():
        values = by_token(problem, mine, adapted, gauges, teacher=mine.teacher)
    entropies, kls = (v if v is None else shares.put_together(v, first, n) for v in values)
    for gauge in gauges:
        gauge.add_up()
    losses = [[] if v is None else per_document(v, problem, held_out) for v in (entropies, kls)]
    names = ("l0", "fvu", "fvu_weighted", "dead")
    return Score(*losses, *([getattr(gauge, name) for gauge in gauges] for name in names))


def share_of(problem: Problem, held_out: HeldOut) -> tuple[HeldOut, int, int]:
    """(this process' share of the windows, number of its first prediction, how many there are)."""
    if (windows := len(held_out.tokens)) < group.world():
        raise Usage(f"{group.world()} processes share {windows} held-out windows: too many")
    first, end = shares.bounds(windows)
    before, upto, n = (
        len(predictions(problem, held_out.tokens[:at])[0]) for at in (first, end, None)
    )
    if upto - before == n:
        return held_out, 0, n
    teacher = held_out.teacher and Teacher(*(part[before:upto] for part in held_out.teacher))
    tokens, entry = held_out.tokens[first:end], held_out.entry[first:end]
    return replace(held_out, tokens=tokens, entry=entry, teacher=teacher), before, n


@torch.no_grad()
def ablated(problem: Problem, held_out: HeldOut) -> tuple[list[float], list[float]]:
    """(CE, KL) per document with every position of the sites set to 0, as SAELens ablates."""
    bare, zeros = Adapted(saes=problem.saes), [zero] * len(problem.saes)
    ce, kl = by_token(problem, held_out, bare, zeros, "all", held_out.teacher)
    of_kl = [] if kl is None else per_document(kl, problem, held_out)
    return per_document(ce, problem, held_out), of_kl


@torch.no_grad()
def by_token(
    problem: Problem,
    held_out: HeldOut,
    adapted: Adapted,
    reconstruct: Sequence[Reconstruct] | None = None,
    positions: str | None = None,
    teacher: Teacher | None = None,
) -> tuple[Float[Tensor, " predictions"], Float[Tensor, " predictions"] | None]:
    """(CE, KL to the `teacher` or None) of every predicted token, in order.

    `reconstruct`, a function for each site, takes the place of the SAEs.
    """
    finals = finals_of(problem, held_out, adapted, reconstruct, positions)
    _, targets = predictions(problem, held_out.tokens)
    return losses.evaluate(finals, targets, problem.head, teacher)


def finals_of(
    problem: Problem,
    held_out: HeldOut,
    adapted: Adapted,
    reconstruct: Sequence[Reconstruct] | None,
    positions: str | None = None,
) -> Float[Tensor, "predictions d_model"]:
    """Final hidden states at the predicted positions."""
    start, finals = problem.start_of(adapted), []
    for part in console.bar(parts(held_out.tokens), desc="evaluating"):
        tokens = held_out.tokens[part]
        known = start == problem.site_start
        entry = held_out.entry[part] if known else problem.entry(tokens, start)
        clean = Clean(tokens, start, entry, sites=[], reached=(start, entry))
        rows, _ = predictions(problem, tokens)
        finals.append(flat(problem.final(clean, adapted, reconstruct, positions))[rows])
    return torch.cat(finals)


def clean_side(problem: Problem, windows: Windows, path: Path) -> HeldOut:
    """`HeldOut` for these windows, kept at `path` (a file in the cache)."""
    from safetensors.torch import load_file, save_file

    if not group.all_of(path.exists()):
        arrays = _measure_clean(problem, windows.tokens)
        new_file(path, lambda temporary: save_file(arrays, temporary))
    arrays = load_file(path, device=str(windows.tokens.device))
    ce = per_document(arrays["ce"], problem, windows)
    teacher = Teacher(arrays["teacher"], arrays["constant"])
    return HeldOut(windows.tokens, windows.documents, arrays["entry"], ce, teacher)


@torch.no_grad()
def _measure_clean(problem: Problem, tokens: Tokens) -> dict[str, Tensor]:
    bare = Adapted(saes=problem.saes)
    entries, finals = [], []
    for part in console.bar(parts(tokens), desc="clean model"):
        clean = problem.clean(tokens[part], bare)
        rows, _ = predictions(problem, tokens[part])
        entries.append(clean.entry)
        finals.append(flat(clean.final)[rows])
    _, targets = predictions(problem, tokens)
    final = torch.cat(finals)
    entropies, _ = losses.evaluate(final, targets, problem.head)
    teacher = losses.teacher_of(final, problem.head)
    kept = {"teacher": teacher.states, "constant": teacher.constant}
    return {"entry": torch.cat(entries), "ce": entropies, **kept}


def parts(tokens: Tokens) -> list[slice]:
    """Slices of windows that go through the model at once."""
    size = at_once(tokens.device, tokens.shape[1])
    return [slice(at, at + size) for at in range(0, len(tokens), size)]


def at_once(device: torch.device, length: int) -> int:
    """How many windows of this length go through the model at once."""
    return max(1, TOKENS_AT_ONCE[device.type] // length)


def predictions(
    problem: Problem, tokens: Tokens
) -> tuple[Int[Tensor, " predictions"], Int[Tensor, " predictions"]]:
    """Flat positions whose next-token prediction is scored, and the tokens they should give."""
    seq = tokens.shape[1]
    rows = problem.rows(tokens, problem.scored)
    rows = rows[rows % seq < seq - 1]
    return rows, tokens.flatten()[rows + 1]


def per_document(
    entropies: Float[Tensor, " predictions"], problem: Problem, windows: Windows | HeldOut
) -> list[float]:
    """A loss of each scored token, in order -> its mean by document, in the order they come."""
    rows, _ = predictions(problem, windows.tokens)
    names = list(dict.fromkeys(windows.documents))
    number = {name: i for i, name in enumerate(names)}
    document = torch.tensor([number[name] for name in windows.documents], device=rows.device)
    document = document[rows // windows.tokens.shape[1]]
    sums = entropies.new_zeros(len(names), dtype=wide(entropies.device))
    sums.index_add_(0, document, entropies.to(sums.dtype))
    counts = torch.bincount(document, minlength=len(names))
    if not counts.all():
        empty = names[int(counts.argmin())]
        raise Rejected(f"document '{empty}': no scored position in its held-out windows")
    return (sums / counts).tolist()


def mean(values: list[float]) -> float:
    """The mean of a list of floats."""
    return math.fsum(values) / len(values)
