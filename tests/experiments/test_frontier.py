"""The frontier on a tiny model: what forks from what, with which SAE, steps and settings."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from analysis.records import manifest
from bench.config.spec import SHARES, Spec
from bench.errors import Fault
from bench.experiments import frontier, plans
from bench.experiments.frontier import Frontier, rates
from bench.experiments.scales import LAPTOP, SCALES, STEPS
from bench.io.files import cache_root
from bench.loading import models
from bench.runs import process
from methods import mse
from tests.conftest import LoadedOnce, call_here
from tests.experiments.test_experiment import SMALL

CHOSEN = {arm: "shrink=10" if arm == "ridge" else "clip=1" for arm in STEPS}
"""As if every arm had been tuned."""


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """The whole frontier with one seed, and one of its measurements."""
    from bench.experiments.experiment import experiment

    out = tmp_path_factory.mktemp("frontier")
    spec = replace(Spec(), model=str(folder / "model"), text=str(folder / "text"), **SMALL)
    spec = replace(spec, sae_set="decay=0:warmup=0.01", sae_tokens=960)
    steps = dict.fromkeys(STEPS, 4)
    setting = Frontier(spec, steps, {**CHOSEN, "lora": "lr=1e-3"}, seeds=(0,), others=(0,))
    scale = replace(LAPTOP, name="frontier", has=(), frontiers={"frontier": setting})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLICEBENCH_CACHE", str(folder / "cache"))
        patch.setitem(SCALES, "frontier", lambda: scale)
        patch.setattr(process, "call", call_here)
        patch.setattr(models, "load", LoadedOnce(models.load))
        ended = experiment(["frontier", "frontier-no-sae"], "frontier", out)
        assert ended.failed == {}
        again = experiment(["frontier", "frontier-no-sae"], "frontier", out)
        assert again.todo == 0
        return manifest.load(out)["frontier"], cache_root()


def one(made, role, **at):
    (run,) = made[0].runs(role, **at)
    return run


def cached(made, run):
    """The tensors of the SAE that a run began with."""
    (place,) = run.header["sae"]["cached"]
    return load_file(made[1] / place / "sae_weights.safetensors")


def test_every_arm_forks_from_the_same_sae(made):
    trunk = one(made, "trunk", sae="own")
    assert trunk.header["config"]["decay"] == 0
    first = one(made, "mse", fork=0.25, sae="own").header["sae"]
    for arm in frontier.ARMS:
        run = one(made, arm, fork=0.25, sae="own")
        assert run.header["sae"] == first and first["share"] == 0.75
        assert first["run"] == trunk.name
        assert run.header["sae_cost"]["tokens"] == 0.75 * trunk.rows[-1]["tokens"]
        schedule = {field: run.header["config"].get(field) for field in ("warmup", "decay")}
        assert schedule == {"warmup": 0.03, "decay": 1.0} or arm == "ridge"


def test_forks_get_their_share_of_the_steps(made):
    for arm in frontier.MAIN:
        steps = [one(made, arm, fork=f, sae="own").rows[-1]["step"] for f in (0.05, 0.25, 0.5)]
        assert steps == [1, 4, 8]
    shares = [one(made, "lora", fork=f, sae="own").header["sae"]["share"] for f in (0.05, 0.5)]
    assert shares == [0.95, 0.5]


def test_tuned_step_sizes_are_taken(made):
    assert one(made, "lora", fork=0.5, sae="own").header["config"]["lr"] == 1e-3


def test_lora_around_a_finished_sae_goes_on_from_it(made):
    run = one(made, "mse-lora")
    assert run.rows[-1]["step"] == 2
    trunk, cost = one(made, "trunk", sae="own"), run.header["sae_cost"]
    assert cost["tokens"] == 0.75 * trunk.rows[-1]["tokens"] + 2 * 24
    assert run.header["sae"]["run"].startswith("mse-")
    assert run.header["seed"] == 100  # other windows than those of the first half


def test_controls_have_directions_that_mean_nothing(made):
    shuffled = cached(made, one(made, "lora", fork=0.25, sae="shuffled"))
    own = cached(made, one(made, "lora", fork=0.25, sae="own"))
    assert torch.equal(shuffled["W_enc"], own["W_enc"])
    assert not torch.equal(shuffled["W_dec"], own["W_dec"])
    assert torch.equal(shuffled["W_dec"].sum(1).sort().values, own["W_dec"].sum(1).sort().values)
    frozen = cached(made, one(made, "e2e", fork=0.25, sae="frozen"))
    trunk = one(made, "trunk", sae="frozen")
    assert trunk.header["config"]["freeze"] == ["W_dec"]
    begun = cached(made, trunk)["W_dec"]
    unit = [w / w.norm(dim=-1, keepdim=True) for w in (begun, frozen["W_dec"])]
    assert torch.allclose(*unit, atol=1e-5)
    assert not torch.allclose(frozen["W_enc"], cached(made, trunk)["W_enc"], atol=1e-5)
    for arm in ("mse", "e2e"):
        assert one(made, arm, fork=0.25, sae="frozen").header["config"]["freeze"] == ["W_dec"]


def test_e2e_from_scratch_starts_at_random(made):
    assert one(made, "e2e-scratch").header["sae"]["source"] == "fresh"


def real(monkeypatch, chosen):
    """The plans of the real frontier, with these step sizes."""
    scale = SCALES["frontier"]()
    tuned = {name: replace(one, rates=chosen) for name, one in scale.frontiers.items()}
    monkeypatch.setitem(SCALES, "frontier", lambda: replace(scale, frontiers=tuned))
    return {name: plans.jobs(name, "frontier") for name in tuned}


def test_nothing_is_run_at_a_step_size_that_was_not_tuned(monkeypatch):
    with pytest.raises(Fault, match="'e2e' is not tuned.*frontier-tuning/tuned.json"):
        real(monkeypatch, {"mse": "lr=1", "lora": "lr=1"})
    found = real(monkeypatch, {"mse": "lr=1", "lora": "lr=1", "e2e": "lr=1"})
    assert {job.role for job in found["frontier"]} == {"trunk", *frontier.MAIN, "mse-lora"}


def test_the_real_frontier_forks_at_shares_that_are_kept(monkeypatch):
    assert mse.CHECKPOINTS == SHARES
    found = real(monkeypatch, CHOSEN)
    for jobs in found.values():
        assert all(job.spec.sae_share in SHARES for job in jobs)
    whole = [job for job in found["frontier"] if job.role in frontier.MAIN]
    assert {job.seed for job in whole if job.at["fork"] == 0.25} == {0, 1, 2, 3, 4}
    quarters = [[job.spec for job in jobs if job.at.get("fork") == 0.25] for jobs in found.values()]
    short, long = ({s.sae_share * s.sae_tokens for s in specs} for specs in quarters)
    assert short == {0.75 * SCALES["frontier"]().spec.sae_tokens}
    assert long == {3 * tokens for tokens in short}, "and its trunk is not trained further"
    assert {spec.sae_share for spec in quarters[1]} == {1.0}


def test_tuned_files_are_read_or_refused(tmp_path):
    spec = SCALES["frontier"]().spec
    assert rates(spec, tmp_path, tmp_path) == {}
    lora, e2e = frontier.ARMS["lora"], frontier.ARMS["e2e"]
    methods = {
        f"{lora}:steps=220": {"choice": {"lr": 0.001}},
        f"{frontier.ARMS['joint']}:steps=9": {"choice": {"lr": 0.01, "sae_lr": 2e-4}},
    }
    of_spec = asdict(replace(spec, sae_share=0.75, sae_seed=1_500))
    file = {"spec": of_spec, "model": {}}
    (tmp_path / "tuned.json").write_text(json.dumps({**file, "methods": methods}))
    (tmp_path / "scratch").mkdir()
    of_scratch = {f"{e2e}:steps=880": {"choice": {"lr": 0.004}}}
    fresh = {**of_spec, "sae": "fresh", "sae_lr": 1.0}
    text = json.dumps({**file, "spec": fresh, "methods": of_scratch})
    (tmp_path / "scratch" / "tuned.json").write_text(text)
    assert rates(spec, tmp_path, tmp_path / "scratch") == {
        "lora": "lr=0.001",
        "lora-keep": "lr=0.001",
        "joint": "lr=0.01:sae_lr=0.0002",
        "e2e-scratch": "lr=0.004",
    }
    with pytest.raises(Fault, match="tuned with another sae_lr, sae_set"):
        rates(replace(spec, sae_lr=0.5, sae_set=""), tmp_path, tmp_path / "scratch")
    (tmp_path / "tuned.json").write_text("{}")
    with pytest.raises(Fault, match="tuned.json: not a file of `tune`"):
        rates(spec, tmp_path, tmp_path)
