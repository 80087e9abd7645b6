"""The claims about which way of training ends where: LoRA, e2e, both, an early SAE.

The docstring of each function is its claim's rule, in the words that are printed. Intervals are of
95%, over seeds and documents together.
"""

import math
from statistics import fmean, median, stdev

from scipy.special import stdtrit

from analysis.claims.evidence import (
    Evidence,
    Finding,
    Missing,
    Untestable,
    above,
    below,
    block_of,
    interval,
    minus,
    nats,
    paired,
    spread,
    table,
    three_ways,
)
from analysis.stats.crossed import equivalence, ratio
from analysis.stats.gap import difference, end_losses
from analysis.stats.usable import ends, spliced
from bench.io.record import Run

EQUAL = 0.002
"""Nats within which K2 has the finetuned SAE and LoRA on all layers end alike."""


def ends_lowest(case: Evidence) -> Finding:
    """LoRA on the whole SAE ends below the SAE trained end to end on as many tokens as that SAE,
    and below that SAE alone by at least a tenth of the gap: the whole interval of each difference.
    Refuted where one lies above. (On the validation set.)"""
    lora, e2e = case.runs("timing", "lora", share=1.0), case.runs("timing", "e2e")
    rows, gaps = [], []
    for seed, (ours, theirs) in zip(sorted(lora), paired(lora, e2e), strict=True):
        clean, bare = (fmean(ours.header[f"ce_full_{kind}"]) for kind in ("clean", "spliced"))
        gaps.append(bare - clean)
        rows.append([seed, *(f"{ce:.4f}" for ce in (clean, bare, _end(theirs), _end(ours)))])
    rival, alone = difference(ends(lora), ends(e2e)), difference(ends(lora), spliced(lora))
    line = f"LoRA minus e2e {nats(rival)}; minus the SAE alone {nats(alone)}"
    far = -fmean(gaps) / 10
    heads = ["seed", "clean", "SAE alone", "e2e", "SAE + LoRA"]
    details = ["CE on the validation set:", table(heads, rows)]
    holds = below(rival) and below(alone, far)
    return three_ways(holds, above(rival) or above(alone, far), line, details)


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
    after the SAE: the finetuned SAE (e2e) ends lower, the whole interval below 0; refuted where
    it is above 0. Where LoRA adapts all layers: the two are equal within 0.002 nats (two
    one-sided tests at 5%); refuted where the interval lies outside."""
    place = ("rivals", "e2e") if "rivals" in case.experiments else ("timing", "e2e-finetune")
    e2e, lora = case.runs(*place, share=1.0), case.runs(place[0], "lora", share=1.0)
    paired(e2e, lora)
    between = difference(ends(e2e), ends(lora))
    layers = next(iter(lora.values())).header["config"].get("layers")
    holds, refuted = below(between), above(between)
    if layers == "all":
        alike = equivalence(between, EQUAL)
        holds = alike is not None and alike < 0.05
        refuted = above(between, EQUAL) or below(between, -EQUAL)
    rest = "after the SAE" if layers == "all" else "on all layers"
    why = f"LoRA adapts layers: {layers}. The claim's other half, LoRA {rest}, was not run."
    return three_ways(holds, refuted, f"e2e minus LoRA {nats(between)}", [why])


def not_additive(case: Evidence) -> Finding:
    """In both orders, what the second kind of training (LoRA, or e2e on the SAE) adds after the
    first is less than half of what it gains alone, in the median over seeds, and its whole
    interval is less than all of it; on the validation set. Refuted where one interval lies above
    half. Where more of the first kind adds as much with equal tokens (the interval of the two
    includes 0), that is plain saturation and says nothing of the two kinds."""
    alone = {kind: case.runs("additivity", kind, stage=1) for kind in ("lora", "e2e")}
    rows, medians, found, ours, own = [], [], [], [], []
    for first, then in (("lora", "e2e"), ("e2e", "lora")):
        mixed = case.runs("additivity", f"{first}+{then}", stage=2)
        more = case.runs("additivity", f"{first}+{first}", stage=2)
        parts = []
        for start, end, single in paired(alone[first], mixed, alone[then]):
            gain = fmean(single.header["ce_full_spliced"]) - _end(single)
            if gain <= 0:
                raise Untestable(f"{then} alone gains nothing in {single.name}")
            parts.append((_end(start) - _end(end)) / gain)
        paired(mixed, more)
        medians.append(median(parts))
        gained = minus(spliced(alone[then]), ends(alone[then]))
        found.append(ratio(minus(ends(alone[first]), ends(mixed)), gained))
        words = f"{spread(parts, '{:.0%}')} of what it gains alone{interval(found[-1], '{:.0%}')}"
        ours.append(f"{then} after {first} adds {words}")
        pairs = [(mixed, alone[first]), (more, alone[first]), (mixed, more)]
        changes = [difference(ends(one), ends(other)) for one, other in pairs]
        own.append(below(changes[-1]) or above(changes[-1]))
        rows.append([f"{first}, then {then}", *map(nats, changes)])
    heads = ["CE", "second kind adds", "more of the first adds", "second minus more of the first"]
    if not any(own):
        ours.append("plain saturation: more of the same adds as little")
    holds = max(medians) < 0.5 and all(below(part, 1.0) for part in found)
    refuted = any(above(part, 0.5) for part in found)
    return three_ways(holds, refuted, "; ".join(ours), [table(heads, rows)])


def closer_to_the_clean_model(case: Evidence) -> Finding:
    """In the later half of the layers after the SAE, the L2 distance of the residual to the clean
    model's is smaller with LoRA than without: at every one of these layers the whole interval is
    below 0. Refuted where at one it is above. (The error is over seeds and over documents
    together, with the degrees of freedom of the seeds.)"""
    found: dict[int, list[tuple[float, float]]] = {}
    for values, run in case.measures("distance", "lora", share=1.0).values():
        try:
            l2, errors = (values["difference"][name] for name in ("l2", "l2_error"))
            by_layer = list(zip(values["layers"], l2, errors, strict=True))
        except (KeyError, TypeError, ValueError):
            raise Missing(f"the distances of {run.name}, layer by layer with errors") from None
        site = block_of(run.header["spec"].get("site"))
        after = [entry for entry in by_layer if site is None or entry[0] > site]
        for layer, mean, error in after[len(after) // 2 :]:
            found.setdefault(layer, []).append((mean, error))
    if not found:
        raise Missing("a layer after the SAE")
    ends = {layer: _interval(of_seeds) for layer, of_seeds in found.items()}
    closer = [layer for layer, (_, high) in ends.items() if high < 0]
    ours = f"closer at {len(closer)} of the {len(found)} later layers"
    rows = [
        [layer, spread([mean for mean, _ in found[layer]], "{:+.3f}"), f"{low:+.3f} to {high:+.3f}"]
        for layer, (low, high) in ends.items()
    ]
    details = [table(["layer", "L2, adapted minus spliced", "95%"], rows)]
    farther = any(low > 0 for low, _ in ends.values())
    return three_ways(len(closer) == len(found), farther, ours, details)


def _interval(of_seeds: list[tuple[float, float]]) -> tuple[float, float]:
    """(mean, error over documents) of each seed -> 95% interval of the mean, seeds and documents;
    all numbers from one seed. Documents are the same for all seeds: their error does not shrink."""
    means, errors = zip(*of_seeds, strict=True)
    if len(means) == 1:
        return -math.inf, math.inf
    error = math.hypot(
        stdev(means) / math.sqrt(len(means)), math.hypot(*errors) / len(means) ** 0.5
    )
    wide = float(stdtrit(len(means) - 1, 0.975)) * error
    return fmean(means) - wide, fmean(means) + wide


def equal_sparsity(case: Evidence) -> Finding:
    """Trained from scratch on the same tokens, to L0 within 10% of each other, the CE increase of
    e2e is below 45% of that of local training (mse), in the median over seeds."""
    e2e, mse = case.runs("timing", "e2e"), case.runs("timing", "mse")
    parts = []
    for ours, local in paired(e2e, mse):
        clean = fmean(ours.header["ce_full_clean"])
        theirs = _end(local) - clean
        if theirs <= 0:
            raise Untestable("no increase of CE under local training")
        parts.append((_end(ours) - clean) / theirs)
        l0, local_l0 = (run.rows[-1].get("l0") for run in (ours, local))
        if l0 is None or local_l0 is None or abs(l0 - local_l0) > 0.1 * local_l0:
            raise Untestable(f"L0 of {l0} and {local_l0}, needs equal ones within 10%")
    line = f"{spread(parts, '{:.0%}')} of the increase under local training"
    return Finding(median(parts) < 0.45, line)
