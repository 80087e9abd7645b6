"""What every file in methods/ must do; a newcomer's file is tested without a new test."""

import hashlib
import importlib
import io
import re
from pathlib import Path

import pytest
import torch

import methods
from bench.config import method
from bench.config.method_files import names
from bench.harness.drive import drive, evaluating, seed_all, snapshot, warm_up
from bench.harness.evaluate import HeldOut, mean, measure
from bench.harness.meter import Meter
from bench.problem.batches import Batches
from bench.problem.losses import teacher_of
from bench.problem.objectives import flat
from bench.problem.problem import Adapted
from tests.helpers import tiny

STEPS = 8
VARIANTS = [
    "linear:loss=kl+mse",
    "lora:dropout=0.2",
    "lora:layers=all",
    "lora:layers=0,3",
    "e2e:loss=kl+mse",
    "e2e:decay=0.5",
    "e2e:freeze=W_dec",
    "lora:keep=1",
    "lora:warmup=0.5:decay=1",
    "mse:decay=0",
    "mse:weighted=true",
    "ridge:weighted=false",
]
LABELS = [*names(), *VARIANTS]


@pytest.fixture(scope="module")
def problem():
    """Warm, as the harness has it: the first pass over windows of a shape costs one pass more."""
    problem, e2e = tiny.problem(), method.entry("e2e")
    warm_up(e2e.module, problem, e2e.config)
    return problem


@pytest.fixture(scope="module")
def held_out(problem):
    return hold_out(problem)


def hold_out(problem):
    """`HeldOut` of a few windows that are no training windows."""
    tokens = tiny.windows(4, seed=9)
    clean = problem.clean(tokens, Adapted(saes=problem.saes))
    rows = torch.arange(tokens.numel()).view(tokens.shape)[:, 1:-1].flatten()
    teacher = teacher_of(flat(clean.final)[rows], problem.head)
    return HeldOut(tokens, [0, 0, 1, 1], clean.entry, [0.0, 0.0], teacher)


def curve(problem, held_out, entry, resume=None, kill_at=None):
    """The rows of a run, measured at every step; after `kill_at`, a snapshot as well."""
    meter = Meter(problem.bridge)
    batches = Batches(problem.train, problem.batch_size, STEPS, seed=0, fetched=meter.fetched)
    seed_all(0)
    rows = []
    with meter.watching():
        run = drive(entry.module, problem, batches, entry.config, meter, resume)
        for step, adapted in run:
            with evaluating(adapted):
                score = measure(problem, held_out, adapted)
            rows.append({"step": step, "ce": score.ce, "kl": mean(score.kl), **meter.reading()})
            if step == kill_at:
                return rows, on_disk(snapshot(step, adapted, batches, [meter.state()]))
    return rows, None


