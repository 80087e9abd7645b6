"""Figures of records, by matplotlib.

Computes no statistics of its own.
"""

__all__ = ["comparison", "paper"]
