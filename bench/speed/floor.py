"""What a step cannot be faster than: its operations over the machine's matrix product."""

from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.harness.drive import drive
from bench.harness.meter import Meter, timed
from bench.io.record import Writer
from bench.problem.batches import noise
from bench.speed import peaks
from bench.speed.probe import measured

aten = torch.ops.aten


SIZES = {"cpu": 2048, "cuda": 8192, "mps": 4096}
"""Rows and columns of the product whose rate is taken: enough to fill the device."""


def operations(step):
    """Floating-point operations of the matrix products and the attention in `step()`.

    Attention is counted as what it must do: half of each product of queries and keys.
    """
    with FlopCounterMode(display=False, custom_mapping=attention_counts()) as counter:
        step()
    return counter.get_total_flops()


def attention_counts():
    """Each kernel that attention may run as, on a CPU, on CUDA and on MPS -> how it is counted."""
    counts = {aten._scaled_dot_product_attention_math_for_mps: _causal(2)}
    for name in ("flash_attention_for_cpu", "flash_attention", "efficient_attention"):
        counts |= _of_kernel(name)
    return counts | _of_kernel("cudnn_attention")


def _of_kernel(name):
    forward = getattr(aten, f"_scaled_dot_product_{name}")
    backward = getattr(aten, f"_scaled_dot_product_{name}_backward")
    return {forward: _causal(2), backward: _causal(5, first=1)}


def _causal(n_products, first=0):
    """The count for `n_products` of [seq, d_head] x [d_head, seq], half of each masked away."""

    def count(*shapes, out_shape=None, **settings):
        batch, heads, seq_len, d_head = shapes[first]
        return n_products * batch * heads * seq_len * seq_len * d_head

    return count


@torch.no_grad()
def product_rate(device, dtype="float32"):
    """Operations a second of a product of two square matrices (`SIZES`), the median of five."""
    size = SIZES[device.type]
    a = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    torch.mm(a, a)
    taken = [measured(device, torch.mm, a, a)[1]["seconds"] for _ in range(5)]
    return 2 * size**3 / median(taken)


def nominal_peak(device):
    """The card's operations a second in bfloat16 by its data sheet, or None."""
    return peaks.peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def harness_seconds(problem, adapted, steps=20):
    """Seconds a step of driving, metering, attaching and writing a row, the model left out.

    Drives a method that attaches what `adapted` attaches and runs nothing in between; in place
    of the residual of each block one number goes through the meter's hook.
    """
    meter, number = Meter(problem.bridge), torch.zeros(1, 1, 1, requires_grad=True)
    catch = [(name, lambda value, hook: None) for name in problem.site_names]

    def train(problem, batches, config):
        yield adapted
        for _ in batches:
            for hooks in (catch, adapted.hooks):
                problem.points.assert_none_attached()
                # That none of them fires is found out when the block ends.
                with suppress(RuntimeError), problem.points.attached(hooks):
                    pass
                for _ in range(problem.n_blocks):
                    meter.saw_block(None, None, number * 1)
                meter.saw_pass(None, None, number * 1)
            yield adapted

    batches = noise(8, 1, 4, steps, "cpu")
    run = drive(SimpleNamespace(train=train), problem, batches, None, meter)
    with TemporaryDirectory() as folder:
        writer = Writer(Path(folder) / "row.jsonl")
        next(run)
        taken = [timed(_drive_and_write, run, meter, writer)[1] for _ in range(steps)]
        writer.close()
    return median(taken)


def _drive_and_write(run, meter, writer):
    next(run)
    writer.write(meter.reading())
