"""Which runs are there already; nothing here imports torch."""

from dataclasses import asdict

from bench import checkpoint, hub, sae_sources, saes, sparsify
from bench.errors import Fault, Rejected
from bench.record import digest, read, read_folder
from bench.spec import MADE_HERE, Spec
from bench.unchanged import check_unchanged, now

ENDED = ("finished", "diverged")
"""Ends that are results: such a run is not run again unless `--fresh` asks for it."""


def status(path, header):
    """How the run at `path` ended, where that is a result; None where there is more to do.

    `header` is the one that the run would have now; `Usage` where what it was made of has
    changed since, for a run that is done or has left a checkpoint.
    """
    try:
        run = read(path) if path.exists() else None
    except Rejected:
        return None  # what can be made of it is seen when it is run
    if run is None:
        return None
    folder = path.with_suffix("")
    if run.status in ENDED or checkpoint.found(folder):
        check_unchanged(run.header, header, path)
    if run.status == "finished":
        checkpoint.clear(folder)  # of a process that was killed after its last line
    return run.status if run.status in ENDED else None


def is_finished(path):
    """Whether a finished record lies at `path`."""
    try:
        return path.exists() and read(path).status == "finished"
    except Rejected:
        return False


def all_of(order, wanted):
    """The records of all `wanted` (label, seed) pairs, or None where one is missing or not sure.

    Quick: nothing is loaded. Raises `Usage` where what one of them was made of has changed.
    """
    try:
        there = {_key(run.header): run for run in read_folder(order.out) if "sets" in run.header}
    except Rejected:
        return None
    found = []
    for label, seed in wanted:
        name = label.partition(":")[0]
        sets = relevant(order.sets, name)
        run = there.get(digest([label, sets, asdict(order.spec), seed]))
        if run is None or not _sure(run.header, order.spec):
            return None
        if status(run.path, now(order.spec, name)) is None:
            return None
        found.append(run)
    return found


def relevant(sets, name):
    """Those of the `--set` items that are of the method of this name."""
    return [item for item in sets if item.startswith(f"{name}.")]


def _key(header):
    spec = {**asdict(Spec()), **header["spec"]}
    return digest([header.get("label"), header["sets"], spec, header["seed"]])


def _sure(header, spec):
    """Whether nothing but loading could tell that the run would be another one now."""
    if any(value for field, value in header["config"].items() if field.endswith("_sha256")):
        return False  # it starts from an adapter, which may have changed
    if spec.sae in MADE_HERE or any(map(sae_sources.from_hub, spec.saes)):
        return True
    folders = [sae_sources.locate(sae) for sae in spec.saes if not hub.is_id(sae)]
    if any(map(sparsify.is_folder, folders)):
        return False
    try:
        return saes.sha256_of(folders) == header["sae"]["sha256"]
    except Fault:
        return False
