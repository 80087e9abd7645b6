"""What a step cannot be faster than: its operations over the machine's matrix product."""

from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.batches import noise
from bench.drive import drive
from bench.meter import Meter, timed
from bench.record import Writer

aten = torch.ops.aten


def operations(step):
    """Floating-point operations of the matrix products and the attention in `step()`.

    Attention is counted as what it must do: half of each product of queries and keys.
    """
    ours = {
        aten._scaled_dot_product_flash_attention_for_cpu: _causal(2),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _causal(5, first=1),
    }
    with FlopCounterMode(display=False, custom_mapping=ours) as counter:
        step()
    return counter.get_total_flops()


def _causal(n_products, first=0):
    """The count for `n_products` of [seq, d_head] x [d_head, seq], half of each masked away."""

    def count(*shapes, out_shape=None, **settings):
        batch, heads, seq_len, d_head = shapes[first]
        return n_products * batch * heads * seq_len * seq_len * d_head

    return count


def product_rate():
    """Operations a second of a float32 matrix product of 2,048 x 2,048, the median of five."""
    a = torch.randn(2048, 2048)
    with torch.no_grad():
        torch.mm(a, a)
        return 2 * 2048**3 / median(timed(torch.mm, a, a)[1] for _ in range(5))


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
