"""The experiment `frontier` -> its one table, two small ones below it, and what may be concluded.

As text and as Markdown, both of the same cells.
"""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any

from analysis.records.comparison import grouped
from analysis.records.manifest import Experiment, runs_of
from analysis.stats import frontier as stats
from analysis.stats.crossed import Estimate, crossed, of_seeds
from analysis.stats.frontier import BASE, MARGIN, OUTCOMES, PRIMARY, SAME, Arm, Family, Verdict
from analysis.stats.usable import finished, placed, unsound
from analysis.tables.comparison import aligned, page
from analysis.tables.notes import BLANK, WIDTH, title

NAMES = {
    "mse": "going on with reconstruction",
    "lora": "LoRA on the model",
    "e2e": "SAE end to end (KL)",
    "e2e-mse": "SAE end to end (KL and reconstruction)",
    "joint": "LoRA and SAE together",
    "affine": "scale and shift behind the SAE",
    "sae-lora": "low-rank update of the SAE",
    "sae-lora-2": "rank-2 update of the SAE",
    "lora-keep": "LoRA that keeps the model",
    "ridge": "ridge regression behind the SAE",
    "mse-weighted": "reconstruction, tokens weighted",
    "mse-lora": "half reconstruction, half LoRA",
    "e2e-scratch": "SAE end to end from scratch",
}
"""Role -> what it does, for a reader who knows no method here."""

FRONTIERS = tuple(stats.FAMILY)
"""The experiments that this table is of."""

SAES = {"own": "trained", "frozen": "random directions", "shuffled": "shuffled decoder"}
"""`sae` of an arm -> in words."""

NOTE = (
    "Closed: share of the gap between the SAE at the fork, whose step size has not fallen, and the "
    "clean model, on the validation documents; in brackets its 95% interval, over seeds and "
    "documents. Against mse: how many points more than mse from the same fork; p in brackets, by "
    f"Holm over this whole family and lora against e2e. '{SAME}' is shown to be within "
    f"{MARGIN:.1%} of the gap (two one-sided tests). An arm gets the last {PRIMARY:.0%} of the "
    "seconds, or the share beside its name: those are not judged. Left: nats to the clean model at "
    "the end, which compare across forks. Seconds: the SAE's training before the fork and the arm; "
    "+ tuning: and the search for its step sizes, the trunk's aside. CE, no SAE: of the adapted "
    "model without the SAE, less the clean one's. Kept: Jaccard of the latents active before and "
    "after. Effects: what zeroing a latent does, as correlation with the clean model, of those "
    "that are among the most active both before and after. Probing: balanced accuracy with 5 "
    "latents. Change: from before the arm, for mse-lora from where LoRA began. These four are of "
    "the seeds measured, the last three with intervals over seeds alone. Blank: not measured, or "
    f"not timed on the clock of {BASE}."
)

NO_VERDICT = "no verdict (one seed)"

Rows = list[list[str]]
Label = Callable[[Arm], str]
"""How an arm is called: in short in a text, in full on a page."""


def table(experiments: dict[str, Experiment], name: str) -> str:
    """The experiment `name` of these as text, at most `WIDTH` columns wide."""
    blocks = [title(finished(experiments[name])), *_blocks(experiments, name, _short)]
    return "\n\n".join(_wrapped(b) if isinstance(b, str) else _fitted(b) for b in blocks)


def markdown(experiments: dict[str, Experiment], name: str) -> str:
    """The same for a page: arms by their full names, tables in Markdown."""
    blocks = _blocks(experiments, name, _in_full)
    return "\n\n".join(b if isinstance(b, str) else page(b) for b in blocks) + "\n"


def is_part(name: str) -> bool:
    """Whether an experiment is of measurements that are columns of `table`."""
    return any(name == f"{frontier}-{kind}" for frontier in FRONTIERS for kind in MEASURED)


def _blocks(experiments: dict[str, Experiment], name: str, label: Label) -> Iterator[str | Rows]:
    """Tables and paragraphs, in order."""
    experiment = finished(experiments[name])
    nothing = Experiment(name, [], [])
    measured = {kind: experiments.get(f"{name}-{kind}", nothing) for kind in MEASURED}
    judged = stats.verdicts(experiment)
    yield _main(experiment, measured, judged, label)
    yield "\n".join(f"- {line}" for line in _conclusions(experiment, judged))
    yield from filter(None, (_texts(experiment, label), _controls(experiment, label)))
    yield " ".join([NOTE, *_left_out(experiments[name])])


