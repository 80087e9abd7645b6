"""Products with the LM's frozen matrices, summed and given in float32 whatever their format."""

import torch

MIXED = "dtype" in torch.ops.aten.mm.overloads()
"""Whether this PyTorch multiplies bfloat16 matrices into a float32 one."""


def product(a, b):
    """a @ b in float32: [m, k] x [k, n] -> [m, n].

    On CUDA a `b` of bfloat16 is not copied into float32 but multiplied as it is: nothing is lost
    of an `a` of bfloat16, as sums are in float32; any other `a` is rounded to it.
    """
    if MIXED and b.is_cuda and b.dtype == torch.bfloat16:
        return torch.mm(a.to(b.dtype), b, out_dtype=torch.float32)
    return a.float() @ b.float()
