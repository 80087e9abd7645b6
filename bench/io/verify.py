"""`python -m bench verify PATH ...`: whether records, and the JSON beside them, are sound.

Every fault is a line of its own, `FILE:LINE: what is wrong`. A record that was cut off is sound,
in the middle of its last line too: it says what was measured until then.
"""

import hashlib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench import __version__
from bench.errors import Rejected, Usage
from bench.io import schema
from bench.io.console import say
from bench.io.record import run_name

PASSES = ("forwards", "backwards", "block_forwards", "block_backwards", "backward_tokens")
SECONDS = ("seconds", "evaluation_seconds", "checkpoint_seconds", "suspended_seconds")
COUNTERS = ("tokens", *PASSES, *SECONDS)
"""Fields of a row that are never negative, and never less than in a row before."""
LOSSES = ("ce_", "l0_", "fvu")
"""How fields of a header or an end begin that are null only where `nonfinite` says why."""

Line = dict[str, Any]


def verify(paths: Iterable[str | Path]) -> None:
    """Print what is wrong in these files and folders on stderr, or a summary where nothing is.

    Raises `Usage` for a path that is not there, `Rejected` where there is no record or a fault.
    """
    files = [File(path) for path in find(paths)]
    faults = [fault for file in files for fault in file.faults]
    if faults:
        print(*faults, sep="\n", file=sys.stderr)
        wrong = sum(bool(file.faults) for file in files)
        raise Rejected(f"{_count(len(faults), 'fault')} in {wrong} of {_count(len(files), 'file')}")
    say(summary(Counter(kind for file in files for kind in file.kinds), paths))


