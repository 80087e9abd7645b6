"""How long a comparison will take here, said before it starts: two clean passes are timed."""

from collections.abc import Iterable

import torch

from bench.harness.meter import timed
from bench.harness.run import doubling
from bench.problem.problem import Adapted, Problem
from bench.runs.loaded import Loaded


def seconds(loaded: Loaded, steps: Iterable[int], trains_sae: bool) -> float:
    """Rough seconds for runs of so many steps each on what was loaded and, if need be, the SAE's.

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
    row = evaluation * spec.curve_tokens
    total = sum((n + 2) * step + len(doubling(n)) * row + whole for n in steps)
    if trains_sae:
        total += spec.sae_tokens / batch * clean * 1.5 * (1 - after) + 2 * whole
    return total


def _seconds_of_clean_pass(problem: Problem) -> float:
    tokens, bare = problem.train[: problem.batch_size], Adapted(saes=problem.saes)
    problem.clean(tokens, bare)
    return timed(problem.clean, tokens, bare)[1]
