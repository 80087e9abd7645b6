"""The papers' claims (paper/claims.csv), each with its rule and what the records say -> Markdown.

The rules are in `cost`, `gap` and `rivals`, one function for each claim: its docstring is the rule
in words, its body decides. They were fixed before the runs were made.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from analysis.claims import cost, evidence, gap, rivals
from analysis.claims.evidence import Evidence, Finding, Missing
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
    "K2": rivals.finetuned_sae_beats_lora,
    "K3": rivals.not_additive,
    "B1": rivals.equal_sparsity,
    "B2": cost.time_of_e2e,
}
"""Claim -> the function that decides it. The claims that no experiment can decide have none."""

HOLDS, FAILS, UNMEASURED = "holds", "does not hold", "not measured"
FILE = "CLAIMS.md"

HEAD = """# The papers' claims and what the records say

Made from the records by `python -m analysis FOLDER --claims`. C: Chen, Engels and Tegmark
(2501.19406), K: Karvonen (2503.17272), B: Braun et al. (2405.12241); "-" is a number that
was not found, or not measured.
Each claim has a rule for "holds", which was written before the runs that it decides on were made.
A verdict is about the setting that it names, which mostly is not the paper's. CE is in nats per
scored token; ± is one standard error over documents (over groups of them where they are short),
paired and averaged over seeds; a range in brackets is over seeds (or over runs, where it says so).
Nothing is claimed from runs that are not finished, from random weights, or from seconds of several
clocks or of resumed runs.
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
        """One of `HOLDS`, `FAILS`, `UNMEASURED`."""
        return {True: HOLDS, False: FAILS, None: UNMEASURED}[self.finding.holds]


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
        return RULES[claim.id](case)
    except Missing as missing:
        return Finding(None, missing.ours, missing=str(missing))


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
            counts = ", ".join(f"{words.count(word)} {word}" for word in (HOLDS, FAILS, UNMEASURED))
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
    """Name of a folder -> its verdicts, as Markdown."""
    parts = [HEAD]
    for name, verdicts in judged.items():
        parts += [f"## {name}\n", _summary(verdicts), *map(_section, verdicts)]
    return "\n".join(parts)


def _summary(verdicts: list[Verdict]) -> str:
    heads = ["id", "claim", "paper", "ours", "verdict"]
    rows = [
        [v.claim.id, v.claim.statement, v.claim.number or BLANK, v.finding.ours or BLANK, _word(v)]
        for v in verdicts
    ]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return evidence.table(heads, rows) + "\n"


def _word(verdict: Verdict) -> str:
    """The verdict; that it rests on one seed is part of it."""
    if verdict.word == UNMEASURED:
        return verdict.word
    return f"**{verdict.word}**" + " (1 seed)" * (verdict.case.seeds == 1)


def _section(verdict: Verdict) -> str:
    """A claim's own section: everything that its verdict rests on."""
    claim, finding, used = verdict.claim, verdict.finding, verdict.case.used
    source = "; ".join(filter(None, [claim.setting, claim.source, claim.precision]))
    items = {
        "verdict": _word(verdict),
        "missing": finding.missing,
        "paper": f"{claim.number or 'no number found'} ({source})",
        "ours": finding.ours,
        "rule": claim.rule or " ".join((RULES[claim.id].__doc__ or "").split()),
    }
    if used:
        items["setting"] = f"{evidence.setting(used)}; {seeds(verdict.case.seeds)}"
        items["records"] = ", ".join(f"`{name}`" for name in sorted(used))
    lines = [f"### {claim.id}: {claim.statement}\n"]
    lines += [f"- {name}: {text}" for name, text in items.items() if text]
    return "\n".join([*lines, *(f"\n{part}" for part in finding.details), ""])
