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
from pathlib import Path

from bench import __version__
from bench.errors import Rejected, Usage
from bench.io.console import say
from bench.io.record import run_name
from bench.io.schema import (
    ENDS,
    KINDS,
    SCHEMA,
    End,
    Header,
    Losses,
    Manifest,
    Measurement,
    Row,
    fields_of,
    is_a,
    required,
)

COUNTERS = ("forwards", "backwards", "block_forwards", "block_backwards", "backward_tokens")
COUNTERS += ("tokens", "seconds", "evaluation_seconds", "checkpoint_seconds", "suspended_seconds")
"""Fields of a row that are never negative, and never less than in a row before."""

LOSSES = ("ce_", "l0_", "fvu")
"""How fields of a header or an end begin that are null only where `nonfinite` says why."""


def verify(paths):
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


def find(paths):
    """The records and JSON files that are meant: folders are searched, but for hidden files."""
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [p for p in path.rglob("*.json*") if p.suffix in (".json", ".jsonl")]
            shown = [p for p in inside if not re.search(r"(^|/)\.", f"{p.relative_to(path)}")]
            if not any(p.suffix == ".jsonl" for p in shown):
                raise Rejected(f"no records (*.jsonl) in '{path}' or below it")
            found += sorted(shown)
        elif path.exists() and path.suffix in (".json", ".jsonl"):
            found.append(path)
        else:
            raise Usage(f"no folder, record (*.jsonl) or JSON file '{path}'")
    return list(dict.fromkeys(found))


def summary(kinds, paths):
    """One line on what was looked at, all of it sound."""
    states = ("cut off", "cut off within a line", "older than checksums")
    aside = [f"{kinds[state]:,} {state}" for state in states if kinds[state]]
    parts = [_count(kinds["record"], "record") + (f" ({', '.join(aside)})" if aside else "")]
    rest = ("measurement", "manifest", "other JSON file")
    parts += [_count(kinds[kind], kind) for kind in rest if kinds[kind]]
    return f"verified {', '.join(parts)} in {', '.join(map(str, paths))}"


def _count(number, what):
    return f"{number:,} {what}" + "s" * (number != 1)


def strict(data):
    """Bytes -> the JSON value that they are; ValueError for what is none, NaN included."""
    return json.loads(data.decode(), parse_constant=_finite, parse_float=_finite)


def _finite(text):
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is not a finite number")
    return float(text)


