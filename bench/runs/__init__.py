"""Many runs: their setup, a process for each, which are done already.

Knows no experiment, and draws nothing.
"""

__all__ = [
    "compare",
    "done",
    "estimate",
    "loaded",
    "own_sae",
    "preflight",
    "process",
    "setup",
    "torchrun",
    "tune",
    "tuned",
    "worker",
]
