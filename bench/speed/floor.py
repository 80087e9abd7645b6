"""The least time of a step, and what the harness adds.

The floor is a step's operations over the rate of this machine's matrix product.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import ModuleType

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import devices
from bench.harness.drive import drive
from bench.harness.meter import Meter, timed
from bench.io.record import Writer
from bench.problem import Adapted, Problem
from bench.problem.batches import Batches, noise

aten = torch.ops.aten

SIZES = {"cpu": 2048, "cuda": 8192, "mps": 4096}
"""Rows and columns of the product whose rate is measured: enough to fill the device."""
LONG = 0.1
"""Seconds of a product that is large enough for this machine."""
KERNELS = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
"""Attention kernels with a backward kernel beside them."""

DENSE_BFLOAT16 = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A30": 165e12,
    "NVIDIA A40": 149.7e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,  # SXM
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA GH200 480GB": 989.4e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA RTX A6000": 154.8e12,
    "NVIDIA RTX 6000 Ada Generation": 364.2e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce RTX 5090": 209.5e12,
}
"""`torch.cuda.get_device_name()` -> operations a second in bfloat16 with sums in float32, dense
(not "with sparsity"), from NVIDIA's data sheets. The whole name counts: a slice of a card (MIG)
has another one."""


def operations(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and the attention in `step()`.

    Attention is counted as what it must do: half of each product of queries and keys.
    """
    with FlopCounterMode(display=False, custom_mapping=attention_counts()) as counter:
        step()
    return counter.get_total_flops()


def attention_counts() -> dict[Callable, Callable]:
    """Each kernel that attention may run as, on a CPU, on CUDA and on MPS -> how it is counted."""
    counts = {aten._scaled_dot_product_attention_math_for_mps: _causal(2)}
    for kernel in KERNELS:
        name = f"_scaled_dot_product_{kernel}"
        counts[getattr(aten, name)] = _causal(2)
        counts[getattr(aten, f"{name}_backward")] = _causal(5, first=1)
    return counts


def _causal(n_products: int, first: int = 0) -> Callable[..., int]:
    """The count for `n_products` of [seq, d_head] x [d_head, seq], half of each masked away.

    The queries are argument number `first` of the kernel.
    """

    def count(*shapes: torch.Size, out_shape: object = None, **settings: object) -> int:
        batch, heads, seq_len, d_head = shapes[first]
        return n_products * batch * heads * seq_len * seq_len * d_head

    return count


@torch.no_grad()
def product_rate(device: torch.device, dtype: str = "float32") -> float:
    """Operations a second of a product of two square matrices, the median of five.

    Of `SIZES`; smaller where a product takes long: without AVX-512 a bfloat16 one takes minutes.
    """
    for part in (8, 4, 2, 1):
        size = SIZES[device.type] // part
        a = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
        seconds = median(timed(partial(_square, a))[1] for _ in range(5))
        if seconds > LONG:
            break
    return 2 * size**3 / seconds


def _square(a: torch.Tensor) -> None:
    torch.mm(a, a)
    devices.synchronize(a.device)


def nominal_peak(device: torch.device) -> float | None:
    """The card's operations a second in bfloat16 by its data sheet; None if that is not known."""
    if device.type != "cuda":
        return None
    return DENSE_BFLOAT16.get(torch.cuda.get_device_name(device))


def harness_seconds(problem: Problem, adapted: Adapted, steps: int = 20) -> float:
    """Seconds a step of driving, metering, attaching and writing a row, the model left out.

    Drives a method that attaches what `adapted` attaches and runs nothing in between; in place
    of the residual of each block one number goes through the meter's hook.
    """
    meter, number = Meter(problem.bridge), torch.zeros(1, 1, 1, requires_grad=True)
    catch = [(name, lambda value, hook: None) for name in problem.site_names]

    def train(problem: Problem, batches: Batches, config: None) -> Iterator[Adapted]:
        yield adapted
        for _ in batches:
            for hooks in (catch, adapted.hooks):
                problem.points.assert_none_attached()
                # The block ends with an error, as none of them fires.
                with suppress(RuntimeError), problem.points.attached(hooks):
                    pass
                for _ in range(problem.n_blocks):
                    meter.saw_block(None, (), number * 1)
                meter.saw_pass(None, (), number * 1)
            yield adapted

    method = ModuleType("nothing")
    vars(method)["train"] = train
    run = drive(method, problem, noise(8, 1, 4, steps, "cpu"), None, meter)
    with TemporaryDirectory() as folder:
        writer = Writer(Path(folder) / "row.jsonl")

        def step() -> None:
            next(run)
            writer.write(meter.reading())

        next(run)
        seconds = median(timed(step)[1] for _ in range(steps))
        writer.close()
    return seconds
