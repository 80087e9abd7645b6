"""The papers' claims (paper/claims.csv), each with its rule and what the records say -> Markdown.

The rules are in `cost`, `gap`, `rivals` and `frontier`, one function for each claim: its docstring
is the rule in words, its body decides. `guards` says what a verdict takes besides.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.claims import cost, evidence, frontier, gap, guards, rivals
from analysis.claims.evidence import Evidence, Finding, Missing, Untestable
from analysis.report import experiments
from analysis.tables.notes import BLANK, seeds
from bench.errors import Rejected
from bench.io.files import new_text

RULES: dict[str, Callable[[Evidence], Finding]] = {
    "C1": gap.closes_a_third,
    "C2": gap.falls_with_l0,
    "C3": gap.falls_with_width,
    "C4": gap.peaks_in_the_middle,
    "C5": gap.rank_one_gives_most,
    "C6": gap.persists_in_larger_models,
    "C7": rivals.ends_lowest,
    "C8": cost.sooner,
    "C9": cost.sooner_on_llama,
    "C10": cost.fewer_passes,
    "C11": rivals.early_sae,
    "C12": cost.first_tokens,
    "C13": cost.only_later,
    "C14": gap.next_layer_gives_most,
    "C15": gap.many_saes,
    "C18": rivals.closer_to_the_clean_model,
    "K1": gap.closes_a_third_by_finetuning,
    "K2": rivals.finetuned_sae_beats_lora,
    "K3": rivals.not_additive,
    "B1": rivals.equal_sparsity,
    "B2": cost.time_of_e2e,
    "RS1": frontier.as_much_around_random_directions,
    "TM1": frontier.lora_wants_larger_steps,
    "TM2": frontier.steps_do_not_depend_on_rank,
    "SL1": frontier.low_rank_on_the_sae,
    "TA1": frontier.keeps_the_model,
    "IA1": frontier.frozen_thresholds,
}
"""Claim -> the function that decides it. The claims that no experiment can decide have none."""

HOLDS, REFUTED, UNTESTABLE, NOT_RUN = "holds", "refuted", "untestable here", "not run"
WORDS = (HOLDS, REFUTED, UNTESTABLE, NOT_RUN)
FILE = "CLAIMS.md"

HEAD = """# The papers' claims and what the records say

Made from the records by `python -m analysis FOLDER --claims`. C: Chen, Engels and Tegmark
(2501.19406), K and SL: Karvonen (2503.17272 and its data), B: Braun et al. (2405.12241), RS:
2602.14111, TM: "LoRA without regret", TA: after 2602.20904, IA: published finetunes of Gemma Scope
2; "-" is a number that was not found, or not measured. Each claim's rule is at the end.

A verdict has one of four values. `holds` and `refuted` are by the claim's rule, about the setting
that is named, which mostly is not the paper's. `untestable here` names the guard that failed with
its number: a budget, a rival or an interval decides there, not the claim. `not run` says what was
not run. No verdict is from one seed, from a gap less than two errors above 0, from runs that are
not finished, from random weights, or from seconds of several clocks or of resumed runs.

When the rules were written: those of the frontier (RS, TM, SL, TA, IA, K1) before its runs. Those
of the other claims before the runs of `laptop`; afterwards an audit added the guards and put
intervals over seeds and documents in the place of errors over documents alone. That has taken
verdicts back and made none.

CE is in nats per scored token. Brackets with 95% are an interval that counts seeds and documents,
crossed; other ranges in brackets are over seeds (or over runs, where it says so). ± is the standard
error of a share, over seeds and documents, or over documents with one seed.
"""


@dataclass(frozen=True)
class Claim:
    """A row of claims.csv."""

    id: str
    statement: str
    setting: str
    number: str
    """The paper's; empty where it was not found."""
    source: str
    precision: str
    rule: str
    """What would decide it, where no experiment can; else empty, the docstring in `RULES` says."""
    missing: str
    """What no experiment has; empty where one could decide."""


@dataclass(frozen=True)
class Verdict:
    """A claim as one folder's records decide it."""

    claim: Claim
    case: Evidence
    """With the records that were looked at."""
    finding: Finding

    @property
    def word(self) -> str:
        """One of `WORDS`."""
        undecided = UNTESTABLE if self.finding.guard else NOT_RUN
        return {True: HOLDS, False: REFUTED, None: undecided}[self.finding.holds]

    @property
    def said(self) -> str:
        """The word, with the guard that failed or what was not run."""
        if self.finding.holds is not None:
            return f"**{self.word}**"
        why = self.finding.guard or self.finding.missing
        return f"{self.word}: {why}" if why else self.word