def on_disk(taken):
    """A snapshot as it comes back from a file that may hold tensors and plain values only."""
    file = io.BytesIO()
    torch.save(taken, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


COUNTED = ("tokens", "forwards", "backwards", "backward_tokens", "block_forwards")


def measured(rows):
    return [[row[name] for name in ("step", "ce", "kl", *COUNTED)] for row in rows]


def fingerprint(problem):
    """Everything of a problem that a method must leave as it was."""
    found = hashlib.sha256()
    modules = (problem.bridge, problem.saes)
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            found.update(name.encode() + value.numpy().tobytes())
    return {
        "weights": found.hexdigest(),
        "train": problem.train.sum().item(),
        "trainable": [n for m in modules for n, p in m.named_parameters() if p.requires_grad],
        "gradients": [n for m in modules for n, p in m.named_parameters() if p.grad is not None],
        "training": [n for m in modules for n, part in m.named_modules() if part.training],
        "hooks": sum(len(p._forward_hooks) for m in modules for p in m.modules()),
        "saes": id(problem.saes),
    }


def check_starts_from_the_bare_sae(problem, held_out, entry):
    rows, _ = curve(problem, held_out, entry, kill_at=0)
    bare = measure(problem, held_out, Adapted(saes=problem.saes))
    assert rows[0]["step"] == 0
    assert rows[0]["ce"] == pytest.approx(bare.ce, abs=1e-5)


def check_leaves_the_problem(problem, held_out, entry):
    before = fingerprint(problem)
    curve(problem, held_out, entry)
    assert fingerprint(problem) == before


def check_same_seed_same_curve(problem, held_out, entry):
    first, _ = curve(problem, held_out, entry)
    second, _ = curve(problem, held_out, entry)
    assert measured(first) == measured(second)


def check_costs_only_grow(problem, held_out, entry):
    rows, _ = curve(problem, held_out, entry)
    for before, after in zip(rows, rows[1:], strict=False):
        for name in after.keys() - {"ce", "kl"}:
            assert after[name] >= before[name], name
        assert after["tokens"] > before["tokens"]


def check_survives_a_kill(problem, held_out, entry, kill_at):
    whole, _ = curve(problem, held_out, entry)
    _, taken = curve(problem, held_out, entry, kill_at=kill_at)
    if taken is None:
        assert len(whole) <= kill_at  # the run was over before
        return
    seed_all(1)  # nothing may depend on what a new process starts with
    resumed, _ = curve(problem, held_out, entry, resume=taken)
    assert measured(resumed) == measured(whole)[kill_at:]


def check_promises(problem, held_out, entry):
    """All of it at once, for other problems than the usual one."""
    check_starts_from_the_bare_sae(problem, held_out, entry)
    check_leaves_the_problem(problem, held_out, entry)
    check_same_seed_same_curve(problem, held_out, entry)
    check_costs_only_grow(problem, held_out, entry)
    check_survives_a_kill(problem, held_out, entry, kill_at=2)


@pytest.mark.parametrize("label", LABELS)
def test_starts_from_the_bare_sae(problem, held_out, label):
    check_starts_from_the_bare_sae(problem, held_out, method.entry(label))


@pytest.mark.parametrize("label", LABELS)
def test_leaves_the_problem(problem, held_out, label):
    check_leaves_the_problem(problem, held_out, method.entry(label))


@pytest.mark.parametrize("label", LABELS)
def test_same_seed_same_curve(problem, held_out, label):
    check_same_seed_same_curve(problem, held_out, method.entry(label))


@pytest.mark.parametrize("label", LABELS)
def test_costs_only_grow(problem, held_out, label):
    check_costs_only_grow(problem, held_out, method.entry(label))


@pytest.mark.parametrize("kill_at", [1, 2, 5])
@pytest.mark.parametrize("label", LABELS)
def test_survives_a_kill(problem, held_out, label, kill_at):
    check_survives_a_kill(problem, held_out, method.entry(label), kill_at)


# forwards, backwards, block forwards, block backwards a step, with 2 of 4 blocks after the SAE
PASSES = {
    "none": None,
    "lora": (2, 1, 6, 2),
    "lora:layers=all": (2, 1, 8, 4),
    "e2e": (2, 1, 6, 2),
    "e2e:loss=kl+mse": (2, 1, 6, 2),
    "mse": (0, 0, 2, 0),
    "linear": (2, 1, 6, 2),
    "affine": (2, 1, 6, 2),
    "ridge": (0, 0, 2, 0),
    "joint": (2, 1, 6, 2),
    "full": (2, 1, 6, 2),
}


@pytest.mark.parametrize("label", PASSES)
def test_passes_are_counted(problem, held_out, label):
    rows, _ = curve(problem, held_out, method.entry(label))
    names = ("forwards", "backwards", "block_forwards", "block_backwards")
    for row in rows:
        passes = PASSES[label] or (0, 0, 0, 0)
        assert [row[name] for name in names] == [row["step"] * n for n in passes]
        assert row["tokens"] == row["step"] * problem.batch_size * tiny.SEQ
        assert row["backward_tokens"] == row["backwards"] * problem.batch_size * tiny.SEQ


@pytest.mark.parametrize(
    "label",
    ["lora:lr=0.01", "e2e:lr=0.003", "linear:lr=0.03", "affine:lr=0.03", "joint", "full:lr=0.003"],
)
def test_training_lowers_the_kl(problem, held_out, label):
    rows, _ = curve(problem, held_out, method.entry(label))
    assert rows[-1]["kl"] < 0.9 * rows[0]["kl"]


def test_mse_lowers_the_fvu(problem, held_out):
    entry, fvus = method.entry("mse:lr=0.01"), []
    batches = Batches(problem.train, problem.batch_size, STEPS, seed=0)
    meter = Meter(problem.bridge)
    for _, adapted in drive(entry.module, problem, batches, entry.config, meter):
        fvus.append(mean(measure(problem, held_out, adapted).fvu))
    assert fvus[-1] < 0.9 * fvus[0]


def test_the_readmes_example_works_as_pasted(problem, held_out, tmp_path, monkeypatch):
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    name, code = re.search(r"`methods/(\w+)\.py`.*?```python\n(.*?)```", readme, re.S).groups()
    assert code.count("\n") < 25
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert name in names()
    entry = method.entry(f"{name}:lr=0.02")
    check_starts_from_the_bare_sae(problem, held_out, entry)
    check_leaves_the_problem(problem, held_out, entry)
    check_survives_a_kill(problem, held_out, entry, kill_at=2)
    rows, _ = curve(problem, held_out, entry)
    assert rows[-1]["kl"] < rows[0]["kl"]


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("in_place", lambda *args: check_leaves_the_problem(*args)),
        ("local_counter", lambda *args: check_survives_a_kill(*args, kill_at=2)),
    ],
)
def test_planted_methods_are_caught(name, check):
    module = importlib.import_module(f"tests.planted.{name}")
    entry = method.Entry(method.MethodRequest(name), module, module.Config(), source="")
    problem = tiny.problem()
    with pytest.raises(AssertionError):
        check(problem, hold_out(problem), entry)
