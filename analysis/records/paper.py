"""The papers' numbers, read from `analysis/paper/*.csv`: one a row, with where it was found.

A column that is not one of `FIELDS` says what the number is of. A number that was not found has
no row. `source` names where it was read:

    F1        Fig. 1 of Chen, Engels and Tegmark (2501.19406), digitised
    F-scal    their six-panel scaling figure, digitised
    NB, P-abs their notebook (cell and line) and abstract
    IAIFI     a blog post on their paper
    K-csv     the curves in the repository of Karvonen (2503.17272)
    B         the text of Braun et al. (2405.12241)
    DERIVED   arithmetic on the above
"""

import csv
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import Rejected

FOLDER = Path(__file__).parents[1] / "paper"
FIELDS = ("quantity", "value", "unit", "precision", "source", "note")


@dataclass(frozen=True)
class Number:
    """One number of a paper."""

    of: dict[str, Any]
    """What it is of: the columns that are not empty, as numbers where they are numbers."""
    quantity: str
    value: float
    source: str


@functools.cache
def numbers(name: str, folder: Path = FOLDER) -> tuple[Number, ...]:
    """All numbers of one file, in its order; raises `Rejected` for a file that is none such."""
    path = folder / f"{name}.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            if not set(FIELDS) <= set(reader.fieldnames or ()):
                raise ValueError(f"expected columns {', '.join(FIELDS)}")
            return tuple(_number(row) for row in reader)
    except (OSError, ValueError, csv.Error) as error:
        raise Rejected(f"{path}: not a table of numbers ({error})") from None


def find(name: str, quantity: str, **of: object) -> list[Number]:
    """The numbers of a file that are this quantity, of these."""
    same = [number for number in numbers(name) if number.quantity == quantity]
    return [number for number in same if of.items() <= number.of.items()]


def one(name: str, quantity: str, **of: object) -> float | None:
    """The value of the only such number that is of nothing else; None where there is none."""
    return next((n.value for n in find(name, quantity, **of) if n.of == of), None)


def known(name: str, quantity: str, **of: object) -> float:
    """`one`, of a number that a figure needs; raises `Rejected` where there is none."""
    value = one(name, quantity, **of)
    if value is None:
        raise Rejected(f"{FOLDER / name}.csv: no {quantity} of {of}")
    return value


def _number(row: dict[str, str]) -> Number:
    if None in row or None in row.values():
        raise ValueError(f"a row has more or fewer cells than the head: {row}")
    if not row["source"] or not row["quantity"]:
        raise ValueError(f"a row has no source or no quantity: {row}")
    if row["precision"]:  # In the value's unit; empty where it was printed, computed or not given.
        _finite(row["precision"])
    columns = {key: text for key, text in row.items() if text and key not in FIELDS}
    of = {key: _number_or_text(text) for key, text in columns.items()}
    return Number(of, row["quantity"], _finite(row["value"]), row["source"])


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    return value


def _number_or_text(text: str) -> float | str:
    try:
        return _finite(text)
    except ValueError:
        return text