def _short(arm: Arm) -> str:
    return arm.role + (f" {arm.fork:.0%}" if not arm.judged else "")


def _in_full(arm: Arm) -> str:
    return f"{NAMES.get(arm.role, arm.role)} (`{_short(arm)}`)"


def _main(
    experiment: Experiment, measured: dict[str, Experiment], judged: Family, label: Label
) -> Rows:
    """A row for each arm: those that are judged first, `mse` at the head."""
    timed, why = placed(stats.on_one_clock(experiment))
    planned = Experiment(experiment.name, experiment.plan, experiment.plan)
    rows = [["arm", *(f"{outcome} closed, %" for outcome in OUTCOMES)]]
    rows[0] += [f"{outcome} against {BASE}" for outcome in OUTCOMES]
    rows[0] += [f"{outcome} left" for outcome in OUTCOMES]
    rows[0] += ["seconds", "+ tuning", *(head for head, _ in MEASURED.values()), "seeds"]
    for arm in sorted(
        stats.arms(experiment), key=lambda arm: (not arm.judged, arm.fork, arm.role != BASE)
    ):
        costs = [None if why else stats.seconds(timed, arm, tuning) for tuning in (False, True)]
        there, all_seeds = len(arm.of(experiment)), len(arm.of(planned))
        row = [
            label(arm),
            *(_share(stats.closed(experiment, arm, outcome)) for outcome in OUTCOMES),
        ]
        row += [_against(experiment, judged, arm, outcome) for outcome in OUTCOMES]
        row += [_nats(stats.left(experiment, arm, outcome)) for outcome in OUTCOMES]
        row += [BLANK if cost is None else f"{cost:,.0f}" for cost in costs]
        for kind, (_, cell) in MEASURED.items():
            row.append(cell([entry.measured for entry in arm.of(measured[kind])]))
        rows.append([*row, f"{there}" if there == all_seeds else f"{there} of {all_seeds}"])
    return rows


def _nats(value: float | None) -> str:
    return BLANK if value is None else f"{value:.3f}"


def _share(estimate: Estimate | None) -> str:
    """`43.2 [38.1, 48.3]`, in percent."""
    return BLANK if estimate is None else _interval(estimate, ".1f", 100)


def _interval(e: Estimate, form: str = "+.3f", times: int = 1) -> str:
    """`+0.012 [+0.003, +0.021]`; the value alone where its ends are no other."""
    value, *ends = (format(times * x, form) for x in (e.value, e.low, e.high) if x is not None)
    return value + (f" [{', '.join(ends)}]" if set(ends) - {value} else "")


def _against(experiment: Experiment, judged: Family, arm: Arm, outcome: str) -> str:
    """`+3.2 better (.012)`; the difference alone where it is not judged."""
    if arm.role == BASE:
        return BLANK
    verdict = judged.get((outcome, arm, arm.base))
    more = verdict.more if verdict else stats.closed(experiment, arm, outcome, than=arm.base)
    if more is None:
        return BLANK
    text = f"{100 * more.value:+.1f}"
    if not verdict or verdict.p is None:
        return text
    p = "<.001" if verdict.p < 0.001 else f"{verdict.p:.3f}".removeprefix("0")
    return f"{text} {verdict.word} ({p})"


def _means(values: list[dict[str, Any]], *path: str) -> list[float | None]:
    """Of each seed the mean of the numbers at a path, `*` for every name; None without any."""
    return [fmean(found) if (found := _numbers(of_seed, path)) else None for of_seed in values]


def _numbers(value: Any, path: Sequence[str]) -> list[float]:
    if not path:
        numbers = value if isinstance(value, list) else [value]
        return [] if None in numbers else numbers
    if not isinstance(value, dict):
        return []
    names = value if path[0] == "*" else [path[0]]
    return [n for name in names if name in value for n in _numbers(value[name], path[1:])]


def _no_sae(values: list[dict[str, Any]]) -> str:
    """What the adapted model without the SAE has more than the clean one, in nats of CE."""
    fields = ("ce_without_sae", "ce_clean")
    both = [[_numbers(value, [field]) for field in fields] for value in values]
    harm = [[x - y for x, y in zip(*of_seed, strict=True)] for of_seed in both if all(of_seed)]
    return _interval(crossed(harm)) if harm else BLANK


def _latents(values: list[dict[str, Any]]) -> str:
    known = [kept for kept in _means(values, "*", "jaccard") if kept is not None]
    return _interval(of_seeds(known), ".2f") if known else BLANK


