"""The papers' measurements of a finished run besides its CE, on its validation windows.

Each is a function of the run's problem, windows and adapted model that gives JSON values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bench.evals import guard, probing
from bench.export import artefacts, reload
from bench.harness.evaluate import HeldOut, by_token, finals_of, parts, per_document
from bench.harness.provenance import provenance
from bench.io import console
from bench.io.record import Run
from bench.io.schema import SCHEMA
from bench.loading.text import Windows
from bench.problem.hooks import Hook
from bench.problem.losses import Teacher
from bench.problem.objectives import Reconstruct, flat, unchanged
from bench.problem.problem import Adapted, Problem

EDGES = [10 ** (-5 + tenth / 10) for tenth in range(61)]
"""Bins of a token's change of loss, in nats: 1e-5 to 10, ten a decade."""


def measure(name: str, run: Run) -> dict[str, Any]:
    """A measurement of a finished run -> the JSON object that is written."""
    head = about(name, run)
    problem, adapted = reload.restore(run.path)
    held_out = hold_out(problem, reload.validation(run, problem))
    values = MEASURES[name](problem, held_out, adapted)
    return {**head, "ce": fmean(artefacts.end_of(run)["ce_full"]), "values": values}


def about(name: str, run: Run) -> dict[str, Any]:
    """The head of a measurement: its name, its run, and where and when it was made."""
    fields = ("method", "label", "config", "seed", "spec", "sae", "split")
    return {
        "schema": SCHEMA,
        "measure": name,
        "of": run.name,
        **{field: run.header.get(field) for field in fields},
        **provenance(reload.spec_of(run)),
    }


@torch.no_grad()
def hold_out(problem: Problem, windows: Windows) -> HeldOut:
    """`HeldOut` of these windows, nothing of it cached."""
    tokens = windows.tokens
    entry = [problem.entry(tokens[part], problem.site_start) for part in parts(tokens)]
    return HeldOut(tokens, windows.documents, torch.cat(entry), ce_clean=[])


@dataclass(frozen=True)
class Variant:
    """A model to compare: its adapters, the functions at its sites, and their positions."""

    adapted: Adapted
    replace_sites: Sequence[Reconstruct] | None = None
    """A function for each site in the place of the SAEs; None leaves the SAEs."""
    positions: str | None = None
    """A rule of positions in the place of the run's own."""

    def losses(
        self, problem: Problem, held_out: HeldOut, teacher: Teacher | None = None
    ) -> tuple[Float[Tensor, " predictions"], Float[Tensor, " predictions"] | None]:
        """(CE, KL to the `teacher` or None) of every predicted token."""
        return by_token(
            problem, held_out, self.adapted, self.replace_sites, self.positions, teacher
        )


def variants(problem: Problem, adapted: Adapted) -> dict[str, Variant]:
    """The models that are compared: clean, spliced, adapted, and adapted without the SAEs."""
    bare, nothing = Adapted(saes=problem.saes), [unchanged] * len(problem.saes)
    return {
        "clean": Variant(bare, nothing),
        "spliced": Variant(bare),
        "adapted": Variant(adapted),
        "without_sae": Variant(adapted, nothing),
    }


def token_loss(problem: Problem, held_out: HeldOut, adapted: Adapted) -> dict[str, Any]:
    """How the loss of each token changes from the spliced to the adapted model.

    Counts of tokens by the size of the change, in bins between `edges` (nats): those that
    get better and those that get worse; `below` and `above` lie outside the bins.
    """
    models = variants(problem, adapted)
    names = ("clean", "spliced", "adapted")
    losses = {name: models[name].losses(problem, held_out)[0] for name in names}
    change = (losses["adapted"] - losses["spliced"]).double().cpu()
    return {
        "edges": EDGES,
        "improved": _counts(-change),
        "degraded": _counts(change),
        "n_tokens": len(change),
        "n_improved": int((change < 0).sum()),
        "n_degraded": int((change > 0).sum()),
        "below": int((change.abs() < EDGES[0]).sum()),
        "above": int((change.abs() > EDGES[-1]).sum()),
        **{f"ce_{name}": values.double().mean().item() for name, values in losses.items()},
    }


