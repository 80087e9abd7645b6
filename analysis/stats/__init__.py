"""The statistics: the gap that is closed, the speedups, which runs may be used.

Pure functions on records. Prints and draws nothing.
"""

__all__ = ["gap", "speedup", "usable"]
