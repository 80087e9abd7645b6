"""sha256 of files, remembered in the cache for as long as size and time of change stay."""

import hashlib
import json

from bench.io import cache
from bench.io.files import new_text

LARGE = 1_000_000
"""Bytes from which on a hash is worth remembering."""


def of_file(path):
    """sha256 of a file's bytes, as hex digits."""
    path = path.resolve()
    if path.stat().st_size < LARGE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    stat = path.stat()
    now = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    name = hashlib.sha256(str(path).encode()).hexdigest()[:24]
    memo = cache.root() / "hashes" / f"{name}.json"
    try:
        known = json.loads(memo.read_text(encoding="utf-8"))
        if known["of"] == now:
            return known["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not readable: hashed anew
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    text = json.dumps({"path": str(path), "of": now, "sha256": found})
    new_text(memo, text)
    return found
