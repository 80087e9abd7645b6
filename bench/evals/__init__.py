"""Questions about a finished run or an SAE: does it belong, what else changed, benchmarks.

Trains nothing.
"""

__all__ = ["check", "downstream", "measures", "saebench"]
