"""Texts that are streamed from the network: their beginning, kept as a .jsonl file in the cache."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import Unavailable, reason
from bench.io.console import bar, say
from bench.io.files import cache_root, new_file
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


SAMPLE = "hf://datasets/togethercomputer/RedPajama-Data-V2/sample/documents/2023-06"
STREAMS = {
    "pile-uncopyrighted": Stream(
        "monology/pile-uncopyrighted", "monology/pile-uncopyrighted", "text"
    ),
    # Loading by name would run a script that comes with the dataset; its files need none. These
    # are the English head and middle of two of the ten shards in its repository's own sample.
    "redpajama-v2": Stream(
        "togethercomputer/RedPajama-Data-V2",
        "json",
        "raw_content",
        {
            "data_files": [
                f"{SAMPLE}/{shard}/en_{part}.json.gz"
                for shard in ("0000", "0001")
                for part in ("head", "middle")
            ]
        },
    ),
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
    return cache_root() / "streams" / f"{name}-{tokens}.jsonl"


def _write(stream: Stream, tokens: int, path: Path) -> None:
    asked = left = CHARACTERS * tokens
    with path.open("w", encoding="utf-8") as out, bar(total=asked, unit="char") as shown:
        for text in _texts(stream):
            out.write(json.dumps({"text": text}) + "\n")
            shown.update(len(text))
            left -= len(text)
            if left <= 0:
                return
    say(f"{stream.repository} ended after {asked - left:,} characters, {asked:,} were asked for")


def _texts(stream: Stream) -> Iterator[str]:
    """The documents as they come; what goes wrong on the way is `Unavailable`."""
    from datasets import load_dataset

    try:
        for row in load_dataset(stream.path, split="train", streaming=True, **stream.settings):
            yield row[stream.content]
    except Exception as error:  # whatever the network or the dataset's format raises
        raise Unavailable(f"cannot stream {stream.repository} ({reason(error)})") from None
