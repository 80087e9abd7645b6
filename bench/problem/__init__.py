"""The problem that every method is given: the passes, the losses, the SAEs' forms, the batches.

Knows nothing of where models and SAEs come from, of clocks, records or runs. Methods import the
names below; other packages also the modules.
"""

from bench.problem.batches import Batches
from bench.problem.hooks import Hook, block_after
from bench.problem.objectives import LOSSES, Seen, kl_with_and_without, reconstruction, weights_of
from bench.problem.problem import Adapted, Problem, copy_of
from bench.problem.sae import center, clamp_thresholds, correct, freeze, to_training
from bench.problem.training import Descent, descend

__all__ = [
    "LOSSES",
    "Adapted",
    "Batches",
    "Descent",
    "Hook",
    "Problem",
    "Seen",
    "batches",
    "blocks",
    "block_after",
    "center",
    "clamp_thresholds",
    "clean_cache",
    "copy_of",
    "correct",
    "descend",
    "freeze",
    "gradient_check",
    "hooks",
    "kl_with_and_without",
    "losses",
    "objectives",
    "oom",
    "problem",
    "reconstruction",
    "sae",
    "to_training",
    "training",
    "weights_of",
]