def find(paths: Iterable[str | Path]) -> list[Path]:
    """The records and JSON files that are meant: folders are searched, but for hidden files."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [p for p in path.rglob("*.json*") if p.suffix in (".json", ".jsonl")]
            shown = [p for p in inside if not re.search(r"(^|/)\.", f"{p.relative_to(path)}")]
            if not any(p.suffix == ".jsonl" for p in shown):
                raise Rejected(f"no records (*.jsonl) in '{path}' or below it")
            files += sorted(shown)
        elif path.exists() and path.suffix in (".json", ".jsonl"):
            files.append(path)
        else:
            raise Usage(f"no folder, record (*.jsonl) or JSON file '{path}'")
    return list(dict.fromkeys(files))


def summary(kinds: Counter[str], paths: Iterable[str | Path]) -> str:
    """One line that counts the sound files."""
    states = ("cut off", "cut off within a line", "older than checksums")
    aside = [f"{kinds[state]:,} {state}" for state in states if kinds[state]]
    parts = [_count(kinds["record"], "record") + (f" ({', '.join(aside)})" if aside else "")]
    rest = ("measurement", "manifest", "other JSON file")
    parts += [_count(kinds[kind], kind) for kind in rest if kinds[kind]]
    return f"verified {', '.join(parts)} in {', '.join(map(str, paths))}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)


def strict(data: bytes) -> Any:
    """Bytes -> their JSON value; ValueError where they are not JSON, NaN included."""
    return json.loads(data.decode(), parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is not a finite number")
    return float(text)


class File:
    """One file: `faults` are what is wrong in it, `kinds` what it counts as in the summary."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kinds: list[str] = []
        self.faults: list[str] = []
        self._documents: int | None = None  # the length of a list of losses
        self._header: Line = {}
        self._last: Line = {}  # the last value of each field of a row
        try:
            data = path.read_bytes()
            self._record(data) if path.suffix == ".jsonl" else self._json(data)
        except (OSError, RecursionError) as error:
            self._fault(1, f"cannot be read ({error})")

    def _fault(self, number: int, text: str) -> None:
        self.faults.append(f"{self.path}:{number}: {text}")

    def _check(self, number: int, values: Line, line: type) -> Line:
        """Report what a `line` lacks or has of the wrong kind -> the fields that are right.

        A null among losses, or anywhere in a row, is a number that `nonfinite` names.
        """
        fields, required, is_row = schema.fields_of(line), schema.required(line), line is schema.Row
        if missing := [f"'{name}'" for name in required if name not in values]:
            self._fault(number, f"no {', '.join(missing)}")
        right, clean, lost = dict(values), values.get("ce_full_clean"), values.get("nonfinite")
        lost = lost if isinstance(lost, dict) else {}
        self._documents = len(clean) if isinstance(clean, list) else self._documents
        for name, value in values.items():
            kind = fields[name].kind if name in fields else None
            items = value if isinstance(value, list) else [value]
            may_lack = value is None and not is_row and name not in required
            if kind and not may_lack and not schema.is_a(kind, value):
                self._fault(number, f"{name} {value!r:.40}, expected {schema.KINDS[kind][0]}")
                del right[name]
            elif kind == schema.Losses and len(items) != (self._documents or len(items)):
                self._fault(number, f"{name} is of length {len(items)}, expected {self._documents}")
            elif None in items and name not in lost and (is_row or name[:3] in LOSSES):
                self._fault(number, f"{name} has a null that 'nonfinite' does not name")
        return right

    def _is_current(self, value: Line) -> bool:
        """Whether this version knows the schema; a fault where it does not."""
        version, versions = value.get("schema"), value.get("versions")
        if version != schema.SCHEMA:
            writer = versions.get("splicebench") if isinstance(versions, dict) else None
            by = f", written by {writer}" if writer else ""
            reads = f"this version ({__version__}) reads schema {schema.SCHEMA}"
            self._fault(1, f"schema {version!r:.40}{by}, {reads}")
        return version == schema.SCHEMA

    def _record(self, data: bytes) -> None:
        self.kinds.append("record")
        if not data:
            self._fault(1, "empty, expected a record's header")
        state = "cut off"
        for number, start, line in self._lines(data):
            if number == 1 and line is not None:
                if not self._is_current(line):
                    return
                self._check_header(line)
            elif not state:
                self._fault(number, "a line after the end line")
            elif line is None:
                state = "cut off within a line"
            elif "end" in line:
                self._check_end(number, line, data[:start])
                state = ""
            else:
                self._check_row(number, line)
        self.kinds += filter(None, [state])

    def _lines(self, data: bytes) -> Iterator[tuple[int, int, Line | None]]:
        """(number, where it starts, object) of each line; None for a last one that is torn."""
        start = 0
        for number, piece in enumerate(data.split(b"\n"), start=1):
            is_last = start + len(piece) == len(data)  # not even a newline follows
            if is_last and not piece:
                return
            try:
                line = strict(piece)
                if not isinstance(line, dict):
                    raise ValueError("expected an object")
                yield number, start, line
            except ValueError as error:
                if is_last and number > 1 and piece.startswith(b"{"):
                    yield number, start, None
                else:
                    self._fault(number, f"not a JSON line ({getattr(error, 'msg', error)})")
            start += len(piece) + 1

    def _check_header(self, line: Line) -> None:
        self._header, name = self._check(1, line, schema.Header), self.path.stem
        identity: list[Any] = [
            self._header.get(field) for field in ("method", "config", "spec", "seed")
        ]
        identity.append(self._header.get("sae", {}).get("sha256"))
        method, expected = identity[0], "" if None in identity else run_name(*identity)
        if not expected:
            expected, name = f"{method}-xxxxxxxx", re.sub("[0-9a-f]{8}$", "x" * 8, name)
        if method and name != expected:
            self._fault(1, f"the file is named {self.path.stem}, its header makes it {expected}")

    def _check_row(self, number: int, line: Line) -> None:
        row, is_first = self._check(number, line, schema.Row), not self._last
        for name in ("step", *COUNTERS):
            least = self._last.get(name, 0) + (name == "step" and not is_first)
            if row.get(name, least) < least:
                self._fault(number, f"{name} {row[name]}, expected at least {least}")
        if is_first and row.get("step", 0) > 0:
            self._fault(number, f"the first row is of step {row['step']}, expected 0")
        self._last |= row

    def _check_end(self, number: int, line: Line, before: bytes) -> None:
        """`before` are the bytes of the lines before it."""
        end = self._check(number, line, schema.End)
        if line["end"] not in schema.ENDS:
            expected = f"expected one of {', '.join(schema.ENDS)}"
            self._fault(number, f"end {line['end']!r:.40}, {expected}")
        if "sha256" not in line:
            self.kinds.append("older than checksums")
        elif line["sha256"] != hashlib.sha256(before).hexdigest():
            self._fault(number, "sha256 is not of the lines before: one of them was changed")
        if line["end"] != "finished":
            return
        if None in (end.get("ce_full") or [None]):
            self._fault(number, "finished, but ce_full is not there or not finite")
        steps, step = self._header.get("spec", {}).get("steps"), self._last.get("step")
        trains_nothing = step == 0 and not end.get("trained_parameters")
        if steps is not None and step != steps and not trains_nothing:
            self._fault(number, f"finished, but the last row is not of step {steps}")

    def _json(self, data: bytes) -> None:
        try:
            value = strict(data)
        except ValueError as error:
            at = getattr(error, "start", data.find(str(error).split()[0].encode()))
            number = getattr(error, "lineno", 1 + data.count(b"\n", 0, max(at, 0)))
            return self._fault(number, f"not JSON ({getattr(error, 'msg', error)})")
        names = set(value) if isinstance(value, dict) else set()
        if names >= {"experiment", "runs"}:
            self.kinds.append("manifest")
            for run in self._check(1, value, schema.Manifest).get("runs", ()):
                name = run.get("record") if isinstance(run, dict) else run
                self._check_beside(data, name, ".jsonl", ".json")
        elif names >= {"measure", "of"}:
            self.kinds.append("measurement")
            if self._is_current(value):
                name = self._check(1, value, schema.Measurement).get("of")
                self._check_beside(data, name, ".jsonl")
        else:
            self.kinds.append("other JSON file")

    def _check_beside(self, data: bytes, name: str | None, *suffixes: str) -> None:
        """A fault where a file that the data name does not lie beside this one."""
        paths = [self.path.parent / f"{name}{suffix}" for suffix in suffixes]
        if name is not None and not any(path.is_file() for path in paths):
            number = data.partition(json.dumps(name).encode())[0].count(b"\n") + 1
            self._fault(number, f"names {name!r:.40}, which does not lie beside it")