def _effects(values: list[dict[str, Any]]) -> str:
    pairs = [list(_in_both(sites)) for sites in values]
    after, before = ([fmean(p[n] for p in of) if of else None for of in pairs] for n in (0, 1))
    return _change(after, before)


def _in_both(sites: dict[str, Any]) -> Iterator[tuple[float, float]]:
    """(effect after, effect before) of the latents that are among the most active both times."""
    for models in sites.values():
        was, now = (
            dict(zip(models[m]["latents"], models[m]["correlation_by_latent"], strict=True))
            for m in ("before", "adapted")
        )
        yield from ((now[n], was[n]) for n in now if None not in (now[n], was.get(n)))


def _probing(values: list[dict[str, Any]]) -> str:
    """As the adapted model has the latents, where that is another thing than on clean text."""
    which = ("adapted", "after", "before")
    adapted, after, before = (_means(values, "sites", "*", "*", w, "5", "mean") for w in which)
    return _change(after if None in adapted else adapted, before)


def _change(after: list[float | None], before: list[float | None]) -> str:
    """`0.79: -0.021 [-0.039, -0.004]`: what it is, and what changed seed by seed."""
    pairs = [(a, b) for a, b in zip(after, before, strict=True) if a is not None and b is not None]
    if not pairs:
        return BLANK
    return f"{fmean(a for a, _ in pairs):.2f}: {_interval(of_seeds([a - b for a, b in pairs]))}"


MEASURED: dict[str, tuple[str, Callable[[list[dict[str, Any]]], str]]] = {
    "no-sae": ("CE, no SAE", _no_sae),
    "latents": ("kept", _latents),
    "effects": ("effects, change", _effects),
    "probing": ("probing, change", _probing),
}
"""The experiment of measurements behind the name -> (head of its column, values of seeds as a
cell)."""


def _conclusions(experiment: Experiment, judged: Family) -> Iterator[str]:
    """What may be said, by rules that go by the numbers alone."""
    yield _maturity(experiment)
    for outcome in OUTCOMES:
        of = {key[1]: v for key, v in judged.items() if key[0] == outcome and key[2].role == BASE}
        yield f"{outcome}, against {NAMES[BASE]} ({BASE}): {_by_word(of)}."
    both = [arm for arm in stats.arms(experiment) if _better_in_all(judged, arm)]
    yield (
        f"Better in both: {', '.join(map(_short, both))}. These seconds are better spent there."
        if both
        else f"No arm is shown to be better than {BASE} in both KL and CE."
    )
    yield from _of_forks(experiment)
    for (outcome, arm, than), verdict in judged.items():
        if than.role != BASE:
            more = f"{100 * verdict.more.value:+.1f}, {verdict.word or NO_VERDICT}"
            yield f"{outcome}, {_short(arm)} against {_short(than)}: {more}."
    yield from _of_controls(experiment)


def _of_forks(experiment: Experiment) -> Iterator[str]:
    """Of each role with other parts of the seconds, what it leaves more than with the main one."""
    for role, forks in grouped(stats.arms(experiment), lambda arm: arm.role).items():
        others = sorted(arm.fork for arm in forks if arm.fork not in (PRIMARY, 1.0))
        more = [stats.left_more(experiment, Arm(role, f), Arm(role), "KL") for f in others]
        each = [f"with {f:.0%} {_interval(m)}" for f, m in zip(others, more, strict=True) if m]
        if each:
            main = f"KL that {role} leaves more than with {PRIMARY:.0%} of the time"
            yield f"{main}: {', '.join(each)}."


def _maturity(experiment: Experiment) -> str:
    found = stats.maturity(experiment)
    if not found:
        return "How mature the SAE is, is not known: no trunk that reached the fork."
    slope = ""
    if found.slope is not None:
        part = 100 * found.slope / found.gap
        slope = f" At the fork it falls by {100 * found.slope:.4f} nats ({part:.1%}) in 100 s."
    return (
        f"{'Mature' if found.mature else 'Immature'} SAE: the last doubling of its tokens moved "
        f"the gap in KL by {found.change:.0%} (mature: less than {stats.MATURE:.0%}).{slope}"
    )


