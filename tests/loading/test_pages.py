"""`bench.loading.pages`: what is freed stays with the process, however much it is."""

import ctypes
import subprocess
import sys

import pytest

GIB = 2**30
FREED = """
import ctypes
from bench.loading import pages
pages.keep()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
fields = [(name, ctypes.c_size_t) for name in names]
libc.mallinfo2.restype = type("Info", (ctypes.Structure,), {"_fields_": fields})
blocks = [libc.malloc(2**26) for _ in range(40)]
for block in blocks:
    libc.free(block)
print(libc.mallinfo2().keepcost)
"""
"""40 blocks, never touched, each as large as the logits of 64 tokens over 262,144 words."""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_more_than_2_gib_is_kept():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 2.4 * GIB