def _counts(sizes: Float[Tensor, " tokens"]) -> list[int]:
    """Tokens in each bin; a size below the first edge, or negative, is in none."""
    edges = torch.tensor(EDGES, dtype=torch.float64)
    return torch.histogram(sizes, edges).hist.long().tolist()


def distance(problem: Problem, held_out: HeldOut, adapted: Adapted) -> dict[str, Any]:
    """How far each block's output is from the clean model's: L2 and cosine, means over tokens.

    From the block before the restart on, which is the site's own where the SAE sits after it.
    `difference` is adapted minus spliced, with its standard error over documents.
    """
    layers = list(range(max(problem.site_start - 1, 0), problem.n_blocks))
    models = variants(problem, adapted)
    apart: dict[str, list[list[tuple[float, float]]]] = {"spliced": [], "adapted": []}
    """Model -> by document and block its (L2, cosine)."""
    for document in console.bar(dict.fromkeys(held_out.documents), desc="distances"):
        rows = [n for n, name in enumerate(held_out.documents) if name == document]
        part = replace(held_out, tokens=held_out.tokens[rows], entry=held_out.entry[rows])
        clean = residuals(problem, part, models["clean"], layers)
        for name, documents in apart.items():
            pairs = zip(residuals(problem, part, models[name], layers), clean, strict=True)
            documents.append([_apart(*pair) for pair in pairs])
    by_name = {name: torch.tensor(values).double() for name, values in apart.items()}
    change = by_name["adapted"] - by_name["spliced"]
    error = change.std(0) / math.sqrt(len(change))
    return {
        "layers": layers,
        **{name: _columns(values.mean(0)) for name, values in by_name.items()},
        "difference": {**_columns(change.mean(0)), **_columns(error, "_error")},
    }


def _columns(values: Float[Tensor, "layers 2"], suffix: str = "") -> dict[str, list[float]]:
    return {f"{name}{suffix}": values[:, n].tolist() for n, name in enumerate(("l2", "cosine"))}


@torch.no_grad()
def residuals(
    problem: Problem, held_out: HeldOut, variant: Variant, layers: list[int]
) -> list[Float[Tensor, "tokens d_model"]]:
    """The output of each of these blocks at the scored positions."""
    outputs: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def keep(layer: int) -> tuple[str, Hook]:
        return f"blocks.{layer}.hook_out", lambda value, hook: outputs[layer].append(value)

    watched = replace(variant.adapted, hooks=[*variant.adapted.hooks, *map(keep, layers)])
    finals_of(problem, held_out, watched, variant.replace_sites)
    rows = problem.rows(held_out.tokens, problem.scored)
    return [flat(torch.cat(outputs[layer]))[rows] for layer in layers]


def _apart(
    values: Float[Tensor, "tokens d_model"], clean: Float[Tensor, "tokens d_model"]
) -> tuple[float, float]:
    """Mean L2 distance and mean cosine of two sets of residuals."""
    l2 = torch.linalg.vector_norm(values - clean, dim=-1).mean()
    return l2.item(), torch.cosine_similarity(values, clean, dim=-1).mean().item()


def no_sae(problem: Problem, held_out: HeldOut, adapted: Adapted) -> dict[str, list[float]]:
    """CE by document: clean, spliced, adapted, and adapted without the SAEs."""
    return {
        f"ce_{name}": per_document(variant.losses(problem, held_out)[0], problem, held_out)
        for name, variant in variants(problem, adapted).items()
    }


MEASURES = {
    "token-loss": token_loss,
    "distance": distance,
    "no-sae": no_sae,
    "latents": guard.latents,
    "effects": guard.effects,
    "probing": probing.probing,
}
"""Name -> measurement of a finished run."""
