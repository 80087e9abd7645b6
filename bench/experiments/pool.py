"""The records of one scale's experiments: which job is done, and by which record."""

import dataclasses
from dataclasses import asdict

from bench.config.spec import as_recorded
from bench.io.record import digest, read, read_folder
from bench.loading.saes import checkpoint_name

ADAPTER = "peft"
"""In a run's folder: its adapter as PEFT has it, where another run goes on from it."""


class Pool:
    """The records in `folder`, of runs that are finished."""

    def __init__(self, folder, scale):
        self.folder, self.scale = folder, scale
        self.runs = {}
        """Name -> record, of every finished run."""
        self._names = {}
        self._measured = set()
        if folder.is_dir():
            for run in read_folder(folder):
                if run.status == "finished":
                    self._take(run)
            self._measured = {path.stem for path in folder.glob("*.json")}

    def add(self, path):
        """Take in a record that was just written -> the record."""
        return self._take(read(path))

    def add_measured(self, name):
        """A measurement of this name has been written."""
        self._measured.add(name)

    def _take(self, run):
        self.runs[run.name] = run
        self._names[identity_of(run.header)] = run.name
        return run

    def cut(self, label, spec, seed):
        """The paths of the records of this run that have no end."""
        return [run.path for run in self._records(label, spec, seed) if run.status == "cut off"]

    def left_by(self, job):
        """The paths of whatever this job has left, however it ended."""
        if job.measure:
            name = self.find(job)
            return [self.folder / f"{name}.json"] if name else []
        resolved = self.resolve(job)
        runs = self._records(*resolved, run_seed(job)) if resolved else []
        return [run.path for run in runs]

    def _records(self, label, spec, seed):
        wanted = identity(label, asdict(spec), seed)
        runs = read_folder(self.folder) if self.folder.is_dir() else []
        return [run for run in runs if wanted == identity_of(run.header)]

    def find(self, job):
        """The name of the record or measurement that this job left, or None."""
        if job.measure:
            name = self.measure_name(job)
            return name if name in self._measured else None
        resolved = self.resolve(job)
        if resolved is None:
            return None
        label, spec = resolved
        return self._names.get(identity(label, asdict(spec), run_seed(job)))

    def resolve(self, job):
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
        if job.after.label.startswith("lora"):
            field = "init" if job.label.startswith("lora") else "adapter"
            return f"{job.label}:{field}={(folder / ADAPTER).as_posix()}", job.spec
        sae = (folder / checkpoint_name(1.0, 0, 1)).as_posix()
        return job.label, dataclasses.replace(job.spec, sae=sae, sae_share=1.0)

    def measure_name(self, job):
        """The stem of a measurement's file: the measure and the digits of the run; None before
        that has run."""
        first = self.find(job.after)
        return first and f"{job.measure}-{first.rpartition('-')[2]}"

    def key(self, job):
        """What makes two jobs the same, whether they have run or not."""
        after = self.key(job.after) if job.after else None
        return identity(job.label, asdict(job.spec), run_seed(job), after, job.measure)


def own_sae(job):
    """What makes two jobs share an own SAE, which the first of them trains; None without one."""
    if job.spec.sae != "own" and not job.trains_own:
        return None
    fields = asdict(job.spec) | {"sae": "own", "sae_share": 1.0, "cache_clean": False}
    return identity({name: fields[name] for name in fields.keys() - {"name", "steps"}})


def run_seed(job):
    """The seed of a job's run."""
    return job.seed if job.run_seed is None else job.run_seed


def identity_of(header):
    """`identity` of the run with this header."""
    return identity(header.get("label"), as_recorded(header), header["seed"])


def identity(*parts):
    """One string for what makes a run the same run."""
    return digest(parts)
