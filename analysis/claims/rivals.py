"""The claims about which way of training ends where: LoRA, e2e, both, an early SAE.

The docstring of each function is its claim's rule, in the words that are printed. The rules were
fixed before the runs that they decide on were made.
"""

import math
from statistics import fmean, median

from analysis.claims.evidence import (
    Evidence,
    Finding,
    Missing,
    block_of,
    nats,
    paired,
    spread,
    table,
)
from analysis.stats.gap import Difference, difference, end_losses
from analysis.stats.usable import ends, spliced
from bench.io.record import Run


def ends_lowest(case: Evidence) -> Finding:
    """LoRA on the whole SAE ends below the SAE trained end to end on as many tokens as that SAE,
    and below that SAE alone by at least a tenth of the gap: each by two standard errors over
    documents or more, and in every seed. (On the validation set.)"""
    lora, e2e = case.runs("timing", "lora", share=1.0), case.runs("timing", "e2e")
    rows, gaps = [], []
    for seed, (ours, theirs) in zip(sorted(lora), paired(lora, e2e), strict=True):
        clean, bare = (fmean(ours.header[f"ce_full_{kind}"]) for kind in ("clean", "spliced"))
        gaps.append(bare - clean)
        rows.append([seed, *(f"{ce:.4f}" for ce in (clean, bare, _end(theirs), _end(ours)))])
    rival, alone = difference(ends(lora), ends(e2e)), difference(ends(lora), spliced(lora))
    line = f"LoRA minus e2e {nats(rival)}; minus the SAE alone {nats(alone)}"
    far = clearly_below(alone) and -alone.mean >= fmean(gaps) / 10
    heads = ["seed", "clean", "SAE alone", "e2e", "SAE + LoRA"]
    details = ["CE on the validation set:", table(heads, rows)]
    return Finding(clearly_below(rival) and far, line, details)


def _end(run: Run) -> float:
    """CE that a sound run ends with, mean over documents of the validation set."""
    return fmean(end_losses(run) or ())


def early_sae(case: Evidence) -> Finding:
    """After LoRA from the earliest SAE, CE is at most a tenth of the whole SAE's gap above that
    after LoRA from the whole SAE, in the median over seeds; the earliest is at 20% at most."""
    early = min(case.values("timing", "share", "lora"), default=1.0)
    if early > 0.2:
        raise Missing("LoRA from an SAE at 20% of its training or less")
    first, last = case.runs("timing", "lora", share=early), case.runs("timing", "lora", share=1.0)
    between, parts = difference(ends(first), ends(last)), []
    for one, whole in paired(first, last):
        clean, bare = (fmean(whole.header[f"ce_full_{kind}"]) for kind in ("clean", "spliced"))
        above = _end(one) - _end(whole)
        parts.append(above / (bare - clean) if bare > clean else float("inf"))
    of_gap = spread(parts, "{:.0%}")
    ours = f"from {early:.0%} minus from 100%: {nats(between)}, {of_gap} of the gap"
    alone = difference(spliced(first), spliced(last))
    details = [f"The SAEs alone differ by {nats(alone)}. CE on the validation set."]
    return Finding(median(parts) <= 0.1, ours, details)


def finetuned_sae_beats_lora(case: Evidence) -> Finding:
    """From the whole SAE and with equal tokens, on the validation set. Where LoRA adapts the layers
    after the SAE: the finetuned SAE (e2e) ends lower by two standard errors over documents or
    more, in every seed. Where it adapts all layers: the two differ by less than two standard
    errors, or by 0.002 nats or less."""
    place = ("rivals", "e2e") if "rivals" in case.experiments else ("timing", "e2e-finetune")
    e2e, lora = case.runs(*place, share=1.0), case.runs(place[0], "lora", share=1.0)
    paired(e2e, lora)
    between = difference(ends(e2e), ends(lora))
    layers = next(iter(lora.values())).header["config"].get("layers")
    equal = not between.distinguishable or abs(between.mean) <= 0.002
    holds = equal if layers == "all" else clearly_below(between)
    rest = "after the SAE" if layers == "all" else "on all layers"
    why = f"LoRA adapts layers: {layers}. The claim's other half, LoRA {rest}, was not run."
    return Finding(holds, f"e2e minus LoRA {nats(between)}", [why])


