"""What a step must multiply, on a CPU and on CUDA's kernels, and what a card can."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.speed import floor, report
from bench.speed.floor import attention_counts, nominal_peak, operations, product_rate

aten = torch.ops.aten
BATCH, HEADS, SEQ, D_HEAD = 2, 4, 16, 8
HALF = BATCH * HEADS * SEQ * SEQ * D_HEAD  # of 2 * HALF operations a product


def flash(q, k):
    o, lse, *rest = aten._scaled_dot_product_flash_attention(q, k, k, 0.0, True)
    saved, random = rest[:4], rest[4:6]
    aten._scaled_dot_product_flash_attention_backward(
        o, q, k, k, o, lse, *saved, 0.0, True, *random
    )


def efficient(q, k):
    o, lse, *random = aten._scaled_dot_product_efficient_attention(q, k, k, None, True, 0.0, True)
    wanted = [True, True, True, False]
    aten._scaled_dot_product_efficient_attention_backward(
        o, q, k, k, None, o, lse, *random, 0.0, wanted, True
    )


def cudnn(q, k):
    o, lse, *rest = aten._scaled_dot_product_cudnn_attention(q, k, k, None, True, 0.0, True)
    lengths, random = rest[:4], rest[4:6]
    aten._scaled_dot_product_cudnn_attention_backward(
        o, q, k, k, o, lse, *random, None, *lengths, 0.0, True
    )


@pytest.mark.parametrize("kernel", [flash, efficient, cudnn])
def test_cuda_attention_is_counted_as_half(kernel):
    q = torch.empty(BATCH, HEADS, SEQ, D_HEAD, device="meta", dtype=torch.bfloat16)
    assert operations(lambda: kernel(q, q)) == 2 * HALF + 5 * HALF
    with FlopCounterMode(display=False) as torchs_own:
        kernel(q, q)
    assert torchs_own.get_total_flops() == 2 * operations(lambda: kernel(q, q))


def test_keys_with_fewer_heads_count_for_every_query():
    q = torch.empty(BATCH, HEADS, SEQ, D_HEAD, device="meta", dtype=torch.bfloat16)
    k = torch.empty(BATCH, HEADS // 2, SEQ, D_HEAD, device="meta", dtype=torch.bfloat16)
    assert operations(lambda: flash(q, k)) == 7 * HALF


def test_the_cpu_s_attention_is_counted_alike():
    q = torch.randn(BATCH, HEADS, SEQ, D_HEAD, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert operations(lambda: attend(q, q, q, is_causal=True).sum().backward()) == 7 * HALF


def test_no_kernel_of_attention_is_forgotten():
    """Each one that PyTorch counts, by the name that the dispatcher sees, is counted our way."""
    known = {op for op in FlopCounterMode(display=False).flop_registry if "_scaled_dot" in str(op)}
    assert known and known <= set(attention_counts())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_rate_of_a_product(dtype, monkeypatch):
    monkeypatch.setattr(floor, "SIZES", {"cpu": 64})
    assert product_rate(torch.device("cpu"), dtype) > 0


@pytest.mark.parametrize(("seconds", "sizes"), [(1.0, [8]), (0.01, [8, 16, 32, 64])])
def test_a_slow_product_is_measured_at_a_smaller_size(seconds, sizes, monkeypatch):
    """In bfloat16 on a processor without AVX-512 one of 2,048 rows takes a quarter of a minute."""
    seen = []
    monkeypatch.setattr(floor, "SIZES", {"cpu": 64})
    monkeypatch.setattr(floor, "_square", lambda a: seen.append(len(a)))
    monkeypatch.setattr(floor, "timed", lambda do: (do(), seconds))
    assert product_rate(torch.device("cpu")) == 2 * sizes[-1] ** 3 / seconds
    assert list(dict.fromkeys(seen)) == sizes


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_the_peak_of_a_card(name, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert found == nominal_peak(torch.device("cuda"))
    assert nominal_peak(torch.device("cpu")) is None


def test_what_is_printed_of_a_race_on_a_card(capsys):
    told = {"device": "cuda", "dtype": "bfloat16", "tf32": True, "micro_batch": 8}
    one, other = ({"seconds": n, "device_peak_bytes": n * 2**30} for n in (1, 3))
    result = {
        "weights": "random",
        "sides": {"ours": told, "plain": {**told, "dtype": "float32"}},
        "pairs": [{"ours": {**one, "rate": 5e14}, "plain": other}],
        "largest_difference": 1e-3,
        "tolerance": 5e-2,
        "peak_bytes": {"ours": None, "plain": None},
        "floor": {"operations": 1e14, "peak": 4e14},
        "harness_seconds": 1e-3,
        "disturbance": {"others": 0.3, "stolen": 0.0, "spread": None, "too_busy": False},
    }
    result |= report.summary(result)
    assert result["floor"]["fraction_of_peak"] == 0.25 and result["ratio"] == 3
    assert result["floor"]["times"] == 5  # one second, where 1e14 at 5e14 a second are a fifth
    assert result["device_peak_bytes"] == {"ours": 2**30, "plain": 3 * 2**30}
    report.describe(result)
    out = capsys.readouterr().out
    for words in (
        "by 5e-02 of the plain one (TF32 or bfloat16)",
        "the LM: ours bfloat16, plain float32",
        "25% of the card's bfloat16 peak",
        "on the device, model included: 1,024 MiB, plain 3,072 MiB (3.0 times ours)",
        report.RANDOM,
        "quiet enough to be believed: other processes took 30% of the cores",
    ):
        assert words in out
    assert "our time" not in out and "above the loaded model" not in out
