"""What a run is resumed from: its record, its checkpoint, and whether they are still its own."""

import json
from pathlib import Path
from typing import Any

from bench.errors import Rejected
from bench.harness import checkpoint
from bench.io.clock import timestamp
from bench.io.console import say
from bench.io.files import set_aside
from bench.io.record import read

OF_THE_MACHINE = ["machine", "device", "threads", "matmul", "world_size"]
OF_THE_MACHINE += ["sharded", "versions", "code"]
"""Fields of the header that the last digits of a run depend on, besides what it is."""


def resumed_from(
    path: Path, header: dict[str, Any]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]], dict[str, Any]]:
    """(checkpoint or None, segments, fields of the end line) for a run with its record at `path`.

    A segment is one process that worked on the run. Where there is no checkpoint the run begins
    again; an unreadable record is set aside.
    """
    now = {field: header.get(field) for field in (*OF_THE_MACHINE, "load")}
    folder = path.with_suffix("")
    if not path.exists() and folder.exists():  # somebody took the record away
        set_aside(path)
    _set_damaged_aside(path, folder)
    state = checkpoint.latest(folder, path.stem) if path.exists() else None
    if state is None:
        return None, [{**now, "step": 0, "started": timestamp()}], {}
    before = json.loads(state["lines"][0])
    checkpoint.check_unchanged(before, header, path)
    say(f"{path.stem} goes on from step {state['step']:,}")
    segments = [*state["segments"], {**now, "step": state["step"], "started": timestamp()}]
    return state, segments, _end_fields(segments, header["spec"].get("cache_clean"))


def _set_damaged_aside(path: Path, folder: Path) -> None:
    """Set a record aside that cannot be read and has no checkpoint."""
    try:
        if path.exists():
            read(path)
    except Rejected as error:
        if not checkpoint.found(folder):
            say(f"{error}; it is set aside")
            set_aside(path)


def _end_fields(segments: list[dict[str, Any]], cached: bool) -> dict[str, Any]:
    """The end line's fields on a run of several segments.

    A step that is run again finds in the cache of the clean side what it had made the first time.
    """
    first, *later = segments
    differ = [f for f in OF_THE_MACHINE if any(each[f] != first[f] for each in later)]
    steps = [{"step": s["step"], "started": s["started"], "load": s["load"]} for s in later]
    fields = {"segments": len(segments), "timing": "resumed", "resumed": steps}
    why = [f"another {', '.join(differ)} in between"] if differ else []
    why += ["steps that were run twice found the clean side in the cache"] if cached else []
    return fields | ({"deterministic": False, "why": "; ".join(why)} if why else {})
