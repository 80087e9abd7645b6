"""Comparison -> what to know of how its runs were timed and whether they can be made again."""

from analysis.stats.speedup import ranked, resumed, targets

UNSTABLE = 2.0
"""Steps of a run are unsteady where the 95th percentile of their seconds is more medians."""
FEWEST = 3
"""Seeds that a ranking on seconds takes."""


def clock_notes(comparison):
    """One line for each thing that there is to say, the runs that it is true of joined."""
    told = [_unstable, _suspended, _jumped, _halved, _not_deterministic, _few_seeds]
    return [line for find in told for line in find(comparison)]


def _unstable(comparison):
    found = _found(comparison, _unsteadiness)
    if found:
        ratios = _range(found.values(), "{:.1f}")
        yield f"timing unstable: step time p95/p50 = {ratios} ({_who(found)})."


def _unsteadiness(run):
    """p95/p50 of the steps of an unsteady run."""
    spread = (run.end or {}).get("step_seconds") or {}
    middle, high = spread.get("p50"), spread.get("p95")
    ratio = high / middle if middle and high else 0
    return ratio if ratio > UNSTABLE else None


def _suspended(comparison):
    found = _found(comparison, lambda run: _last(run, "suspended_seconds"))
    if found:
        seconds = _range(found.values(), "{:,.0f} s")
        yield f"machine suspended within timed steps for {seconds}, not counted ({_who(found)})."


def _jumped(comparison):
    found = _found(comparison, lambda run: _last(run, "clock_jump_seconds"))
    if found:
        seconds = _range(found.values(), "{:+,.0f} s")
        yield f"wall clock set by {seconds}, which no seconds here depend on ({_who(found)})."


def _last(run, field):
    """What a field of a run has come to in the end; None where there is nothing to say."""
    return (run.rows[-1].get(field) if run.rows else None) or None


def _halved(comparison):
    """Runs that memory did not suffice for: those that are the same for it, those that are not."""
    for changed in (False, True):
        found = _found(comparison, lambda run, changed=changed: _micro_batch(run, changed))
        if found:
            sizes = " or ".join(map(str, sorted(set(found.values()))))
            other = "; its loss depends on the whole batch: it is not quite the same" * changed
            yield f"micro-batch halved to {sizes} for want of memory ({_who(found)}){other}."


def _micro_batch(run, changed):
    """What the micro-batch came down to, where its loss is changed by that, or is not."""
    halvings = (run.end or {}).get("memory") or []
    if not halvings or any(one.get("loss_changed") for one in halvings) != changed:
        return None
    return halvings[-1].get("micro_batch")


def _not_deterministic(comparison):
    reasons = {}
    for run, why in _found(comparison, _why).items():
        reasons.setdefault(why, []).append(run)
    if reasons:
        told = "; ".join(f"{why} ({_who(runs)})" for why, runs in reasons.items())
        yield f"not deterministic, run again the last digits may differ: {told}."


def _why(run):
    """Why a run cannot be made again to the last digit."""
    end = run.end or {}
    return None if end.get("deterministic", True) else end.get("why") or "its record says not why"


def _few_seeds(comparison):
    """Where costs in seconds are compared and there are too few seeds for that."""
    trained = comparison.trained
    if comparison.random or not comparison.one_clock or len(trained) < 2 or not targets(trained):
        return
    counted = {k: [r for r in runs if ranked(r) and not resumed(r)] for k, runs in trained.items()}
    few = [label for label, runs in counted.items() if len(runs) < FEWEST]
    if few:
        which = "" if len(few) == len(trained) else f" of {', '.join(few)}"
        yield f"Fewer than {FEWEST} seeds{which}: seconds are not to be ranked on."


def _found(comparison, ask):
    """(label, seed) -> what `ask(run)` says of the runs that it says something of."""
    asked = {
        (label, run.header["seed"]): ask(run)
        for label, runs in comparison.runs.items()
        for run in runs
    }
    return {run: said for run, said in asked.items() if said is not None}


def _who(runs):
    """(label, seed)s -> `lora seeds 0, 1; e2e seed 0`."""
    seeds = {}
    for label, seed in runs:
        seeds.setdefault(label, []).append(str(seed))
    told = [f"{k} seed{'s' * (len(some) > 1)} {', '.join(some)}" for k, some in seeds.items()]
    return "; ".join(told)


def _range(values, form):
    """`2.3`, or `2.3 to 3.1` of several."""
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"
