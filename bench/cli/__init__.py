"""The command line: arguments, exit codes, and what is shown of a result.

Computes nothing. The only part of `bench` that imports `analysis`.
"""

__all__ = ["commands"]
