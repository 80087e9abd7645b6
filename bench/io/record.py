"""The record of one run: JSON Lines, flushed as measured, that can be made again.

A header line, one flat row per evaluation, an end line: `bench.io.schema` has their fields.
Nothing here imports torch, so that reading records stays cheap.
"""

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import Rejected, Unavailable
from bench.io.files import new_file, os_errors
from bench.io.schema import ENDS, SCHEMA, Header, Row, required


@dataclass(frozen=True)
class Run:
    """One record, as read."""

    path: Path
    """Where it lies."""
    header: dict[str, Any]
    """What was run, on what, and the clean and spliced CE (nats per scored token)."""
    rows: list[dict[str, Any]]
    """One dict per evaluation, in order of steps."""
    end: dict[str, Any] | None
    """The last line, or None when the file was cut off."""

    @property
    def name(self) -> str:
        """The method and eight hex digits of the run's identity."""
        return self.path.stem

    @property
    def label(self) -> str:
        """What the run was called on the command line, such as `lora:rank=64`."""
        return self.header.get("label", self.header["method"])

    @property
    def status(self) -> str:
        """finished, diverged, interrupted, error or cut off."""
        return self.end["end"] if self.end else "cut off"


def run_name(
    method: str, config: dict[str, Any], spec: dict[str, Any], seed: int, sae_sha256: str
) -> str:
    """METHOD-xxxxxxxx: the method and eight hex digits of what makes a run the same run."""
    identity = {"method": method, "config": config, "spec": spec, "seed": seed, "sae": sae_sha256}
    return f"{method}-{digest(identity)[:8]}"


def digest(value: object) -> str:
    """sha256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Writer:
    """Appends lines to one record and brings each to the disk.

    The file begins with the texts `lines`, which are there as a whole or not at all: a header, or
    all that a run that goes on had written. Raises `Unavailable` where there is no room.
    """

    def __init__(self, path: Path, lines: Iterable[str] = ()) -> None:
        self.lines = list(lines)
        """Every line so far, as text."""
        self._path = path
        new_file(path, lambda temporary: temporary.write_bytes(self._bytes()))
        self._file = path.open("ab", buffering=0)

    def write(self, line: dict[str, Any]) -> None:
        """One JSON line; where there is no room for it nothing of it stays."""
        text = encoded(line)
        end = self._file.seek(0, os.SEEK_END)
        with os_errors(self._path):
            try:
                left = f"{text}\n".encode()
                while left:
                    left = left[self._file.write(left) :]
                os.fsync(self._file)
            except OSError:
                self._file.truncate(end)
                raise
        self.lines.append(text)

    def end(self, status: dict[str, Any]) -> None:
        """The end line, with the hash of all before it; no line can follow."""
        try:
            self.write({**status, "sha256": hashlib.sha256(self._bytes()).hexdigest()})
        finally:
            self.close()

    def close(self) -> None:
        """No line can follow."""
        self._file.close()

    def _bytes(self) -> bytes:
        return "".join(line + "\n" for line in self.lines).encode()


class Unwritten:
    """The writer of a process that writes nothing."""

    lines: Sequence[str] = ()

    def write(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def end(self, status: dict[str, Any]) -> None:
        """Nothing."""


def encoded(line: dict[str, Any]) -> str:
    """A dict as one JSON line; a number that is not finite is null, and `nonfinite` says so."""
    finite = {name: _finite_or_null(value) for name, value in line.items()}
    lost = {name: str(line[name]) for name in line if finite[name] != line[name]}
    return json.dumps(finite | ({"nonfinite": lost} if lost else {}), allow_nan=False)


def close_cut(path: Path, end: dict[str, Any]) -> None:
    """Write the end line of a record whose process cannot any more; a torn last line goes.

    A record that cannot be read, or has no room for it, stays as it is.
    """
    with suppress(OSError, ValueError, Unavailable):
        whole = [text for text in path.read_text(encoding="utf-8").split("\n")[:-1] if text]
        if whole and not json.loads(whole[-1]).get("end"):
            Writer(path, whole).end(end)


def _finite_or_null(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite_or_null(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite_or_null(item) for key, item in value.items()}
    return value


def read(path: Path | str) -> Run:
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


def read_folder(folder: Path | str, names: Collection[str] | None = None) -> list[Run]:
    """The records that lie directly in `folder` (those of these names), as they were started;
    without one that another process has just set aside."""
    runs = []
    for path in sorted(Path(folder).glob("*.jsonl")):
        if names is None or path.stem in names:
            try:
                runs.append(read(path))
            except Rejected:
                if path.exists():
                    raise
    return sorted(runs, key=lambda run: (run.header.get("started", ""), run.name))


def _check(run: Run) -> None:
    schema = run.header.get("schema")
    if schema != SCHEMA:
        raise Rejected(f"{run.path}:1: schema {schema}, this version reads schema {SCHEMA}")
    for number, values in enumerate([run.header, *run.rows], start=1):
        line = Row if number > 1 else Header
        for field in required(line):
            if field not in values:
                raise Rejected(f"{run.path}:{number}: {line.__name__.lower()} has no '{field}'")
    if run.end and run.end["end"] not in ENDS:
        raise Rejected(f"{run.path}: end '{run.end['end']}', expected one of {', '.join(ENDS)}")
