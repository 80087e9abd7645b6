"""What is kept and shown: records, files, locks, the console, the clock.

Knows nothing of torch, models or methods.
"""

__all__ = [
    "clock",
    "console",
    "files",
    "locks",
    "ranks",
    "record",
    "schema",
    "verify",
]
