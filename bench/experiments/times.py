"""How long the remaining jobs will take: as their like took here, else as estimated."""

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from bench.experiments.job import Job
from bench.io.console import in_words
from bench.io.record import Run

PREPARATION = 60.0
"""Seconds that a run takes about besides its steps and the evaluations between them."""


class Times:
    """How long jobs of experiments take; `estimated` is steps -> rough seconds of a run."""

    def __init__(self, estimated: dict[int, float]) -> None:
        self._took: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        self._estimated = estimated

    def add(self, job: Job, seconds: float) -> None:
        """Remember how long a job took."""
        self._took[_kind(job)].append(seconds)

    def add_run(self, run: Run) -> None:
        """Remember a run by its record, which does not say how long its preparation took."""
        last = run.rows[-1]
        seconds = last["seconds"] + last.get("evaluation_seconds", 0.0) + PREPARATION
        self._took[run.label, run.header["spec"]["steps"]].append(seconds)

    def of(self, jobs: Iterable[Job]) -> str:
        """How long these jobs will take one after the other, in words."""
        return in_words(sum(map(self.expected, jobs)))

    def expected(self, job: Job) -> float:
        """How many seconds a job will take."""
        took = self._took[_kind(job)]
        return fmean(took) if took else self._estimated[job.method.spec_of(job.spec).steps]


def _kind(job: Job) -> tuple[str, int]:
    return job.measure or job.label, job.method.spec_of(job.spec).steps
