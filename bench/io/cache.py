"""The cache on disk: converted models, tokens, trained SAEs. Everything in it can be made again."""

import json
import os
from pathlib import Path

from bench.io.files import new_text


def root():
    """$SPLICEBENCH_CACHE, else ~/.cache/splicebench."""
    given = os.environ.get("SPLICEBENCH_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "splicebench"


def json_file(path, make, there):
    """The JSON value at `path`; made and kept when it is not `there` yet."""
    if not there:
        text = json.dumps(make())
        new_text(path, text)
    return json.loads(path.read_text(encoding="utf-8"))
