"""What a terminal shows of records: tables, and the notes below them.

Computes no statistics of its own.
"""

__all__ = ["comparison", "conclusions", "experiments", "frames", "frontier", "notes"]
