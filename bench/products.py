"""Products with the LM's frozen matrices, summed and given in float32 whatever their format."""

import torch


def product(a, b):
    """a @ b in float32: [m, k] x [k, n] -> [m, n].

    On CUDA a `b` of bfloat16 is not copied into float32 but multiplied as it is, at the speed of
    bfloat16: exact for an `a` of bfloat16, as sums are in float32; any other `a` is rounded to it.
    """
    if b.is_cuda and b.dtype == torch.bfloat16:
        return torch.mm(a.to(b.dtype), b, out_dtype=torch.float32)
    return a.float() @ b.float()
