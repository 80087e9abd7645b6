"""The statistics: errors over seeds and documents, the gap, speedups, which runs may be used.

Pure functions on records. Prints and draws nothing.
"""

__all__ = ["crossed", "gap", "speedup", "usable"]
