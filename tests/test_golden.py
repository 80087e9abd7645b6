"""Golden curves: 20 steps of every method on a tiny model stay what they were.

To the sixth digit on the machine they were made on, to the fourth elsewhere. After a change
that is meant to change them: `SPLICEBENCH_GOLDEN=write python -m pytest tests/test_golden.py`.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from bench.config import method
from bench.config.method_files import names
from bench.harness.drive import drive, evaluating
from bench.harness.evaluate import mean, measure
from bench.harness.meter import Meter
from bench.harness.provenance import machine, versions
from bench.harness.run import doubling
from bench.problem.batches import Batches
from tests.helpers import tiny
from tests.test_methods import hold_out

STEPS = 20
FOLDER = Path(__file__).parent / "golden"


def curve(name):
    """CE and KL at each evaluation of a run of the method's defaults."""
    problem = tiny.problem()
    held_out, entry = hold_out(problem), method.entry(name)
    torch.manual_seed(0)
    batches = Batches(problem.train, problem.batch_size, STEPS, seed=0)
    rows = []
    meter = Meter(problem.bridge)
    for step, adapted in drive(entry.module, problem, batches, entry.config, meter):
        if step in doubling(STEPS):
            with evaluating(adapted):
                score = measure(problem, held_out, adapted)
            rows.append([step, mean(score.ce), mean(score.kl)])
    return rows


@pytest.mark.parametrize("name", names())
def test_golden_curve(name):
    path, rows = FOLDER / f"{name}.json", curve(name)
    here = {"machine": machine("cpu"), "torch": versions()["torch"]}
    if os.environ.get("SPLICEBENCH_GOLDEN") == "write":
        path.write_text(json.dumps({**here, "step, ce, kl": rows}, indent=1) + "\n")
    if not path.exists():
        pytest.skip(f"no golden curve of '{name}' yet: write it with SPLICEBENCH_GOLDEN=write")
    golden = json.loads(path.read_text())
    same = all(golden[field] == here[field] for field in here)
    tolerance = 1e-6 if same else 1e-4
    for found, expected in zip(rows, golden["step, ce, kl"], strict=True):
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)
