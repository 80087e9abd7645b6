"""How long a comparison will take here, said before it starts: two clean passes are timed."""

import time

from bench.harness import doubling
from bench.problem import Adapted


def seconds(problem, spec, n_runs, trains_sae):
    """Rough seconds for `n_runs` runs and, where it is to be trained first, the SAE.

    Operations are counted in clean passes of a training batch: a student pass and its backward
    run the blocks after the site twice and more, a KL multiplies by the unembedding three times.
    """
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
    started = time.perf_counter()
    problem.clean(tokens, bare)
    return time.perf_counter() - started
