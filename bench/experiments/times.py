"""How long the remaining jobs will take: as their like took here, else as estimated."""

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from bench.experiments.job import Job
from bench.io.console import in_words


class Times:
    """How long jobs of experiments take; `estimated` is steps -> rough seconds of a run."""

    def __init__(self, estimated: dict[int, float]) -> None:
        self._took: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        self._estimated = estimated

    def add(self, job: Job, seconds: float) -> None:
        """Remember how long a job took."""
        self._took[_kind(job)].append(seconds)

    def of(self, jobs: Iterable[Job]) -> str:
        """How long these jobs will take one after the other, in words."""
        return in_words(sum(map(self._expected, jobs)))

    def _expected(self, job: Job) -> float:
        took = self._took[_kind(job)]
        return fmean(took) if took else self._estimated[job.method.spec_of(job.spec).steps]


def _kind(job: Job) -> tuple[str, int]:
    return job.measure or job.label, job.method.spec_of(job.spec).steps