def claims() -> list[Claim]:
    """The papers' claims, in order."""
    path = Path(__file__).parents[1] / "paper" / "claims.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return [Claim(**row) for row in csv.DictReader(file)]


def judge(folder: Evidence) -> list[Verdict]:
    """`Evidence` of a folder -> a `Verdict` for each claim."""
    cases = [(claim, folder.case()) for claim in claims()]
    return [Verdict(claim, case, _finding(claim, case)) for claim, case in cases]


def _finding(claim: Claim, case: Evidence) -> Finding:
    if claim.missing:
        return Finding(None, missing=claim.missing)
    try:
        found = _by_rule(claim, case)
        guard = "; ".join(filter(None, [found.guard, guards.failed(claim.id, case)]))
        return replace(found, holds=None, guard=guard) if guard else found
    except Missing as missing:
        return Finding(None, missing.ours, missing=str(missing))


def _by_rule(claim: Claim, case: Evidence) -> Finding:
    """What the rule finds; raises `Missing` where something was not run."""
    try:
        return RULES[claim.id](case)
    except Untestable as untestable:
        return Finding(None, untestable.ours, guard=str(untestable))


def write(folder: Path, out: Path | None = None) -> tuple[Path, list[str]]:
    """Judge the folders with manifests in or below `folder` -> (path of CLAIMS.md, a line each).

    Raises `Rejected` where there is no manifest, or one that its records do not fit.
    """
    judged, lines = {}, []
    for place in experiments(folder):
        read = evidence.read(place)
        if read:
            name = place.name if place == folder else str(place.relative_to(folder))
            judged[name] = _judge(read, place)
            words = [verdict.word for verdict in judged[name]]
            counts = ", ".join(f"{words.count(word)} {word}" for word in WORDS)
            lines.append(f"{name}: {counts}")
    if not judged:
        raise Rejected(f"no manifest of `bench experiment` in '{folder}' or below it")
    path = Path(out or folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    new_text(path, markdown(judged))
    return path, lines


def _judge(read: Evidence, place: Path) -> list[Verdict]:
    """`judge`, where what was read may be anything that JSON can hold."""
    try:
        return judge(read)
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise Rejected(f"{place}: a record does not fit its manifest ({error!r})") from error


def markdown(judged: dict[str, list[Verdict]]) -> str:
    """Name of a folder -> its verdicts, as Markdown; then each claim's rule, once."""
    parts = [HEAD]
    for name, verdicts in judged.items():
        found = [verdict for verdict in verdicts if verdict.word != NOT_RUN or verdict.finding.ours]
        parts += [f"## {name}\n", _summary(verdicts), *(_section(name, each) for each in found)]
    return "\n".join([*parts, "## The claims and their rules\n", *map(_rule, claims())])


def _summary(verdicts: list[Verdict]) -> str:
    heads = ["id", "claim", "paper", "ours", "verdict"]
    rows = [
        [v.claim.id, v.claim.statement, v.claim.number or BLANK, v.finding.ours or BLANK, v.said]
        for v in verdicts
    ]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return evidence.table(heads, rows) + "\n"


def _section(name: str, verdict: Verdict) -> str:
    """Everything that a claim's verdict in the folder `name` rests on."""
    finding, used = verdict.finding, verdict.case.used
    items = {"verdict": verdict.said, "ours": finding.ours}
    if used:
        items["setting"] = f"{evidence.setting(used)}; {seeds(verdict.case.seeds)}"
        items["records"] = ", ".join(f"`{record}`" for record in sorted(used))
    lines = [f"### {verdict.claim.id} in {name}\n", *_items(items)]
    return "\n".join([*lines, *(f"\n{part}" for part in finding.details), ""])


def _rule(claim: Claim) -> str:
    """A claim, where it is from, and what decides it."""
    source = "; ".join(filter(None, [claim.setting, claim.source, claim.precision]))
    items = {
        "paper": f"{claim.number or 'no number found'} ({source})",
        "rule": claim.rule or " ".join((RULES[claim.id].__doc__ or "").split()),
    }
    return "\n".join([f"### {claim.id}: {claim.statement}\n", *_items(items), ""])


def _items(items: dict[str, str]) -> list[str]:
    return [f"- {name}: {text}" for name, text in items.items() if text]
