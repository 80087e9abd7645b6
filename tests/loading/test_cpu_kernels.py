"""oneDNN's products are products, and what is freed stays with the process."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from bench.errors import Usage
from bench.harness.meter import timed
from bench.loading import cpu_kernels

LARGE, SMALL, EMPTY = (128, 96, 160), (5, 7, 3), (0, 96, 160)
IN_A_PROCESS_OF_ITS_OWN = """
import torch
from bench.loading import cpu_kernels
assert cpu_kernels.install() == "oneDNN"
torch.manual_seed(0)
for bias in (None, torch.randn(160)):
    x = torch.randn(2, 64, 96, requires_grad=True)
    weight = torch.randn(160, 96, requires_grad=True)
    out = torch.nn.functional.linear(x, weight, bias)
    out.square().sum().backward()
    dx, dw = x.double().detach().requires_grad_(), weight.double().detach().requires_grad_()
    exact = torch.nn.functional.linear(dx, dw, None if bias is None else bias.double())
    exact.square().sum().backward()
    for ours, expected in ((out, exact), (x.grad, dx.grad), (weight.grad, dw.grad)):
        assert (ours - expected).norm() < 1e-5 * expected.norm()
"""

GIB = 2**30
FREED = """
import ctypes
from bench.loading import cpu_kernels
cpu_kernels.keep_freed()
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

pytestmark = pytest.mark.runs


@pytest.mark.parametrize("shape", [LARGE, SMALL, EMPTY])
@pytest.mark.parametrize("a_strided", [False, True])
@pytest.mark.parametrize("b_strided", [False, True])
def test_products_of_every_layout(shape, a_strided, b_strided):
    torch.manual_seed(0)
    m, k, n = shape
    a = torch.randn(k, m).t() if a_strided else torch.randn(m, k)
    b = torch.randn(n, k).t() if b_strided else torch.randn(k, n)
    bias, exact = torch.randn(n), a.double() @ b.double()
    near = {"rtol": 1e-5, "atol": 1e-4, "check_dtype": False}
    torch.testing.assert_close(cpu_kernels._mm(a, b), exact, **near)
    torch.testing.assert_close(cpu_kernels._addmm(bias, a, b), exact + bias, **near)
    scaled = cpu_kernels._addmm(bias, a, b, beta=0.5, alpha=2)
    torch.testing.assert_close(scaled, 2 * exact + 0.5 * bias.double(), **near)


def test_other_types_go_the_usual_way():
    a = torch.randn(128, 96, dtype=torch.float64)
    torch.testing.assert_close(cpu_kernels._mm(a, a.t()), torch.einsum("ij,kj->ik", a, a))
    bias = torch.randn(128, 128)
    a = a.float()
    torch.testing.assert_close(
        cpu_kernels._addmm(bias, a, a.t()), bias + torch.einsum("ij,kj->ik", a, a)
    )


def test_forward_and_backward_once_it_is_installed():
    environment = {**os.environ, "SPLICEBENCH_MATMUL": "onednn"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", IN_A_PROCESS_OF_ITS_OWN],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_choice_there_is_none(monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_MATMUL", "mkl")
    with pytest.raises(Usage, match="expected one of blas, onednn"):
        cpu_kernels.install.__wrapped__()


def test_a_kernel_that_is_not_exact_is_not_used(monkeypatch, capsys):
    monkeypatch.setenv("SPLICEBENCH_MATMUL", "onednn")
    monkeypatch.setattr(cpu_kernels, "_onednn", lambda a, b, bias: (a @ b).bfloat16().float())
    assert cpu_kernels.install.__wrapped__() == "blas"
    assert "going on with BLAS" in capsys.readouterr().out


def test_a_matrix_cut_out_of_a_wider_one_is_not_slow():
    """GPT-2's q, k and v share one weight; oneDNN's reference kernel took 1,700 times as long."""
    x, wide = torch.randn(64, 768), torch.randn(768, 2304)
    cut = wide[:, 768:1536]
    dense, times = cut.contiguous(), []
    for b in (dense, cut):
        cpu_kernels._mm(x, b)
        times.append(min(timed(cpu_kernels._mm, x, b)[1] for _ in range(5)))
    assert times[1] < 50 * times[0]
    torch.testing.assert_close(cpu_kernels._mm(x, cut), cpu_kernels._mm(x, dense))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_more_than_2_gib_is_kept():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 2.4 * GIB
