"""The clean side from disk: the same losses and gradients, without the passes."""

import pytest
import torch

from bench.config import method
from bench.harness.drive import drive
from bench.harness.meter import Meter
from bench.problem.batches import Batches
from bench.problem.clean_cache import CleanCache
from tests.helpers import tiny

STEPS = 4
LABELS = ["lora", "lora:layers=all", "e2e", "e2e:loss=kl+mse", "mse"]


def run(label, folder, family="llama", site=tiny.SITE):
    """(losses, what was trained, the meter's reading, tokens filled) of a short run."""
    problem = tiny.problem(family)
    if site != tiny.SITE:
        problem = type(problem)(problem.bridge, problem.saes, [site], problem.train, batch_size=2)
    problem.clean_cache = folder and CleanCache(folder)
    for n_windows in (1, 2):
        problem.entry(problem.train[:n_windows], 0)  # what is caught once a shape
    entry, meter, losses = method.entry(label), Meter(problem.bridge), []
    torch.manual_seed(0)
    batches = Batches(problem.train, 2, STEPS, seed=0)
    with meter.watching():
        driven = drive(entry.module, problem, batches, entry.config, meter)
        next(driven)
        for _, adapted in driven:
            losses.append(float(problem.last_loss))
            state = adapted.state
    modules = [m for m in state.values() if isinstance(m, torch.nn.Module)]
    trained = [p.detach() for m in modules for p in m.parameters()]
    filled = problem.clean_cache.filled if folder else None
    return losses, trained, meter.cost, filled


@pytest.mark.parametrize("label", LABELS)
def test_same_run_from_disk(label, tmp_path):
    plain, filling, reading = run(label, None), run(label, tmp_path), run(label, tmp_path)
    for found in (filling, reading):
        assert found[0] == pytest.approx(plain[0], rel=1e-4)
        torch.testing.assert_close(found[1], plain[1], rtol=1e-3, atol=1e-4)
    assert filling[0] == reading[0]
    assert all(map(torch.equal, filling[1], reading[1]))


def test_the_passes_are_gone_and_the_filling_is_counted(tmp_path):
    plain, filling, reading = run("e2e", None), run("e2e", tmp_path), run("e2e", tmp_path)
    after = tiny.BLOCKS - 2
    assert plain[2].forwards == 2 * STEPS
    assert plain[2].block_forwards == STEPS * (tiny.BLOCKS + after)
    assert filling[3] == 2 * tiny.SEQ * STEPS and reading[3] == 0
    assert (reading[2].forwards, reading[2].block_forwards) == (STEPS, STEPS * after)
    assert reading[2].backwards == plain[2].backwards == STEPS


def test_reconstruction_alone_stores_no_teacher(tmp_path):
    *_, filled = run("mse", tmp_path)
    kinds = {path.name.split(".")[1] for path in tmp_path.rglob("*.safetensors")}
    assert (filled, kinds) == (0, {"entry"})
    reading = run("mse", tmp_path)[2]
    assert (reading.forwards, reading.block_forwards) == (0, 0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("site", ["blocks.1.hook_mlp_out", "blocks.2.hook_resid_pre"])
def test_every_family_and_site(family, site, tmp_path):
    for label in ("lora", "e2e"):
        plain, filling = (run(label, folder, family, site) for folder in (None, tmp_path))
        assert filling[0] == pytest.approx(plain[0], rel=1e-4)
