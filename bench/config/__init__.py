"""What may be asked for: specs, the files of the methods, the request of one call.

Knows nothing of torch, models or runs.
"""

__all__ = ["method", "method_files", "request", "shapes", "spec", "specs"]
