"""What a finished run left: its record and its SAEs; what is missing is refused."""

from pathlib import Path
from typing import Any

from bench.config.spec import sources
from bench.errors import Usage
from bench.io.files import cache_root
from bench.io.record import Run, read
from bench.loading import sae_sources, saes


def finished(run: str | Path) -> Run:
    """`RUN.jsonl`, or the folder RUN beside it -> the record as read; `Usage` unless finished."""
    path = Path(run).expanduser()
    if not path.is_file():
        path = path.with_name(f"{path.name}.jsonl")
    if not path.is_file():
        raise Usage(f"no run at '{run}': expected a record such as runs/lora-xxxxxxxx.jsonl")
    record = read(path)
    if record.status != "finished":
        raise Usage(f"{path}: the run ended as '{record.status}', expected a finished one")
    return record


def end_of(run: Run) -> dict[str, Any]:
    """The last line of a finished run's record."""
    assert run.end is not None  # a record that was cut off has none
    return run.end


def trained_saes(run: Run) -> list[Path]:
    """The folders of the SAEs that a run trained, or []."""
    return saes.checkpoint(run.path.with_suffix(""), 1.0)


def lent_saes(run: Run) -> list[Path]:
    """The folders of a run's frozen SAEs, or [] where one is on the hub or not as it was."""
    sae, n_sites = run.header["sae"], len(run.header["spec"]["site"].split("+"))
    origins = sources(sae["source"], n_sites)
    if any(map(sae_sources.from_hub, origins)):
        return []
    cached = sae.get("cached") or []
    cached = [cached] if isinstance(cached, str) else cached  # in older records
    if cached and all(cached):
        places = [cache_root() / path for path in cached]
    else:
        places = [Path(source) for source in origins]
    there = all((place / saes.WEIGHTS).is_file() for place in places)
    return places if there and saes.sha256_of(places) == sae["sha256"] else []
