"""Several processes at one run: their group, and each one's share of a batch.

Knows nothing of models, losses or methods.
"""

__all__ = ["group", "shares"]
