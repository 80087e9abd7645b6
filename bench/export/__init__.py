"""A finished run for others: PEFT and SAELens folders, or the bridge in Python again.

Trains and measures nothing.
"""

__all__ = ["artefacts", "export", "reload"]
