"""The records of one scale's experiments: which job is done, and by which record."""

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from bench.config.method import MethodRequest
from bench.config.spec import OF_OWN, Spec
from bench.experiments.job import Job
from bench.io import locks
from bench.io.record import Run, read_folder
from bench.loading.saes import checkpoint_name
from bench.runs.done import identity_of, wanted_identity

ADAPTER = "peft"
"""In a run's folder: its adapter as PEFT has it, where another run goes on from it."""


class Pool:
    """The finished runs in `folder`, as of the last `read`: other processes write there, too."""

    def __init__(self, folder: Path, scale: str) -> None:
        self.folder, self.scale = folder, scale
        self.read()

    def read(self) -> None:
        """Read the folder again. Raises `Rejected` for a damaged record."""
        finished = [run for run in read_folder(self.folder) if run.status == "finished"]
        self.runs = {run.name: run for run in finished}
        """Name -> record, of every finished run."""
        self._names = {identity_of(run): run.name for run in finished}
        self._measured = {path.stem for path in self.folder.glob("*.json")}

    def locked(self, job: Job) -> AbstractContextManager[None]:
        """The lock of a job; raises `Locked` where another process holds it."""
        return locks.held(self.folder, f"{job.key[:16]}-job", job.in_short)

    def cut(self, asked: MethodRequest, spec: Spec, seed: int) -> list[Path]:
        """The paths of the records of this run that have no end."""
        return [run.path for run in self._of(asked, spec, seed) if run.status == "cut off"]

    def left_by(self, job: Job) -> list[Path]:
        """The paths of the files that this job has left, however it ended."""
        if job.measure:
            name = self.find(job)
            return [self.folder / f"{name}.json"] if name else []
        resolved = self.resolve(job)
        return [run.path for run in self._of(*resolved, job.seed_of_run)] if resolved else []

    def _of(self, asked: MethodRequest, spec: Spec, seed: int) -> list[Run]:
        identity = wanted_identity(asked, spec, seed)
        return [run for run in read_folder(self.folder) if identity == identity_of(run)]

    def find(self, job: Job) -> str | None:
        """The name of the record or measurement that this job left."""
        if job.measure:
            name = self.measure_name(job)
            return name if name in self._measured else None
        resolved = self.resolve(job)
        if resolved is None:
            return None
        return self._names.get(wanted_identity(*resolved, job.seed_of_run))

    def resolve(self, job: Job) -> tuple[MethodRequest, Spec] | None:
        """(method, spec) with the weights of an earlier run filled in; None before that has run.

        An SAE that the earlier run trained takes the place of the spec's. From an adapter of
        `lora` another `lora` starts; other methods leave it in the model.
        """
        if not job.after:
            return job.method, job.spec
        first = self.find(job.after)
        if not first:
            return None
        folder = self.folder / first
        if job.after.method.name == "lora":
            field = "init" if job.method.name == "lora" else "adapter"
            return job.method.with_setting(field, (folder / ADAPTER).as_posix()), job.spec
        sae = (folder / checkpoint_name(1.0, 0, 1)).as_posix()
        return job.method, replace(job.spec, sae=sae, **OF_OWN)

    def measure_name(self, job: Job) -> str | None:
        """The stem of a measurement's file: measure and digits of the run; None without the run."""
        first = self.find(job.after) if job.after else None
        return f"{job.measure}-{first.rpartition('-')[2]}" if first else None
