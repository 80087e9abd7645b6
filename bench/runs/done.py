"""Which runs are there already; nothing here imports torch."""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.config.method import MethodRequest
from bench.config.method_files import source
from bench.config.request import Request
from bench.config.spec import MADE_HERE, Spec, as_recorded
from bench.errors import Fault, Rejected
from bench.harness import checkpoint
from bench.harness.checkpoint import check_unchanged
from bench.io.record import Run, digest, read, read_folder
from bench.loading import documents, hub, models, packages, sae_sources, saes
from bench.runs import tuned

ENDED = ("finished", "diverged")
"""Ends that are results: such a run is not run again unless `--fresh` asks for it."""


def status(path: Path, header: dict[str, Any]) -> str | None:
    """How the run at `path` ended, where that is a result; None where there is more to do.

    `header` is the one that the run would have now; `Usage` where what it was made of has
    changed since, for a run that is done or has left a checkpoint.
    """
    try:
        run = read(path)
    except Rejected:  # there is none, or what can be made of it is seen when it is run
        return None
    folder = path.with_suffix("")
    if run.status in ENDED or checkpoint.found(folder):
        check_unchanged(run.header, header, path)
    if run.status == "finished":
        checkpoint.clear(folder)  # of a process that was killed after its last line
    return run.status if run.status in ENDED else None


def all_of(request: Request, wanted: list[tuple[MethodRequest, int]]) -> list[Run] | None:
    """The records of all `wanted` (method, seed) pairs, or None where one is missing or not sure.

    Quick: nothing is loaded. Raises `Usage` where what one of them was made of has changed.
    """
    try:
        runs_there = [run for run in read_folder(request.out) if "sets" in run.header]
    except Rejected:
        return None
    there, runs = {identity_of(run): run for run in runs_there}, []
    for asked, seed in wanted:
        run = there.get(wanted_identity(asked, request.spec, seed))
        if run is None or not _sure(run, request.spec):
            return None
        if status(run.path, now(request.spec, asked.name)) is None:
            return None
        if request.tuned:
            tuned.check_model(request.tuned, request.spec, run.header["model"]["sha256"])
        runs.append(run)
    return runs


def identity_of(run: Run) -> str:
    """The digest that two records of the same run share: of its label, settings, spec and seed."""
    header = run.header
    sets = header.get("sets", [])
    return digest([header.get("label"), sets, as_recorded(header), header["seed"]])


def wanted_identity(asked: MethodRequest, spec: Spec, seed: int) -> str:
    """The `identity_of` the record that the run of a method on a spec leaves."""
    return digest([asked.label, [*asked.sets], asdict(asked.spec_of(spec)), seed])


def _sure(run: Run, spec: Spec) -> bool:
    """Whether a run is known to be the one that is wanted, without anything being loaded."""
    header = run.header
    if any(value for field, value in header["config"].items() if field.endswith("_sha256")):
        return False  # it starts from an adapter, which may have changed
    if packages.is_file(spec.model):
        return False
    if spec.sae == "own":
        training = run.path.with_name(f"{header['sae'].get('run')}.jsonl")
        return training.exists() and read(training).header.get("source") == source("mse")
    if spec.sae in MADE_HERE or any(map(sae_sources.from_hub, spec.saes)):
        return True
    folders = [Path(sae).expanduser() for sae in spec.saes]
    if any(map(sae_sources.is_sparsify, folders)):
        return False
    try:
        return saes.sha256_of(folders) == header["sae"]["sha256"]
    except Fault:
        return False


def now(spec: Spec, name: str) -> dict[str, Any]:
    """The fields of a header that can be told without loading; None where one cannot."""
    return {
        "method": name,
        "source": source(name),
        "versions": {"torch": version("torch")},
        "model": {"sha256": _model(spec.model)},
        "text_sha256": documents.source_sha256(spec),
    }


def _model(model: str) -> str | None:
    """The model's hash, where it is a folder of the user's: packages and the hub's do not move."""
    folder = Path(model).expanduser()
    if model.startswith("package:") or hub.is_id(model) or not folder.is_dir():
        return None
    return models.fingerprint(folder)
