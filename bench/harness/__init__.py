"""One run: a method driven step by step, its cost, its evaluation, its checkpoints.

Knows no method by name, and nothing of other runs.
"""

__all__ = [
    "checkpoint",
    "drive",
    "evaluate",
    "meter",
    "provenance",
    "run",
    "signals",
]
