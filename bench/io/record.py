"""The record of one run: JSON Lines, flushed as measured, that can be made again.

A header line, one flat row per evaluation, an end line: `bench.io.schema` has their fields.
Nothing here imports torch, so that reading records stays cheap.
"""

import hashlib
import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.errors import Rejected, Unavailable
from bench.io.files import new_file, os_errors
from bench.io.schema import ENDS, SCHEMA, Header, Row, required


@dataclass(frozen=True)
class Run:
    """One record, as read."""

    path: Path
    """Where it lies."""
    header: dict
    """What was run, on what, and the clean and spliced CE (nats per scored token)."""
    rows: list
    """One dict per evaluation, in order of steps."""
    end: dict | None
    """The last line, or None when the file was cut off."""

    @property
    def name(self):
        """The method and eight hex digits of the run's identity."""
        return self.path.stem

    @property
    def label(self):
        """What the run was called on the command line, such as `lora:rank=64`."""
        return self.header.get("label", self.header["method"])

    @property
    def status(self):
        """finished, diverged, interrupted, error or cut off."""
        return self.end["end"] if self.end else "cut off"


def run_name(method, config, spec, seed, sae_sha256):
    """METHOD-xxxxxxxx: the method and eight hex digits of what makes a run the same run."""
    identity = {"method": method, "config": config, "spec": spec, "seed": seed, "sae": sae_sha256}
    return f"{method}-{digest(identity)[:8]}"


def digest(value):
    """sha256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Writer:
    """Appends lines to one record and brings each to the disk.

    The file begins with the texts `lines`, which are there as a whole or not at all: a header, or
    all that a run that goes on had written. Raises `Unavailable` where there is no room.
    """

    def __init__(self, path, lines=()):
        self.lines = list(lines)
        """Every line so far, as text."""
        self._path = path
        new_file(path, lambda temporary: temporary.write_bytes(self._bytes()))
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def write(self, line):
        """One JSON line; where there is no room for it nothing of it stays."""
        text = encoded(line)
        end = os.lseek(self._file, 0, os.SEEK_END)
        with os_errors(self._path):
            try:
                left = f"{text}\n".encode()
                while left:
                    left = left[os.write(self._file, left) :]
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, end)
                raise
        self.lines.append(text)

    def end(self, status):
        """The end line, with the hash of all before it; no line can follow."""
        try:
            self.write({**status, "sha256": hashlib.sha256(self._bytes()).hexdigest()})
        finally:
            self.close()

    def close(self):
        """No line can follow."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _bytes(self):
        return "".join(line + "\n" for line in self.lines).encode()


class Unwritten:
    """The writer of a process that writes nothing."""

    lines = ()

    def write(self, line):
        """Nothing."""

    def end(self, status):
        """Nothing."""


def encoded(line):
    """A dict as one JSON line; a number that is not finite is null, and `nonfinite` says so."""
    finite = {name: _finite_or_null(value) for name, value in line.items()}
    lost = {name: str(line[name]) for name in line if finite[name] != line[name]}
    return json.dumps(finite | ({"nonfinite": lost} if lost else {}), allow_nan=False)


def close_cut(path, end):
    """Write the end line of a record whose process cannot any more; a torn last line goes.

    A record that cannot be read, or has no room for it, stays as it is.
    """
    with suppress(OSError, ValueError, Unavailable):
        whole = [text for text in path.read_text(encoding="utf-8").split("\n")[:-1] if text]
        if whole and not json.loads(whole[-1]).get("end"):
            Writer(path, whole).end(end)


def _finite_or_null(value):
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite_or_null(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite_or_null(item) for key, item in value.items()}
    return value


def read(path):
    """Read one record -> Run.

    A torn last line (a killed process) is left out; anything else that is wrong raises
    `Rejected` with the file and the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Rejected(f"{path}: cannot be read as a record ({error})") from None
    parsed = []
    for number, text in enumerate(lines, start=1):
        try:
            parsed.append(json.loads(text))
        except json.JSONDecodeError as error:
            if number == len(lines) and number > 1:
                break
            raise Rejected(f"{path}:{number}: not a JSON line ({error.msg})") from None
        if not isinstance(parsed[-1], dict):
            raise Rejected(f"{path}:{number}: expected a JSON object")
    if not parsed:
        raise Rejected(f"{path}: empty, expected a record's header")
    header, *rows = parsed
    end = rows.pop() if rows and "end" in rows[-1] else None
    run = Run(path, header, rows, end)
    _check(run)
    return run


def read_folder(folder, names=None):
    """The records that lie directly in `folder` (those of these names), as they were started."""
    paths = sorted(Path(folder).glob("*.jsonl"))
    runs = [read(path) for path in paths if names is None or path.stem in names]
    return sorted(runs, key=lambda run: (run.header.get("started", ""), run.name))


def _check(run):
    if run.header.get("schema") != SCHEMA:
        found = run.header.get("schema")
        raise Rejected(f"{run.path}:1: schema {found}, this version reads schema {SCHEMA}")
    lines = [("header", Header, run.header), *(("row", Row, row) for row in run.rows)]
    for number, (what, line, found) in enumerate(lines, start=1):
        for field in required(line):
            if field not in found:
                raise Rejected(f"{run.path}:{number}: {what} has no '{field}'")
    if run.end and run.end["end"] not in ENDS:
        raise Rejected(f"{run.path}: end '{run.end['end']}', expected one of {', '.join(ENDS)}")
