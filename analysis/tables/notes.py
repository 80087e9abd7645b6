"""Comparison -> the words around its tables and figures: the setting, and what to know."""

import math
from pathlib import PurePath
from statistics import fmean

from analysis.records.comparison import clock
from analysis.stats.gap import units
from analysis.stats.speedup import AXES, ranked, resumed, sae_cost, targets
from analysis.tables.clock_notes import clock_notes

BLANK = "-"
MISS = "miss"


def setting(comparison):
    """One line: spec, model and site."""
    spec = comparison.spec
    model = PurePath(str(spec.get("model", ""))).name.removeprefix("package:")
    site = spec.get("site", "")
    site = site if isinstance(site, str) else ", ".join(map(str, site))
    name = ": ".join(part for part in (spec.get("name"), model) if part)
    return f"{name}, SAE at {site}" if site else name


def budget(comparison):
    """One line: tokens a step, steps, seeds, device and threads."""
    spec, seeds, parts = comparison.spec, comparison.seeds, []
    if "batch_size" in spec and "seq_len" in spec:
        parts.append(f"{spec['batch_size'] * spec['seq_len']:,} tokens a step")
    if "steps" in spec:
        parts.append(f"{spec['steps']:,} steps")
    parts.append(f"{len(seeds)} seed{'s' * (len(seeds) != 1)}")
    if comparison.one_clock:
        _, device, threads, *_ = clock(comparison.all[0])
        parts.append(str(device) + (f", {threads} threads" if device == "cpu" else ""))
    else:
        parts.append("several clocks")
    return " · ".join(parts)


def heading(comparison):
    """The setting and the two losses that everything lies between."""
    first = f"{setting(comparison)}\n{budget(comparison)}"
    if comparison.random:
        return first + "\nRandom weights: a CE means nothing here; none is shown or drawn."
    return (
        f"{first}\nCE in nats per scored token, on the curve set: clean {comparison.ce_clean:.4f},"
        f" spliced {comparison.ce_spliced:.4f}, gap {comparison.gap:.4f}"
    )


def notes(comparison):
    """Sentences that a reader of the tables needs, every run that is not simply finished last."""
    lines = [] if comparison.random else [*_reading(comparison), _sae(comparison)]
    lines += [*_forced(comparison), *_drift(comparison), *comparison.notes, *_filled(comparison)]
    if not comparison.one_clock:
        clocks = "; ".join(sorted({_clock_in_words(run) for run in comparison.all}))
        lines.append(f"Seconds are not compared, they are of several clocks: {clocks}.")
    return [*lines, *clock_notes(comparison), *_unfinished(comparison)]


def _reading(comparison):
    over = units([run.header for run in comparison.all])
    lines = [
        f"CE and gap closed: at the end, mean over {comparison.documents} {over} and over "
        f"seeds; ± is one standard error over {over} (paired, seeds averaged), not over seeds. "
        "Seconds, backwards (LM backward passes) and tokens: median over finished seeds."
    ]
    if targets(comparison.trained):
        lines.append(
            "Costs are of first closing a share of the gap on the curve set, interpolated between "
            "evaluations, median over seeds; miss: not reached by most seeds."
        )
    if len(comparison.trained) > 1:
        lines.append(
            f"Speedup: cost of {comparison.rival} over cost of the method; above 1 the method is "
            "the cheaper one."
        )
    return lines


def _sae(comparison):
    """What the SAE itself has cost, which "with SAE" adds."""
    costs = {axis: sae_cost(comparison.all[0], axis) for axis in AXES}
    if all(cost == 0 for cost in costs.values()):
        return "The SAE starts fresh and has cost nothing before."
    known = [f"{number(cost)} {axis}" for axis, cost in costs.items() if cost is not None]
    if not known:
        return 'What the SAE itself has cost is not known: no costs "with SAE".'
    which = "SAE" if comparison.one_sae else "first seed's SAE"
    other = "" if costs["seconds"] is not None else "; its seconds are of another clock or unknown"
    return f"The {which} itself has cost {', '.join(known)}{other}."


def _forced(comparison):
    """What was found wrong with the SAE when the runs were forced past it."""
    found = dict.fromkeys(line for run in comparison.all for line in run.header.get("forced", ()))
    return [f"Run with --force although {line}." for line in found]


DRIFT = 0.05
"""A change of L0 by more than this share is told."""


def _drift(comparison):
    """L0 before and after, where training moved it: CE bought with more latents is not the same."""
    for label, runs in comparison.trained.items():
        pairs = [_l0(run) for run in runs if None not in _l0(run)]
        if not pairs:
            continue
        before, after = (fmean(values) for values in zip(*pairs, strict=True))
        if abs(after - before) > DRIFT * before:
            kind = comparison.all[0].header["sae"].get("kind", "")
            yield (
                f"L0 under {label} went from {before:.1f} to {after:.1f}: nothing holds the "
                f"sparsity of a {kind} SAE while it is trained, so part of the CE may be bought "
                "with it."
            )


def _l0(run):
    """L0 of the bare SAE and at the end of a run, on the validation set."""
    return run.header.get("l0_full"), (run.end or {}).get("l0_full")


def _clock_in_words(run):
    machine, device, threads, products, processes = clock(run)
    told = [machine, device, f"{threads} threads", products, processes]
    return ", ".join(str(part) for part in told if part)


def _filled(comparison):
    """Who paid for the clean side of the training text, where it is kept on disk."""
    if not comparison.spec.get("cache_clean"):
        return
    done = [run for runs in comparison.trained.values() for run in runs if run.rows]
    if len({run.rows[-1].get("cache_filled_tokens", 0) for run in done}) > 1:
        yield (
            "Seconds are not of the same work: who ran first filled the cache for the others. "
            "Compare seconds with the cache full (--fresh) or without it."
        )
    for label, runs in comparison.trained.items():
        for run in (run for run in runs if run.rows):
            last = run.rows[-1]
            yield (
                f"{label} seed {run.header['seed']}: the clean side of "
                f"{last.get('cache_filled_tokens', 0):,} of its {last['tokens']:,} tokens was made "
                "on its clock; the rest came from disk."
            )


def _unfinished(comparison):
    lines = []
    for label, runs in comparison.runs.items():
        for run in runs:
            who = f"{label} seed {run.header['seed']}"
            if resumed(run):
                lines.append(f"{who} was resumed: drawn, not ranked on seconds.")
            if run.status != "finished":
                at = f"after step {run.rows[-1]['step']:,}" if run.rows else "before any step"
                fate = "counts as a miss from there on" if ranked(run) else "drawn, not ranked"
                lines.append(f"{who}: {run.status} {at}, {fate} ({run.name}).")
    return lines


def number(value):
    """A cost as it is printed; None and inf have words of their own."""
    if value is None:
        return BLANK
    if value == math.inf:
        return MISS
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def percent(share, error=None):
    """0.192, 0.018 -> '19.2% ± 1.8'."""
    return f"{100 * share:.1f}%" + ("" if error is None else f" ± {100 * error:.1f}")


def times(ratio):
    """A speedup as it is printed; None is blank."""
    if ratio is None:
        return BLANK
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.1f}x"
