"""`python -m bench speed`: a step of ours against the plain one.

Nothing else imports it.
"""

__all__ = ["speed"]
