"""How long what is left will take: as others took here, else as estimated."""

from statistics import fmean

from bench.io import clock
from bench.io.console import in_words


class Times:
    """How long jobs of experiments take; `estimated` is steps -> seconds of a run, roughly."""

    def __init__(self, estimated):
        self._took, self._estimated = {}, estimated

    def add(self, job, function, *arguments):
        """(seconds it took, what the function gives)."""
        started = clock.read()
        result = function(*arguments)
        took = clock.read().since(started).seconds
        self.took(job, took)
        return took, result

    def took(self, job, seconds):
        """Remember how long a job took."""
        self._took.setdefault(_kind(job), []).append(seconds)

    def told(self, jobs, at_once=1):
        """What these jobs will take together, in words; so many run at a time."""
        return in_words(sum(map(self._expected, jobs)) / min(at_once, len(jobs)))

    def _expected(self, job):
        if _kind(job) in self._took:
            return fmean(self._took[_kind(job)])
        return self._estimated[job.spec.steps]


def _kind(job):
    return job.measure or job.label.partition(":")[0], job.spec.steps
