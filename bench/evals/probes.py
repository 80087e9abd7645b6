"""Sparse probes: a logistic regression on a few features, tested on speakers it has not seen.

Of many features it takes those whose class means lie furthest apart in the part it is trained on.
"""

from statistics import fmean
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

FOLDS = 5
PENALTY = 0.01
"""Of the squared weights, beside the mean loss; features are standardised."""

Features = Float[Tensor, "speeches features"]
Classes = Bool[Tensor, " speeches"]


def accuracy(values: Features, classes: Classes, who: list[str], n: int) -> dict[str, Any]:
    """Balanced accuracy of a probe of `n` features: mean over folds, and each.

    Balanced: the mean over the two classes of the share of their speeches that is recognised.
    """
    fold, found = folds(classes, who), []
    for number in range(FOLDS):
        train, test = fold != number, fold == number
        x = values[:, furthest(values[train], classes[train], n)]
        deviation = x[train].std(0)
        x = (x - x[train].mean(0)) / torch.where(deviation > 0, deviation, 1.0)
        right = predict(fit(x[train], classes[train]), x[test]) == classes[test]
        of_class = [right[classes[test] == which] for which in (False, True)]
        found.append(fmean(r.double().mean().item() for r in of_class if len(r)))
    return {"mean": fmean(found), "folds": found}


def folds(classes: Classes, who: list[str]) -> Int[Tensor, " speeches"]:
    """The fold of each speech: presidents of one class, in their order, are dealt out in turn."""
    dealt: dict[str, int] = {}
    majority = _majority(classes, who)
    for which in (False, True):
        of_class = [name for name, own in majority.items() if own == which]
        dealt |= {name: place % FOLDS for place, name in enumerate(of_class)}
    return torch.tensor([dealt[name] for name in who])


def _majority(classes: Classes, who: list[str]) -> dict[str, bool]:
    """President -> the class of most of his speeches, in the order of their first ones."""
    own: dict[str, list[bool]] = {}
    for name, which in zip(who, classes.tolist(), strict=True):
        own.setdefault(name, []).append(which)
    return {name: fmean(all_of_his) > 0.5 for name, all_of_his in own.items()}


def shuffle(classes: Classes, who: list[str], seed: int) -> Classes:
    """Each president's speeches get the class of another president."""
    majority = _majority(classes, who)
    order = torch.randperm(len(majority), generator=torch.Generator().manual_seed(seed)).tolist()
    given = list(majority.values())
    exchanged = {name: given[place] for name, place in zip(majority, order, strict=True)}
    return torch.tensor([exchanged[name] for name in who])


def furthest(values: Features, classes: Classes, n: int) -> Int[Tensor, " columns"]:
    """The `n` columns (or all) whose class means lie furthest apart, in pooled deviations."""
    one, other = values[classes], values[~classes]
    squares = sum(part.sub(part.mean(0)).square().sum(0) for part in (one, other))
    deviation = (squares / (len(values) - 2)).sqrt()
    apart = (one.mean(0) - other.mean(0)).abs() / deviation
    return apart.nan_to_num(0.0, posinf=torch.inf).topk(min(n, len(apart))).indices


def fit(values: Features, classes: Classes) -> Float[Tensor, " weights"]:
    """The weights, and last the bias, of an L2-regularised logistic regression.

    Both classes count alike, however many speeches they have.
    """
    weights = values.new_zeros(values.shape[1] + 1, requires_grad=True)
    wanted, share = classes.to(values.dtype), classes.double().mean()
    each = torch.where(classes, 0.5 / share, 0.5 / (1 - share))
    solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        logits = values @ weights[:-1] + weights[-1]
        value = binary_cross_entropy_with_logits(logits, wanted, each)
        value = value + PENALTY * weights[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    return weights.detach()


def predict(weights: Float[Tensor, " weights"], values: Features) -> Classes:
    """The class that these weights give each speech."""
    return values @ weights[:-1] + weights[-1] > 0
