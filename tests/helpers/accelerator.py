"""A pretended accelerator: tensors of a device of their own, computed on the CPU.

It refuses what a GPU refuses: tensors of two devices in one operation. It remembers what would wait
for a GPU: a value that Python reads, a shape that depends on values, a copy to it or from it.
PyTorch has a device without a backend, `meta`, and that is what these tensors say they are on.
"""

from contextlib import contextmanager

import torch
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from bench.problem import losses

DEVICE = "meta"
aten = torch.ops.aten
WAITING = {aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten._unique2}
"""Operations whose result Python, or the shape of a tensor, needs."""
INDEXING = {aten.index, aten.index_put, aten.index_put_}
OF_TWO_DEVICES = INDEXING | {aten.copy_, aten._to_copy}
PRODUCTS = {aten.mm, aten.addmm, aten.bmm}


class Held(torch.Tensor):
    """A tensor on the accelerator; `inner`, on the CPU, has its values."""

    @staticmethod
    def __new__(cls, inner):
        size, stride, offset = inner.size(), inner.stride(), inner.storage_offset()
        about = {"strides": stride, "storage_offset": offset, "dtype": inner.dtype}
        return cls._make_wrapper_subclass(cls, size, device=DEVICE, **about)

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"Held({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class Accelerator(TorchDispatchMode):
    """Inside the block there is one; `waited` says for what, and after how many products."""

    def __init__(self):
        super().__init__()
        self.forget()

    def forget(self):
        """Begin anew: it has nothing to do."""
        self.waited, self._products = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._products += function.overloadpacket in PRODUCTS
        self.waited += [(why, self._products) for why in _waits(function, args, kwargs or {})]
        return _run(function, args, kwargs or {})


@contextmanager
def pretended(monkeypatch):
    """Pretend that there is an accelerator -> the `Accelerator`."""
    monkeypatch.setitem(losses.CHUNK_BYTES, DEVICE, 2**20)
    monkeypatch.setitem(losses.SWEEP_BYTES, DEVICE, 2**18)
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [DEVICE])
    with Accelerator() as mode:
        yield mode


def _tensors(*values):
    return [v for v in tree_leaves(values) if isinstance(v, torch.Tensor)]


def _waits(function, args, kwargs):
    name, tensors = function.overloadpacket, _tensors(args, kwargs)
    on_it = [isinstance(t, Held) for t in tensors]
    if name in WAITING and any(on_it):
        return [str(function)]
    indices = _tensors(args[1]) if name in INDEXING else []
    if any(isinstance(t, Held) and t.dtype == torch.bool for t in indices):
        return [f"{function} by a mask"]
    ends = {*on_it, _to_it(args, kwargs)} if name in OF_TWO_DEVICES else {True}
    if len(ends) > 1 and not kwargs.get("non_blocking"):
        return [f"{function} between devices"]
    return []


def _to_it(args, kwargs):
    """Whether the result of an operation is on the accelerator."""
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"]).type == DEVICE
    return any(isinstance(t, Held) for t in _tensors(args, kwargs))


def _run(function, args, kwargs):
    kinds = {isinstance(t, Held) for t in _tensors(args, kwargs) if t.ndim}
    if len(kinds) > 1 and function.overloadpacket not in OF_TWO_DEVICES:
        raise RuntimeError(f"{function}: tensors on two devices")
    if function is aten._fused_sdp_choice.default:
        return 0  # the kernel that is written in other operations
    to_it = _to_it(args, kwargs)
    inner_args, inner = tree_map_only(Held, lambda t: t.inner, (args, kwargs))
    out = function(*inner_args, **inner | ({"device": "cpu"} if "device" in kwargs else {}))
    if function._schema.is_mutable:  # what was written into is what is given back
        named = dict(zip((a.name for a in function._schema.arguments), args, strict=False)) | kwargs
        infos = [a for a in function._schema.arguments if a.alias_info and a.alias_info.is_write]
        return None if out is None else named[infos[0].name] if len(infos) == 1 else out
    return tree_map_only(torch.Tensor, Held, out) if to_it else out


class OnDisk:
    """Training windows [windows, seq] that go to the accelerator when they are asked for."""

    def __init__(self, windows):
        self._windows, self.shape, self.dtype = windows, windows.shape, windows.dtype
        self.device = torch.device(DEVICE)

    def __len__(self):
        return len(self._windows)

    def __getitem__(self, rows):
        return self._windows[rows].to(DEVICE, non_blocking=True)
