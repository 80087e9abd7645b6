"""The cache on disk: converted models, tokens, trained SAEs. Everything in it can be made again."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from bench.errors import Unavailable


def root():
    """$SPLICEBENCH_CACHE, else ~/.cache/splicebench."""
    return Path(os.environ.get("SPLICEBENCH_CACHE") or Path.home() / ".cache" / "splicebench")


@contextmanager
def new_folder(path, replace_empty=False):
    """A temporary folder that becomes `path` when the block ends well, and is gone otherwise.

    So a folder in the cache is whole or not there. Where another process was first, its
    folder stays.
    """
    with os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        with os_errors(path):
            if replace_empty or not path.exists():
                temporary.rename(path)  # onto an empty folder at most
                path.chmod(0o755)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def new_file(path, write):
    """`write(temporary path)`, then rename to `path`: the file is whole or not there."""
    with os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{os.getpid()}")
        try:
            write(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def os_errors(path):
    """Turns an OSError of a write into the one line of an `Unavailable`."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror or error}") from None


def json_file(path, make):
    """The JSON value at `path`; made and kept when it is not there yet."""
    if not path.exists():
        text = json.dumps(make())
        new_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return json.loads(path.read_text(encoding="utf-8"))
