"""Records and manifests, read and grouped; the papers' own numbers.

Computes no statistics.
"""

__all__ = ["comparison", "manifest", "paper"]