def _by_word(verdicts_of: dict[Arm, Verdict]) -> str:
    """Arms by their verdict, with the points that they close more."""
    words = grouped(verdicts_of, lambda arm: verdicts_of[arm].word)
    parts = []
    for word in (*stats.WORDS, ""):
        points = [
            f"{_short(a)} {100 * verdicts_of[a].more.value:+.1f}" for a in words.get(word, [])
        ]
        within = f" within {MARGIN:.1%}" if word == SAME else ""
        parts += [f"{word or NO_VERDICT}{within}: {', '.join(points)}"] if points else []
    return "; ".join(parts) or "nothing to compare"


def _better_in_all(judged: Family, arm: Arm) -> bool:
    found = [judged.get((outcome, arm, arm.base)) for outcome in OUTCOMES]
    return all(verdict is not None and verdict.word == stats.BETTER for verdict in found)


def _of_controls(experiment: Experiment) -> Iterator[str]:
    """Whether as much closes around an SAE that learnt less, by the 95% intervals."""
    for sae in list(SAES)[1:]:
        for arm in (arm for arm in stats.arms(experiment, sae) if arm.role != BASE):
            control = stats.closed(experiment, arm, "KL")
            trained = stats.closed(experiment, Arm(arm.role, arm.fork), "KL")
            if not control or not trained or (word := _beside(control, trained)) is None:
                continue
            yield (
                f"KL, {_short(arm)} around an SAE with {SAES[sae]}: {_share(control)}% closed, "
                f"{word} the {_share(trained)}% around the trained one."
            )


def _beside(one: Estimate, other: Estimate) -> str | None:
    """How two intervals lie; None where one is missing."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return None
    apart = "less than" if one.high < other.low else "more than" if one.low > other.high else ""
    return apart or "not told apart from"


def _texts(experiment: Experiment, label: Label) -> Rows:
    """KL closed on the documents of each text, where they are of several; else []."""
    forked = [arm for arm in stats.arms(experiment) if arm.judged]
    runs = [run for arm in forked for run in runs_of(arm.of(experiment))]
    names = [str(name) for name in (runs[0].header.get("documents") or [])] if runs else []
    texts = grouped((name for name in names if "/" in name), lambda name: name.partition("/")[0])
    if len(texts) < 2:
        return []
    heads = [f"{text} ({len(documents)} documents)" for text, documents in texts.items()]
    rows = [
        [label(arm), *(_share(stats.closed(experiment, arm, "KL", text=f"{t}/")) for t in texts)]
        for arm in forked
    ]
    return [["KL closed, % of the gap on", *heads], *rows]


def _controls(experiment: Experiment, label: Label) -> Rows:
    """What closes around SAEs that learnt less, beside the trained one; [] without such arms."""
    kinds = [sae for sae in SAES if sae == "own" or stats.arms(experiment, sae)]
    controls = [arm for sae in kinds[1:] for arm in stats.arms(experiment, sae)]
    if not controls:
        return []
    rows = [["closed, %, around an SAE", "", *(SAES[sae] for sae in kinds)]]
    for outcome in OUTCOMES:
        gaps = [stats.gap(experiment, Arm(BASE, sae=sae), outcome) for sae in kinds]
        rows.append(["the gap, nats", outcome, *map(_nats, gaps)])
    for role, fork in dict.fromkeys((arm.role, arm.fork) for arm in controls):
        for outcome in OUTCOMES:
            shares = [
                _share(stats.closed(experiment, Arm(role, fork, sae), outcome)) for sae in kinds
            ]
            rows.append([label(Arm(role, fork)), outcome, *shares])
    return rows


def _left_out(experiment: Experiment) -> list[str]:
    """A sentence for each run that is there and may not be counted."""
    runs = [(e, why) for e in experiment.entries if e.run and (why := unsound(e.run))]
    return [f"{entry.role} seed {entry.seed} {why}: left out." for entry, why in runs]


def _wrapped(text: str) -> str:
    """Each line of a text, wrapped; a point's further lines are set in."""
    indents = ["  " * line.startswith("- ") for line in text.splitlines()]
    pairs = zip(text.splitlines(), indents, strict=True)
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent=by) for line, by in pairs)


def _fitted(rows: Rows) -> str:
    """Rows as text; columns that are too many for `WIDTH` go below, behind the first again."""
    left, count = (0,), len(rows[0])
    while (
        count > 2 and max(map(len, aligned([r[:count] for r in rows], left).splitlines())) > WIDTH
    ):
        count -= 1
    first = aligned([row[:count] for row in rows], left)
    rest = [[row[0], *row[count:]] for row in rows]
    return "\n\n".join([first, *([_fitted(rest)] if count < len(rows[0]) else [])])
