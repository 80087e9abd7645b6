"""Keep the memory of freed tensors, rather than hand it back to the system at every step."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names from glibc's malloc.h."""
LARGEST = 2**31 - 1
NEVER = -1
"""As a threshold for trimming: with a number, 2 GiB would be the most, and a step over a large
vocabulary can free more."""


def keep():
    """Ask glibc for it; elsewhere nothing happens.

    glibc maps each allocation above 32 MiB afresh and unmaps it when it is freed, and trims its
    heap whenever much of it is free: a step that allocates logits and activations then spends
    its time on page faults (a quarter of a KL over 262,144 words).
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, NEVER)
