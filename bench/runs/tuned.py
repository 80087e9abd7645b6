"""FOLDER/tuned.json: the settings that `tune` has chosen, and methods that are run with them.

Nothing here imports torch, so that a comparison which is done is still answered at once.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.config.method import MethodRequest, load, tuned_fields
from bench.config.spec import Spec
from bench.errors import Rejected, Usage

FILE = "tuned.json"
DIGITS = ".3g"
"""How a step size is written: as short as its label should be."""


def read(folder: Path) -> dict[str, Any]:
    """What `tune` has left in a folder.

    Raises `Usage` where that is nothing, `Rejected` for a file that it did not write.
    """
    try:
        file = json.loads((folder / FILE).read_text(encoding="utf-8"))
        known = {"spec", "model", "methods"} <= set(file)
    except OSError:
        raise Usage(f"no {FILE} in '{folder}': expected a folder that `tune` has written") from None
    except (TypeError, ValueError):
        known = False
    if not known:
        raise Rejected(f"{folder / FILE}: not a file of `tune`")
    return file


def chosen(folder: Path, spec: Spec, methods: Sequence[MethodRequest]) -> list[MethodRequest]:
    """The methods with the settings that were chosen for them, where they do not set them.

    Raises `Usage` for another site, or for a method that was not tuned. Whether the model is the
    same is seen where it is known (`check_model`).
    """
    file = read(folder)
    if file["spec"]["site"] != spec.site:
        raise Usage(f"{folder}: tuned at {file['spec']['site']}, this is {spec.site}")
    return [_with_choice(asked, spec, file["methods"], folder) for asked in methods]


def _with_choice(
    asked: MethodRequest, spec: Spec, entries: dict[str, Any], folder: Path
) -> MethodRequest:
    entry = find(entries, asked, spec)
    if entry is None and asked.name != "none" and tuned_fields(load(asked)):
        there = ", ".join(entries) or "nothing"
        raise Usage(f"{folder}: no entry for '{asked.label}', tuned there: {there}")
    for field, value in (entry or {"choice": {}})["choice"].items():
        if field not in asked.fields:
            asked = asked.with_setting(field, format(value, DIGITS))
    return asked


def find(
    entries: dict[str, Any], asked: MethodRequest, spec: Spec, name: str | None = None
) -> dict[str, Any] | None:
    """The entry that was tuned with the other settings of `asked`, else the only one of its method.

    Of several the one whose number of steps is nearest. None without any. `name` takes the place
    of the method's name.
    """
    of_method = [entry for entry in entries.values() if entry["method"] == (name or asked.name)]
    alike = [
        entry
        for entry in of_method
        if _others(MethodRequest(entry["label"]), entry) == _others(asked, entry)
    ]
    steps = asked.spec_of(spec).steps
    left = alike or of_method[: len(of_method) == 1]
    return min(left, key=lambda entry: abs(math.log(entry["steps"] / steps)), default=None)


def _others(asked: MethodRequest, entry: dict[str, Any]) -> set[str]:
    """What is set besides what was tuned."""
    return {item for item in asked.settings if item.partition("=")[0] not in entry["choice"]}


def check_model(folder: Path, spec: Spec, sha256: str) -> None:
    """Raise `Usage` where the model with this hash is not the one that was tuned."""
    file = read(folder)
    if file["model"]["sha256"] != sha256:
        tuned, model = file["spec"]["model"], spec.model
        raise Usage(
            f"{folder}: tuned on {tuned} ({file['model']['sha256'][:8]}), this is {model} "
            f"({sha256[:8]}): a step size is for one model"
        )
