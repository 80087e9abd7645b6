"""How long a comparison will take here, said before it starts: two clean passes are timed."""

import dataclasses
from statistics import fmean

import torch

from bench.harness import doubling
from bench.meter import timed
from bench.problem import Adapted


class Times:
    """How long the jobs of experiments will take: as others took here, else as estimated.

    `loaded` is model and text of the first; a job on another model is taken to be alike.
    """

    def __init__(self, loaded):
        self._loaded, self._took, self._estimated = loaded, {}, {}

    def add(self, job, function, *arguments):
        """(seconds it took, what the function gives)."""
        result, took = timed(function, *arguments)
        self._took.setdefault(_kind(job), []).append(took)
        return took, result

    def told(self, jobs):
        """What these jobs will take together, in words."""
        return in_words(sum(map(self._expected, jobs)))

    def _expected(self, job):
        if _kind(job) in self._took:
            return fmean(self._took[_kind(job)])
        steps = job.spec.steps
        if steps not in self._estimated:
            spec = dataclasses.replace(self._loaded.spec, steps=steps)
            loaded = dataclasses.replace(self._loaded, spec=spec)
            self._estimated[steps] = seconds(loaded, 1, trains_sae=False)
        return self._estimated[steps]


def _kind(job):
    return job.measure or job.label.partition(":")[0], job.spec.steps


def seconds(loaded, n_runs, trains_sae):
    """Rough seconds for `n_runs` runs on what was loaded and, if need be, the SAE's training.

    Operations are counted in clean passes of a training batch: a student pass and its backward
    run the blocks after the site twice and more, a KL multiplies by the unembedding three times.
    """
    spec, problem = loaded.spec, loaded.problem(torch.nn.ModuleList())
    clean = _seconds_of_clean_pass(problem)
    after = 1 - problem.site_start / problem.n_blocks
    blocks = sum(p.numel() for p in {*problem.bridge.blocks.parameters()})
    head = problem.head.weight.numel() / blocks
    batch = spec.batch_size * spec.seq_len
    step = clean * (1 + 2.3 * after + 3.5 * head)
    evaluation = clean * (after + 1.2 * head) / batch
    whole = evaluation * spec.val_tokens
    run = (spec.steps + 2) * step + len(doubling(spec.steps)) * evaluation * spec.curve_tokens
    total = n_runs * (run + whole)
    if trains_sae:
        total += spec.sae_tokens / batch * clean * 1.5 * (1 - after) + 2 * whole
    return total


def in_words(seconds):
    """`about 40 s`, `about 7 min`, `about 3.5 h`."""
    if seconds < 90:
        return f"about {10 * max(1, round(seconds / 10))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _seconds_of_clean_pass(problem):
    tokens, bare = problem.train[: problem.batch_size], Adapted(saes=problem.saes)
    problem.clean(tokens, bare)
    return timed(problem.clean, tokens, bare)[1]