class File:
    """One file and what was found in it."""

    def __init__(self, path):
        self.path, self.kinds, self.faults, self.documents = path, [], [], None
        """Its path, what it counts as in the summary, its faults, how many documents it is on."""
        try:
            data = path.read_bytes()
            self._record(data) if path.suffix == ".jsonl" else self._json(data)
        except (OSError, RecursionError) as error:
            self._wrong(1, f"cannot be read ({error})")

    def _wrong(self, line, said):
        self.faults.append(f"{self.path}:{line}: {said}")

    def _check(self, number, value, line):
        """Tell what a `line` lacks or has of the wrong kind -> the fields that are right.

        A null among losses, or anywhere in a row, is a number that `nonfinite` names.
        """
        must, known = required(line), fields_of(line)
        missing = ", ".join(f"'{name}'" for name in must if name not in value)
        if missing:
            self._wrong(number, f"no {missing}")
        right, lost, clean = dict(value), value.get("nonfinite"), value.get("ce_full_clean")
        lost = lost if isinstance(lost, dict) else {}
        self.documents = len(clean) if isinstance(clean, list) else self.documents
        for name, item in value.items():
            kind = known[name].kind if name in known else None
            items, is_row = item if isinstance(item, list) else [item], line is Row
            may_lack = item is None and not is_row and name not in must
            if kind and not may_lack and not is_a(kind, item):
                self._wrong(number, f"{name} {item!r:.40}, expected {KINDS[kind][0]}")
                del right[name]
            elif kind == Losses and len(items) != (self.documents or len(items)):
                self._wrong(number, f"{name} is of length {len(items)}, expected {self.documents}")
            elif None in items and name not in lost and (is_row or name[:3] in LOSSES):
                self._wrong(number, f"{name} has a null that 'nonfinite' does not name")
        return right

    def _is_current(self, value):
        """Whether this version knows the schema; a fault where it does not."""
        found, versions = value.get("schema"), value.get("versions")
        writer = versions.get("splicebench") if isinstance(versions, dict) else None
        if found != SCHEMA:
            by = f", written by {writer}" if writer else ""
            reads = f"this version ({__version__}) reads schema {SCHEMA}"
            self._wrong(1, f"schema {found!r:.40}{by}, {reads}")
        return found == SCHEMA

    def _record(self, data):
        self.kinds.append("record")
        if not data:
            self._wrong(1, "empty, expected a record's header")
        header, last, state = {}, {}, "cut off"
        for number, start, line in self._lines(data):
            if number == 1:
                if not self._is_current(line):
                    return
                header = self._header(line)
            elif not state:
                self._wrong(number, "a line after the end line")
            elif line is None:
                state = "cut off within a line"
            elif "end" in line:
                self._end(number, line, header, last, data[:start])
                state = None
            else:
                self._row(number, line, last)
        self.kinds += filter(None, [state])

    def _lines(self, data):
        """(number, where it starts, object) of each line; None for a last one that is torn."""
        start = 0
        for number, piece in enumerate(data.split(b"\n"), start=1):
            last = start + len(piece) == len(data)  # not even a newline follows
            if last and not piece:
                return
            try:
                line = strict(piece)
                if not isinstance(line, dict):
                    raise ValueError("expected an object")
                yield number, start, line
            except ValueError as error:
                if last and number > 1 and piece.startswith(b"{"):
                    yield number, start, None
                else:
                    self._wrong(number, f"not a JSON line ({getattr(error, 'msg', error)})")
            start += len(piece) + 1

    def _header(self, line):
        header, name = self._check(1, line, Header), self.path.stem
        known = [header.get(field) for field in ("method", "config", "spec", "seed")]
        known.append(header.get("sae", {}).get("sha256"))
        expected = f"{known[0]}-xxxxxxxx" if None in known else run_name(*known)
        found = re.sub("[0-9a-f]{8}$", "x" * 8, name) if None in known else name
        if known[0] and found != expected:
            self._wrong(1, f"the file is named {name}, its header makes it {expected}")
        return header

    def _row(self, number, line, last):
        """`last` has what was read last of each field, and is kept up."""
        row = self._check(number, line, Row)
        for name in ("step", *COUNTERS):
            least = last.get(name, 0) + (name == "step" and bool(last))
            if row.get(name, least) < least:
                self._wrong(number, f"{name} {row[name]}, expected at least {least}")
        if not last and row.get("step", 0) > 0:
            self._wrong(number, f"the first row is of step {row['step']}, expected 0")
        last |= row

    def _end(self, number, line, header, last, before):
        end = self._check(number, line, End)
        if line["end"] not in ENDS:
            self._wrong(number, f"end {line['end']!r:.40}, expected one of {', '.join(ENDS)}")
        if "sha256" not in line:
            self.kinds.append("older than checksums")
        elif line["sha256"] != hashlib.sha256(before).hexdigest():
            self._wrong(number, "sha256 is not of the lines before: one of them was changed")
        if line["end"] != "finished":
            return
        if None in (end.get("ce_full") or [None]):
            self._wrong(number, "finished, but ce_full is not there or not finite")
        steps, step = header.get("spec", {}).get("steps"), last.get("step")
        early = step == 0 and not end.get("trained_parameters")  # a method that trains nothing
        if steps is not None and step != steps and not early:
            self._wrong(number, f"finished, but the last row is not of step {steps}")

    def _json(self, data):
        try:
            told = strict(data)
        except ValueError as error:
            at = getattr(error, "start", data.find(str(error).split()[0].encode()))
            line = getattr(error, "lineno", 1 + data.count(b"\n", 0, max(at, 0)))
            self._wrong(line, f"not JSON ({getattr(error, 'msg', error)})")
            return
        names = set(told) if isinstance(told, dict) else set()
        kind = "measurement" if names >= {"measure", "of"} else "other JSON file"
        self.kinds.append("manifest" if names >= {"experiment", "runs"} else kind)
        if self.kinds == ["measurement"] and self._is_current(told):
            self._beside(data, self._check(1, told, Measurement).get("of"), ".jsonl")
        if self.kinds == ["manifest"]:
            for run in self._check(1, told, Manifest).get("runs", ()):
                name = run.get("record") if isinstance(run, dict) else run
                self._beside(data, name, ".jsonl", ".json")

    def _beside(self, data, name, *suffixes):
        """A fault where a file that the data name does not lie beside this one."""
        paths = [self.path.parent / f"{name}{suffix}" for suffix in suffixes]
        if name is not None and not any(path.is_file() for path in paths):
            line = data.partition(json.dumps(name).encode())[0].count(b"\n") + 1
            self._wrong(line, f"names {name!r:.40}, which does not lie beside it")
