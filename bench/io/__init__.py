"""What is kept and shown: records, files, locks, the console, the clock.

Knows nothing of torch, models or methods.
"""

__all__ = [
    "cache",
    "clock",
    "console",
    "files",
    "hashes",
    "locks",
    "ranks",
    "record",
    "schema",
    "verify",
]
