"""Files and folders on disk that are old or new, never half, whatever happens to the process.

Written under another name beside the target, brought to the disk (`fsync`), then renamed. The
cache is here too: converted models, tokens, trained SAEs, hashes. All of it can be made again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from secrets import token_hex
from tempfile import mkdtemp
from typing import Any

from bench.errors import Fault, Unavailable, disk_full

LARGE = 1_000_000
"""Bytes from which on a file's hash is worth remembering."""


@contextmanager
def new_folder(path: Path, replace_empty: bool = False, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and is gone otherwise.

    Where another process was first, its folder stays; with `replace` the old one goes.
    """
    with os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        with os_errors(path, only_full=True):
            yield temporary
        with os_errors(path):
            for file in temporary.rglob("*"):
                synchronize(file)
            synchronize(temporary)
            if replace and path.exists():
                path.rename(temporary.with_name(f"{temporary.name}-old"))
            if replace_empty or not path.exists():
                _become(path, temporary, not replace_empty)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(temporary.with_name(f"{temporary.name}-old"), ignore_errors=True)


def _become(path: Path, temporary: Path, may_be_there: bool) -> None:
    """Rename a folder, onto an empty one at most; one that has just been made there may stay."""
    try:
        temporary.rename(path)
    except OSError:
        if may_be_there and path.is_dir():
            return
        raise
    path.chmod(0o755)
    synchronize(path.parent)


def new_file(path: Path, write: Callable[[Path], object]) -> None:
    """`write(temporary path)`, then rename to `path`: the file is whole or not there."""
    with os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{os.getpid()}-{token_hex(3)}")
        try:
            write(temporary)
            synchronize(temporary)
            temporary.replace(path)
            synchronize(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def new_text(path: Path, text: str) -> None:
    """A text file that is whole or not there."""
    new_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def new_json(path: Path, value: object) -> None:
    """A JSON file that is whole or not there."""
    new_text(path, json.dumps(value, indent=1) + "\n")


def synchronize(path: Path) -> None:
    """Bring a file, or a folder's list of files, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def os_errors(path: Path, only_full: bool = False) -> Iterator[None]:
    """Turns the error of a write, or of a full disk alone, into the one line of an `Unavailable`.

    Libraries report a full disk in exceptions of their own.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, Fault) or not (
            disk_full(error) or (isinstance(error, OSError) and not only_full)
        ):
            raise
        why = getattr(error, "strerror", None) or error
        raise Unavailable(f"cannot write {path}: {why}{_room(path)}") from None


def _room(path: Path) -> str:
    """How much is free where `path` lies, as the end of a message."""
    try:
        folder = next(place for place in path.absolute().parents if place.is_dir())
        return f" ({shutil.disk_usage(folder).free:,} bytes free)"
    except (OSError, StopIteration):
        return ""


def set_aside(path: Path) -> None:
    """Rename a record and its folder out of the way; nothing is deleted."""
    places = (path, path.with_suffix(""))
    number = next(n for n in count(1) if not any(_numbered(p, n).exists() for p in places))
    for place in filter(Path.exists, places):
        place.rename(_numbered(place, number))


def _numbered(place: Path, number: int) -> Path:
    return place.with_name(f"{place.name}.{number}")


def cache_root() -> Path:
    """$SPLICEBENCH_CACHE, else ~/.cache/splicebench."""
    folder = os.environ.get("SPLICEBENCH_CACHE")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "splicebench"


def cached_json(path: Path, make: Callable[[], object], is_there: bool) -> Any:
    """The JSON value at `path`; made and kept when it is not there yet."""
    if not is_there:
        new_text(path, json.dumps(make()))
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_of_file(path: Path) -> str:
    """sha256 of a file's bytes, as hex digits; the cache has it while size and times stay."""
    path = path.resolve()
    stat = path.stat()
    if stat.st_size < LARGE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    now = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    name = hashlib.sha256(str(path).encode()).hexdigest()[:24]
    memo = cache_root() / "hashes" / f"{name}.json"
    try:
        known = json.loads(memo.read_text(encoding="utf-8"))
        if known["of"] == now:
            return known["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not readable: hashed anew
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    new_text(memo, json.dumps({"path": str(path), "of": now, "sha256": sha256}))
    return sha256
