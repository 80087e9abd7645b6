"""Comparison -> sentences on what may be concluded from it, and what not."""

import itertools
import re
import textwrap
from collections.abc import Iterator

from analysis.records.comparison import Comparison
from analysis.stats.crossed import Estimate
from analysis.stats.gap import ce_difference, units
from analysis.stats.speedup import spent
from analysis.tables.notes import WIDTH, number, seeds

APART = 1.25
"""Seconds whose ratio is larger are not equal."""
FEW = 3
"""Labels up to which each pair is compared; of more, each with the rival."""


HOW_TO_READ = "in brackets: 95% intervals over seeds and documents"


def conclusions(comparison: Comparison) -> str:
    """The `sentences` as text; "" where there is none."""
    lines = sentences(comparison)
    if lines:
        lines = [f"What may be concluded ({HOW_TO_READ}):", *lines]
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines)


def sentences(comparison: Comparison) -> list[str]:
    """What may be said of each pair of labels."""
    trained, rival = comparison.trained, comparison.rival
    pairs = list(itertools.combinations(trained, 2))
    if len(trained) > FEW:
        pairs = [(label, rival) for label in trained if rival and label != rival]
    if not pairs:
        return []
    lines = []
    for first, second in pairs:
        lines += [_told(comparison, first, second), *_seconds(comparison, first, second)]
    if comparison.one_sae and len(comparison.seeds) > 1:
        lines.append("All seeds are around one SAE: nothing is said of another.")
    if len(pairs) > 1:
        chance = "Where nothing differs, chance tells a pair apart in 5% of cases"
        lines.append(f"{chance}; here are {len(pairs)} pairs.")
    return lines


def _told(comparison: Comparison, first: str, second: str) -> str:
    """Whether two labels are told apart in CE, and whether KL agrees."""
    pair, trained = f"{first} and {second}", comparison.trained
    ours, theirs = trained[first], trained[second]
    ce, kl = ce_difference(ours, theirs), ce_difference(ours, theirs, "kl")
    if ce is None:
        return f"{pair}: no CE per document, nothing may be concluded."
    if ce.low is None:
        few = f"{'one' if ce.seeds else 'no common'} seed" if ce.seeds < 2 else "one document"
        return f"{pair}: {few}: nothing may be concluded about which is better."
    over = f"{seeds(ce.seeds)}, {ce.documents} {units([run.header for run in comparison.all])}"
    found = f"difference {_nats(ce)} nats CE; {over}"
    better = first if ce.value < 0 else second
    told = f"{better} is better" if ce.distinguishable else "not told apart"
    beside = _agreement(ce, kl, first, second) if kl and kl.low is not None else ""
    return f"{pair}: {told} ({found}).{beside}"


def _agreement(ce: Estimate, kl: Estimate, first: str, second: str) -> str:
    """What KL says beside CE, as a sentence."""
    alike = ce.distinguishable == kl.distinguishable
    if alike and (not kl.distinguishable or (ce.value < 0) == (kl.value < 0)):
        said = "says the same"
    elif alike:
        said = "says the opposite"
    elif kl.distinguishable:
        said = f"does tell them apart, {first if kl.value < 0 else second} is better"
    else:
        said = "does not tell them apart"
    return f" KL {said} ({_nats(kl)})."


def _nats(difference: Estimate) -> str:
    return f"{difference.value:+.4f} [{difference.low:.4f}, {difference.high:.4f}]"


def _seconds(comparison: Comparison, first: str, second: str) -> Iterator[str]:
    """Where the two took unequal seconds, how much, and what would make them about equal."""
    took = {k: spent(comparison, comparison.trained[k], "seconds") for k in (first, second)}
    (fast, less), (slow, more) = sorted(took.items(), key=lambda pair: pair[1] or 0)
    if less and more and more > APART * less:
        remedies = [_equal(comparison, fast, more / less), _equal(comparison, slow, less / more)]
        # Two of mse differ in steps because that was asked for.
        remedy = "" if all(remedies) else "".join(remedies)
        yield (
            f"{first} and {second}: seconds are not equal ({slow} {number(more)}, {fast} "
            f"{number(less)}): this says nothing about equal cost.{remedy}"
        )


def _equal(comparison: Comparison, label: str, factor: float) -> str:
    """What mse has to be told so that it takes `factor` times its seconds; "" of other methods."""
    runs, steps = comparison.trained[label], comparison.spec.get("steps")
    done = spent(comparison, runs, "step")
    if runs[0].header["method"] != "mse" or not done or not steps:
        return ""
    settings = [part for part in re.split("[:,]", label) if not part.startswith("steps=")]
    times = float(f"{factor * done / steps:.2g}")
    return f" With {':'.join([*settings, f'steps={times:g}x'])} they would be about equal."
