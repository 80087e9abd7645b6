"""The board: comparisons that anyone may add, each a folder of records, without a server.

`bench submit FOLDER` writes the records and what the hub reads of them to BOARD/NAME, and the table
of all to BOARD/README.md. A pull request with these files is the upload.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from analysis.records.comparison import Comparison, load
from analysis.stats.gap import closed_at_end
from analysis.stats.usable import unsound
from analysis.tables.comparison import cells, losses_of, page
from analysis.tables.frames import frame
from analysis.tables.notes import model_name
from bench.errors import Rejected, Usage
from bench.io.files import new_text

SEEDS = 3
"""Fewer of a method tell it from no other."""
DIGITS = 9
"""Significant digits of a number in what the hub reads."""
HEAD = """# The board

Comparisons of several seeds on models and SAEs of their own. `python -m bench submit FOLDER` checks
records and adds them here; a pull request with what it wrote is the upload, and the tests accept it
or say why not. Shares and intervals are [those of all records](../../docs/records.md); seconds
compare within a folder alone.

"""


def submit(folder: Path, board: Path, name: str | None = None) -> list[Path]:
    """Add the records in `folder` to the board under a name (that of the folder) -> files written.

    Raises `Usage` where there is no such folder, `Rejected` for records that do not belong there,
    each reason named. What is on the board under that name is replaced.
    """
    comparisons = load(folder)
    if wrong := [fault for each in comparisons for fault in faults(each)]:
        raise Rejected(f"{folder}: {'; '.join(wrong)}")
    name = name or folder.resolve().name
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise Usage(f"--name '{name}': expected letters, digits, '.', '-' and '_' alone")
    to = board / name
    records = sorted(folder.glob("*.jsonl"))
    written = {to / path.name: path.read_text(encoding="utf-8") for path in records}
    written |= {to / name: text for name, text in evaluations(comparisons).items()}
    written[to / ".eval_results/splicebench.yaml"] = hub_results(comparisons)
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        new_text(path, text)
    for left in set(to.glob("*.json*")) - written.keys():  # of what was there under this name
        left.unlink()
    new_text(board / "README.md", table(board))
    return [*written, board / "README.md"]


def faults(comparison: Comparison) -> list[str]:
    """Why a comparison does not belong on the board."""
    wrong = [f"{run.name} {why}" for run in comparison.all if (why := unsound(run))]
    for run in comparison.all:
        if run.header.get("dirty") or not run.header.get("commit"):
            wrong.append(f"{run.name} is of code that is no commit")
    for label, runs in comparison.trained.items():
        if len(runs) < SEEDS:
            wrong.append(f"{label} has {len(runs)} of at least {SEEDS} seeds")
    if not wrong and not any(map(closed_at_end, comparison.trained.values())):
        wrong.append("the gap is not two of its errors above 0, so no share of it means anything")
    return wrong


def table(board: Path) -> str:
    """BOARD/README.md of what lies on the board."""
    folders = sorted({path.parent for path in board.glob("*/*.jsonl")})
    pairs = [(folder.name, each) for folder in folders for each in load(folder)]
    losses = losses_of([each for _, each in pairs])
    rows: list[list[str]] = []
    for name, each in pairs:
        heads, *of_labels = cells(each, losses)
        place = [name, model_name(each.spec["model"]), each.spec["site"]]
        rows = rows or [["records", "model", "site", *heads]]
        rows += [[*place, *row] for row in of_labels]
    return HEAD + page(rows, left=4) + "\n"


def evaluations(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """File name -> an evaluation of SAEBench's shape, one for each label; null is not known."""
    made = {}
    for comparison in comparisons:
        rows = {row["method"]: row for row in _rows(comparison)}
        runs = [{"label": row["method"], **row} for row in _rows(comparison, "run")]
        for label, of_label in comparison.trained.items():
            first = of_label[0].header
            row = rows[label]
            reached = {name: row[name] for name in row if name.startswith(("ce", "kl"))}
            cost = {name: row[name] for name in ("seconds", "backwards", "tokens")}
            evaluation = {
                "eval_type_id": "splicebench",
                "eval_config": {**first["spec"], "method": label, "config": first["config"]},
                "eval_id": "+".join(run.name for run in of_label),
                "datetime_epoch_millis": int(1000 * _started(first).timestamp()),
                "eval_result_metrics": {"loss_recovered": reached, "cost": cost},
                "eval_result_details": [each for each in runs if each["label"] == label],
                "sae_bench_commit_hash": f"splicebench {first['commit']}",
                "sae_lens_id": None,
                "sae_lens_release_id": None,
                "sae_lens_version": (first.get("versions") or {}).get("sae-lens"),
                "sae_cfg_dict": first["sae"],
            }
            name = re.sub(r"[^\w.-]+", "-", f"{label}-{of_label[0].name.rpartition('-')[2]}")
            made[f"{name}_eval_results.json"] = json.dumps(evaluation, indent=1) + "\n"
    return made


def hub_results(comparisons: Sequence[Comparison]) -> str:
    """The shares as the hub's `.eval_results` have them: a list in YAML."""
    import yaml

    entries = []
    for comparison in comparisons:
        rows = {row["method"]: row for row in _rows(comparison)}
        for label, runs in comparison.trained.items():
            for loss in ("ce", "kl"):
                value, low, high = (
                    rows[label][f"{loss}_closed{end}"] for end in ("", "_low", "_high")
                )
                if value is None:
                    continue
                spec = comparison.spec
                said = (
                    f"{label} at {spec['site']} of {model_name(spec['model'])}, {len(runs)} seeds"
                )
                said += f", 95% {low:.4f} to {high:.4f}" if low is not None else ""
                entries.append(
                    {
                        "dataset": {"id": "splicebench/board", "task_id": f"{loss}_closed"},
                        "value": round(value, 6),
                        "date": _started(runs[-1].header).date().isoformat(),
                        "source": {"name": "splicebench"},
                        "notes": said,
                    }
                )
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=100)


def _rows(comparison: Comparison, of: str = "method") -> list[dict[str, Any]]:
    """The rows of its frame without the folder, None for what is not known. Of a number `DIGITS`:
    versions of scipy differ in later ones, and the files are compared to the byte."""
    rows = frame([comparison], of).drop(columns="folder").to_dict("records")
    return [{name: _known(value) for name, value in row.items()} for row in rows]


def _known(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if value == value else None


def _started(header: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(header["started"].replace("Z", "+00:00"))
