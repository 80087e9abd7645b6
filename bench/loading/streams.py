"""Texts that are streamed from the network: their beginning, kept as a .jsonl file in the cache."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import Unavailable, reason
from bench.io import cache
from bench.io.console import bar, say
from bench.io.files import new_file
from bench.loading import hub

CHARACTERS = 4
"""A token has about so many."""


@dataclass(frozen=True)
class Stream:
    """Where a text is, in the words of `datasets.load_dataset`."""

    repository: str
    """The hub's repository of the dataset; its page has the licence."""
    path: str
    content: str
    """The field that holds a document."""
    settings: dict = field(default_factory=dict)


PILE, REDPAJAMA = "monology/pile-uncopyrighted", "togethercomputer/RedPajama-Data-V2"
SAMPLE = f"hf://datasets/{REDPAJAMA}/sample/documents/2023-06"
# Loading by name would run a script that comes with the dataset; its files need none. These are
# the English head and middle of two of the ten shards in its repository's own sample.
FILES = [f"{SAMPLE}/{n}/en_{part}.json.gz" for n in ("0000", "0001") for part in ("head", "middle")]
STREAMS = {
    "pile-uncopyrighted": Stream(PILE, PILE, "text"),
    "redpajama-v2": Stream(REDPAJAMA, "json", "raw_content", {"data_files": FILES}),
}


def check_source(name: str, tokens: int) -> None:
    """Raise `Unavailable` where the text is neither in the cache nor in reach."""
    if not path_of(name, tokens).exists():
        hub.reach(STREAMS[name].repository, kind="dataset")


def file(name: str, tokens: int) -> Path:
    """The .jsonl file with the first documents of a stream, about `tokens` long together."""
    path = path_of(name, tokens)
    if not path.exists():
        say(f"streaming {tokens:,} tokens of {name} (once; then they are cached)")
        new_file(path, lambda temporary: _write(STREAMS[name], tokens, temporary))
    return path


def path_of(name: str, tokens: int) -> Path:
    """Where the beginning of a stream is kept."""
    return cache.root() / "streams" / f"{name}-{tokens}.jsonl"


def _write(stream: Stream, tokens: int, path: Path) -> None:
    wanted, n = CHARACTERS * tokens, 0
    with path.open("w", encoding="utf-8") as out, bar(total=wanted, unit="char") as shown:
        for text in _texts(stream):
            out.write(json.dumps({"text": text}) + "\n")
            shown.update(len(text))
            n += len(text)
            if n >= wanted:
                return
    say(f"{stream.repository} ended after {n:,} characters, {wanted:,} were asked for")


def _texts(stream: Stream) -> Iterator[str]:
    """The documents as they come; what goes wrong on the way is `Unavailable`."""
    from datasets import load_dataset

    try:
        for row in load_dataset(stream.path, split="train", streaming=True, **stream.settings):
            yield row[stream.content]
    except Exception as error:  # whatever the network or the dataset's format raises
        raise Unavailable(f"cannot stream {stream.repository} ({reason(error)})") from None
