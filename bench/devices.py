"""The devices a run can be on: which are here, their memory, the edges of their clocks.

A model of bfloat16 weights on CUDA multiplies what stays in float32 (adapters, SAEs, losses) in
TF32, one of float32 weights never does: `set_precision`, and the record says which it was.
"""

import resource
import sys
from typing import Any

import torch

from bench.errors import Unavailable


def available() -> list[str]:
    """The kinds of device here, the fastest first."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [*(device for device, is_here in here.items() if is_here), "cpu"]


def check(device: str) -> None:
    """Raise `Unavailable` if this machine has no such device."""
    if device not in available():
        here = " or ".join(available())
        raise Unavailable(f"--device {device}: not available here; expected {here}")


def own(device: str) -> str:
    """`cuda` with the number of this process' accelerator, where that is not the first: some
    libraries take the bare name for the first one."""
    number = torch.cuda.current_device() if device == "cuda" else 0
    return f"{device}:{number}" if number else device


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def forget_peak(device: torch.device) -> None:
    """Begin to look for the peak of the device's memory anew, where the device allows that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """The most memory that was in use: on CUDA by tensors, since `forget_peak`; on MPS what is
    in use now; on a CPU by this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def set_precision(device: str, dtype: str) -> None:
    """TF32 on CUDA for a model of bfloat16 weights, whose own products are coarser still."""
    if device == "cuda":
        torch.set_float32_matmul_precision("high" if dtype == "bfloat16" else "highest")


def float32_products(device: str) -> str:
    """How float32 matrices are multiplied on an accelerator: `TF32` or `float32`."""
    return "TF32" if device == "cuda" and torch.backends.cuda.matmul.allow_tf32 else "float32"


def wide(device: torch.device) -> torch.dtype:
    """The format of sums: float64, but float32 on MPS, which has no wider one."""
    return torch.float32 if device.type == "mps" else torch.float64


def random_state() -> dict[str, Any]:
    """Torch's random numbers, on the CPU and on this process' accelerator if it has drawn some."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    state = {"cpu": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state()] if cuda else []}
    return state | ({"mps": torch.mps.get_rng_state()} if torch.backends.mps.is_available() else {})


def set_random_state(state: dict[str, Any]) -> None:
    """Set what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])
    if "mps" in state and torch.backends.mps.is_available():  # it may come from another machine
        torch.mps.set_rng_state(state["mps"])
