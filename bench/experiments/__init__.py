"""The papers' experiments as data, and what runs those that are missing.

Knows nothing of one run's steps, and draws nothing.
"""

__all__ = ["experiment", "plans", "runner", "scales"]
