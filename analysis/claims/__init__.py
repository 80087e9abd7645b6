"""The papers' claims, each with the rule that decides it on committed records.

Draws nothing.
"""

__all__ = ["claims", "evidence"]
