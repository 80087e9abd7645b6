"""Files and folders on disk that are old or new, never half, whatever happens to the process.

Written under another name beside the target, brought to the disk (`fsync`), then renamed.
"""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from tempfile import mkdtemp

from bench.errors import Fault, Unavailable, disk_full


@contextmanager
def new_folder(path, replace_empty=False, replace=False):
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


def _become(path, temporary, may_be_there):
    """Rename a folder, onto an empty one at most; one that has just been made there may stay."""
    try:
        temporary.rename(path)
    except OSError:
        if may_be_there and path.is_dir():
            return
        raise
    path.chmod(0o755)
    synchronize(path.parent)


def new_file(path, write):
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


def new_text(path, text):
    """A text file that is whole or not there."""
    new_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def new_json(path, value):
    """A JSON file that is whole or not there."""
    new_text(path, json.dumps(value, indent=1) + "\n")


def synchronize(path):
    """Bring a file, or a folder's list of files, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def os_errors(path, only_full=False):
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
        said = getattr(error, "strerror", None) or error
        raise Unavailable(f"cannot write {path}: {said}{_room(path)}") from None


def _room(path):
    """How much is free where `path` lies, as the end of a message."""
    try:
        folder = next(place for place in path.absolute().parents if place.is_dir())
        return f" ({shutil.disk_usage(folder).free:,} bytes free)"
    except (OSError, StopIteration):
        return ""


def set_aside(path):
    """Rename a record and its folder out of the way; nothing is deleted."""
    there = [place for place in (path, path.with_suffix("")) if place.exists()]
    number = 1
    while any(_numbered(place, number).exists() for place in (path, path.with_suffix(""))):
        number += 1
    for place in there:
        place.rename(_numbered(place, number))


def _numbered(place, number):
    return place.with_name(f"{place.name}.{number}")
