"""The records of one scale's experiments: which job is done, and by which record."""

from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path

from bench.config.spec import Spec, as_recorded
from bench.errors import Rejected
from bench.experiments.plans import Job
from bench.io import locks
from bench.io.record import Run, digest, read
from bench.loading.saes import checkpoint_name

ADAPTER = "peft"
"""In a run's folder: its adapter as PEFT has it, where another run goes on from it."""


class Pool:
    """The finished runs in `folder`, as of the last `read`: other processes write there, too."""

    def __init__(self, folder: Path, scale: str) -> None:
        self.folder, self.scale = folder, scale
        self.read()

    def read(self) -> None:
        """Look at what the folder holds now. Raises `Rejected` for a damaged record."""
        finished = [run for run in _records(self.folder) if run.status == "finished"]
        self.runs = {run.name: run for run in finished}
        """Name -> record, of every finished run."""
        self._names = {identity_of(run): run.name for run in finished}
        self._measured = {path.stem for path in self.folder.glob("*.json")}

    def locked(self, job: Job) -> AbstractContextManager[None]:
        """The lock of a job; raises `Locked` where another process holds it."""
        return locks.held(self.folder, f"{job.key[:16]}-job", job.in_short)

    def cut(self, label: str, spec: Spec, seed: int) -> list[Path]:
        """The paths of the records of this run that have no end."""
        return [run.path for run in self._of(label, spec, seed) if run.status == "cut off"]

    def left_by(self, job: Job) -> list[Path]:
        """The paths of whatever this job has left, however it ended."""
        if job.measure:
            name = self.find(job)
            return [self.folder / f"{name}.json"] if name else []
        resolved = self.resolve(job)
        return [run.path for run in self._of(*resolved, job.seed_of_run)] if resolved else []

    def _of(self, label: str, spec: Spec, seed: int) -> list[Run]:
        wanted = digest([label, asdict(spec), seed])
        return [run for run in _records(self.folder) if wanted == identity_of(run)]

    def find(self, job: Job) -> str | None:
        """The name of the record or measurement that this job left."""
        if job.measure:
            name = self.measure_name(job)
            return name if name in self._measured else None
        resolved = self.resolve(job)
        if resolved is None:
            return None
        label, spec = resolved
        return self._names.get(digest([label, asdict(spec), job.seed_of_run]))

    def resolve(self, job: Job) -> tuple[str, Spec] | None:
        """(label, spec) with what an earlier run trained filled in; None before it has run.

        After a run that trained an SAE that SAE takes the place of the spec's; after one of lora
        its adapter is what `lora` starts from and what stays in the model for others.
        """
        if not job.after:
            return job.label, job.spec
        first = self.find(job.after)
        if not first:
            return None
        folder = self.folder / first
        if job.after.method == "lora":
            field = "init" if job.method == "lora" else "adapter"
            return f"{job.label}:{field}={(folder / ADAPTER).as_posix()}", job.spec
        sae = (folder / checkpoint_name(1.0, 0, 1)).as_posix()
        return job.label, replace(job.spec, sae=sae, sae_share=1.0)

    def measure_name(self, job: Job) -> str | None:
        """The stem of a measurement's file: the measure and the digits of the run; None before
        that has run."""
        first = self.find(job.after)
        return first and f"{job.measure}-{first.rpartition('-')[2]}"


def identity_of(run: Run) -> str:
    """What makes it the same run as another: its label, spec and seed."""
    return digest([run.header.get("label"), as_recorded(run.header), run.header["seed"]])


def _records(folder: Path) -> list[Run]:
    """The records in a folder, as they were started; without one that another process has just
    set aside."""
    records = []
    for path in sorted(folder.glob("*.jsonl")):
        try:
            records.append(read(path))
        except Rejected:
            if path.exists():
                raise
    return sorted(records, key=lambda run: (run.header.get("started", ""), run.name))
