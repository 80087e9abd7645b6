"""The problem that every method is given: the passes, the losses, the SAEs' forms, the batches.

Knows nothing of where models and SAEs come from, of clocks, records or runs. Methods import the
names below; other packages also the modules.
"""

from bench.problem.batches import Batches
from bench.problem.hooks import Hook, block_after
from bench.problem.objectives import LOSSES, Seen, reconstruction
from bench.problem.problem import Adapted, Problem, copy_of
from bench.problem.sae import clamp_thresholds, correct, to_training
from bench.problem.training import descend, falling

__all__ = [
    "LOSSES",
    "Adapted",
    "Batches",
    "Hook",
    "Problem",
    "Seen",
    "batches",
    "blocks",
    "block_after",
    "clamp_thresholds",
    "clean_cache",
    "copy_of",
    "correct",
    "descend",
    "falling",
    "gradient_check",
    "hooks",
    "losses",
    "objectives",
    "oom",
    "problem",
    "reconstruction",
    "sae",
    "to_training",
    "training",
]