def not_additive(case: Evidence) -> Finding:
    """In both orders, what the second kind of training (LoRA, or e2e on the SAE) adds after the
    first is less than half of what it gains alone, in the median over seeds, on the validation
    set. Shown beside it: whether more of the first kind adds as much with equal tokens."""
    alone = {kind: case.runs("additivity", kind, stage=1) for kind in ("lora", "e2e")}
    rows, medians, ours = [], [], []
    for first, then in (("lora", "e2e"), ("e2e", "lora")):
        mixed = case.runs("additivity", f"{first}+{then}", stage=2)
        more = case.runs("additivity", f"{first}+{first}", stage=2)
        parts = []
        for start, end, single in paired(alone[first], mixed, alone[then]):
            gain = fmean(single.header["ce_full_spliced"]) - _end(single)
            if gain <= 0:
                raise Missing(f"a gain of {then} alone: it has none in {single.name}")
            parts.append((_end(start) - _end(end)) / gain)
        paired(mixed, more)
        medians.append(median(parts))
        ours.append(f"{then} after {first} adds {spread(parts, '{:.0%}')} of what it gains alone")
        pairs = [(mixed, alone[first]), (more, alone[first]), (mixed, more)]
        changes = [nats(difference(ends(one), ends(other))) for one, other in pairs]
        rows.append([f"{first}, then {then}", *changes])
    heads = ["CE", "second kind adds", "more of the first adds", "second minus more of the first"]
    return Finding(max(medians) < 0.5, "; ".join(ours), [table(heads, rows)])


def closer_to_the_clean_model(case: Evidence) -> Finding:
    """In the later half of the layers after the SAE, the L2 distance of the residual to the clean
    model's is smaller with LoRA than without by two standard errors or more: at every one of
    these layers, in most seeds."""
    scores: dict[int, list[float]] = {}
    middles: dict[int, list[float]] = {}
    for values, run in case.measures("distance", "lora", share=1.0).values():
        try:
            l2, errors = (values["difference"][name] for name in ("l2", "l2_error"))
            by_layer = list(zip(values["layers"], l2, errors, strict=True))
        except (KeyError, TypeError, ValueError):
            raise Missing(f"the distances of {run.name}, layer by layer with errors") from None
        site = block_of(run.header["spec"].get("site"))
        after = [entry for entry in by_layer if site is None or entry[0] > site]
        for layer, mean, error in after[len(after) // 2 :]:
            score = mean / error if error else math.copysign(math.inf, mean) if mean else 0.0
            scores.setdefault(layer, []).append(score)
            middles.setdefault(layer, []).append(mean)
    if not scores:
        raise Missing("a layer after the SAE")
    closer = [layer for layer, of_seeds in scores.items() if median(of_seeds) <= -2]
    ours = f"closer at {len(closer)} of the {len(scores)} later layers"
    rows = [[at, spread(middles[at], "{:+.3f}"), f"{median(scores[at]):+.1f}"] for at in scores]
    heads = ["layer", "L2, adapted minus spliced", "in standard errors"]
    return Finding(len(closer) == len(scores), ours, [table(heads, rows)])


ENOUGH_FOR_AN_SAE = 10_000_000
"""Tokens below which an SAE says nothing about a fully trained one (the paper's had 410M)."""


def equal_sparsity(case: Evidence) -> Finding:
    """Trained from scratch on the same tokens, 10M or more, to L0 within 10% of each other, the CE
    increase of e2e is below 45% of that of local training (mse), in the median over seeds."""
    e2e, mse = case.runs("timing", "e2e"), case.runs("timing", "mse")
    parts = []
    for ours, local in paired(e2e, mse):
        clean = fmean(ours.header["ce_full_clean"])
        theirs = _end(local) - clean
        if theirs <= 0:
            raise Missing("an increase of CE under local training")
        parts.append((_end(ours) - clean) / theirs)
        l0, local_l0 = (run.rows[-1].get("l0") for run in (ours, local))
        if l0 is None or local_l0 is None or abs(l0 - local_l0) > 0.1 * local_l0:
            raise Missing("two SAEs of equal L0")
    line = f"{spread(parts, '{:.0%}')} of the increase under local training"
    tokens = min(run.rows[-1]["tokens"] for run in e2e.values())
    if tokens < ENOUGH_FOR_AN_SAE:
        raise Missing(f"SAEs of 10M tokens or more, trained both ways (here {tokens:,})", line)
    return Finding(median(parts) < 0.45, line)


def clearly_below(difference: Difference) -> bool:
    """Whether the first is lower by two standard errors, and in every seed."""
    agree = difference.lower == difference.seeds > 0
    return difference.mean < 0 and difference.distinguishable and agree
