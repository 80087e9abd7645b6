"""The papers' experiments as data, and the code that runs the missing ones.

Knows nothing of one run's steps, and draws nothing.
"""

__all__ = ["experiment", "plans", "runner", "scales"]
