"""What makes a CPU fast: oneDNN's matrix products, and memory that stays with the process.

PyTorch takes float32 products from Intel's MKL, which keeps its AVX-512 kernels for Intel's own
processors. oneDNN, in the same PyTorch, has them for every processor that does AVX-512 and is
twice as fast on an AMD EPYC. Both are exact float32; they differ in the order of summation.
PyTorch has no switch for this, so `install` puts oneDNN's kernel under `aten::mm` and
`aten::addmm`. That holds for the whole process, forward and backward.

The choice depends on the processor alone, never on a timing, so that the same command gives the
same digits; `SPLICEBENCH_MATMUL=blas` turns it off. Records say which one it was.
"""

import ctypes
import os
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from bench.errors import unknown
from bench.io.console import say

WORTH_IT = 2**20
"""Multiplications from which oneDNN's kernel is called: below, setting it up takes longer."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names from glibc's malloc.h."""


def keep_freed() -> None:
    """Ask glibc to keep the memory of freed tensors; elsewhere nothing happens.

    glibc maps each allocation above 32 MiB afresh and unmaps it when it is freed. It trims its
    heap whenever much of it is free. A step that allocates logits and activations then spends
    its time on page faults (a quarter of a KL over 262,144 words).
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
    mallopt(M_TRIM_THRESHOLD, -1)  # never: a number is 2 GiB at most, and a step can free more


@cache
def install() -> str:
    """Choose once a process -> `oneDNN` or `blas`. Raises `Usage` for a choice there is none."""
    wanted = os.environ.get("SPLICEBENCH_MATMUL") or ("onednn" if _mkl_is_slow() else "blas")
    if wanted not in ("blas", "onednn"):
        raise unknown("SPLICEBENCH_MATMUL", wanted, ("blas", "onednn"))
    if wanted == "blas":
        return "blas"
    if not _agrees():
        say("oneDNN's matrix product is not there or not exact here; going on with BLAS")
        return "blas"
    with warnings.catch_warnings(action="ignore"):  # that kernels are replaced is the point
        _library.impl("mm", _mm, "CPU", allow_override=True)
        _library.impl("addmm", _addmm, "CPU", allow_override=True)
    return "oneDNN"


_library = torch.library.Library("aten", "IMPL")
"""What is registered lasts as long as this object."""


def _mkl_is_slow() -> bool:
    """Whether this is an x86 processor with AVX-512 that is not Intel's, and BLAS is MKL."""
    file = Path("/proc/cpuinfo")
    processor = file.read_text(encoding="utf-8") if file.exists() else ""
    able = "avx512f" in processor and "GenuineIntel" not in processor
    return able and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


def _agrees() -> bool:
    """Whether oneDNN's kernel is there, with and without a bias, and exact to float32."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 96, 96, generator=generator)
    exact = a.double() @ b.double()
    try:
        plain, biased = _onednn(a, b, None), _onednn(a, b, a[0])
    except (AttributeError, RuntimeError):
        return False
    errors = [(plain - exact).abs().max(), (biased - exact - a[0]).abs().max()]
    return max(errors) < 1e-5 * exact.abs().max()


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a @ b (+ bias): [m, k] x [k, n] (+ [n]) -> [m, n], strides as they come."""
    if not (b.is_contiguous() or b.t().is_contiguous()):
        # Cut out of a wider matrix, as GPT-2's q, k and v are. For that oneDNN has no kernel but
        # its reference, a thousand times slower.
        b = b.contiguous()
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")


def _mm(a: Tensor, b: Tensor) -> Tensor:
    if _fits(a, b):
        if a.numel() > b.numel() and not a.is_contiguous() and a.t().is_contiguous():
            # oneDNN would copy `a`, the gradient of a map's output: turned over it copies `b`.
            return _onednn(b.t(), a.t(), None).t()
        return _onednn(a, b, None)
    # The form with `out` is another kernel, which stays PyTorch's own.
    return torch.mm(a, b, out=a.new_empty(a.shape[0], b.shape[1]))


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if beta == alpha == 1 and bias.shape == b.shape[1:] and _fits(a, b):
        return _onednn(a, b, bias)
    out = a.new_empty(a.shape[0], b.shape[1])
    return torch.addmm(bias, a, b, beta=beta, alpha=alpha, out=out)


def _fits(a: Tensor, b: Tensor) -> bool:
    floats = a.dtype == b.dtype == torch.float32
    return floats and a.shape[0] * a.shape[1] * b.shape[1] >= WORTH_IT
