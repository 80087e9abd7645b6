"""`bench experiment` on a tiny model: what is run, what is skipped, what goes on from what."""

import json
import shutil
from dataclasses import replace
from statistics import fmean

import pytest

from analysis.records import manifest
from bench.config.spec import Spec
from bench.experiments import plans
from bench.experiments.scales import FULL, LAPTOP, SCALES
from bench.io.record import read
from bench.loading import models, sae_sources
from bench.runs import process
from tests.conftest import LoadedOnce, call_here
from tests.helpers import tiny

OTHERS = (*plans.FULL_ONLY, *plans.OF_FRONTIER)
NAMES = [name for name in plans.EXPERIMENTS if name not in OTHERS]
SMALL = {
    "site": tiny.SITE,
    "seq_len": 12,
    "batch_size": 2,
    "steps": 2,
    "sae_width": 2,
    "sae_k": 4,
    "sae_tokens": 480,
    "curve_docs": 2,
    "curve_tokens": 48,
    "val_docs": 4,
    "val_tokens": 192,
}


@pytest.fixture(scope="module")
def scale(folder):
    """The laptop's scale with a tiny model: fewer seeds, sites and sizes, the same questions."""
    spec = replace(Spec(), model=str(folder / "model"), text=str(folder / "text"), **SMALL)
    both = replace(spec, site="blocks.0.hook_resid_post+blocks.2.hook_resid_post")
    return replace(
        LAPTOP,
        spec=spec,
        swept=spec,
        seeds=(0, 1),
        ranks=(1, 2),
        sparsity={k: {"sae_k": k} for k in (2, 4)},
        width={32 * n: {"sae_width": n} for n in (1, 2)},
        depth={n: {"site": f"blocks.{n}.hook_resid_post"} for n in (0, 1)},
        size={"tiny": None, "tiny too": replace(spec, name="gemma-3-270m")},
        one_layer=(2, 3),
        multi={1: spec, 2: both},
    )


@pytest.fixture
def experiment(command, scale, monkeypatch):
    """Run `python -m bench experiment` at the tiny scale."""
    monkeypatch.setitem(SCALES, "laptop", lambda: scale)
    return lambda *arguments: command("experiment", *arguments)


@pytest.fixture(scope="module")
def made(folder, scale, tmp_path_factory):
    """All experiments, run once."""
    out = tmp_path_factory.mktemp("experiments")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLICEBENCH_CACHE", str(folder / "cache"))
        patch.setitem(SCALES, "laptop", lambda: scale)
        patch.setattr(process, "call", call_here)
        patch.setattr(models, "load", LoadedOnce(models.load))
        from bench.experiments.experiment import experiment

        experiment(["all"], "laptop", out)
    return out


def test_every_experiment_is_complete(made):
    found = manifest.load(made)
    assert sorted(found) == sorted(NAMES)
    for one in found.values():
        assert len(one.entries) == len(one.plan) > 0
        assert all(entry.run.status == "finished" for entry in one.entries if entry.run)


def test_a_second_call_finds_nothing_to_do(experiment, made):
    before = {path: path.stat().st_mtime_ns for path in made.glob("*.json*")}
    code, out, err = experiment("all", "--out", made)
    assert code == 0, err
    assert "nothing to do" in out and "loading" not in out
    assert {path: path.stat().st_mtime_ns for path in made.glob("*.json*")} == before


def test_a_manifest_that_lacks_a_record_is_put_right(experiment, made, tmp_path):
    """As where another process made the last run after this one had written its manifest."""
    shutil.copytree(made, tmp_path / "out")
    path = tmp_path / "out" / "rivals.json"
    whole = json.loads(path.read_text())
    path.write_text(
        json.dumps({**whole, "runs": [{**run, "record": None} for run in whole["runs"]]})
    )
    code, out, err = experiment("rivals", "--out", tmp_path / "out")
    assert code == 0 and "nothing to do" in out, err
    assert json.loads(path.read_text()) == whole


def test_records_alone_are_enough_to_know_what_is_done(experiment, made, tmp_path):
    """A clone has the records and not what the runs trained, nor any cache."""
    for path in made.glob("*.json*"):
        shutil.copy(path, tmp_path)
    relative = made.as_posix()
    for path in tmp_path.glob("*.jsonl"):  # a second stage names its first by the folder
        path.write_text(path.read_text().replace(relative, tmp_path.as_posix()))
    code, out, _ = experiment("all", "--out", tmp_path)
    assert code == 0 and "nothing to do" in out


def test_no_run_is_begun_that_would_end_too_late(experiment, made, tmp_path):
    """By what another seed took, as its record says: here a second or so, and a minute beside."""
    shutil.copytree(made, tmp_path / "part")
    _, gone = manifest.load(tmp_path / "part")["timing"].of("lora", share=0.5)
    gone.run.path.unlink()
    arguments = ("timing", "--out", tmp_path / "part", "--minutes")
    code, out, err = experiment(*arguments, "0.5")
    assert code == 0, err
    assert "lora seed 1 share=0.5 would end after 0.5 minutes; left with it: about" in out
    assert not gone.run.path.exists()
    code, out, err = experiment(*arguments, "5")
    assert code == 0 and "[1/1]" in out and gone.run.path.exists(), err


def test_what_is_missing_is_run_and_nothing_else(experiment, made, tmp_path):
    shutil.copytree(made, tmp_path / "part")
    part = tmp_path / "part"
    (gone,) = manifest.load(part)["one-layer"].of("lora", layer=3)
    gone.run.path.unlink()
    code, out, err = experiment("one-layer", "--dry-run", "--out", part)
    assert code == 0 and "3 runs, 1 to do" in out
    assert "to do  one-layer: lora:layers=3 seed 0" in out
    code, out, err = experiment("one-layer", "--out", part)
    assert code == 0, err
    assert "[1/1] one-layer: lora seed 0 layer=3: CE" in out
    again = read(gone.run.path)
    assert again.end["ce_full"] == gone.run.end["ce_full"]


def test_what_another_version_made_is_not_taken_for_done(experiment, made, tmp_path):
    for path in made.glob("*.json*"):
        shutil.copy(path, tmp_path)
    run = manifest.load(tmp_path)["one-layer"].of("lora", layer=3)[0].run
    text = run.path.read_text()
    run.path.write_text(text.replace(json.dumps(run.header["versions"]["torch"]), '"1.0"'))
    code, _, err = experiment("one-layer", "--out", tmp_path)
    assert code == 2 and "made with another torch; --fresh runs it again" in err


def test_a_run_with_other_settings_is_not_taken_for_the_plain_one(experiment, made, tmp_path):
    """What `compare --set lora.clip=2` has left in the folder has the same label."""
    for path in made.glob("*.json*"):
        shutil.copy(path, tmp_path)
    run = manifest.load(tmp_path)["one-layer"].of("lora", layer=3)[0].run
    assert run.header["sets"] == []
    run.path.write_text(run.path.read_text().replace('"sets": []', '"sets": ["lora.clip=2"]'))
    code, out, err = experiment("one-layer", "--dry-run", "--out", tmp_path)
    assert code == 0 and "3 runs, 1 to do" in out, err


def test_a_second_stage_goes_on_from_the_first(made):
    both = manifest.load(made)["additivity"]
    for first, then in [("lora", "lora"), ("lora", "e2e"), ("e2e", "lora"), ("e2e", "e2e")]:
        for seed in (0, 1):
            one = next(e.run for e in both.of(first, stage=1) if e.seed == seed)
            two = next(e.run for e in both.of(f"{first}+{then}", stage=2) if e.seed == seed)
            assert two.rows[0]["ce"] == pytest.approx(one.rows[-1]["ce"], abs=1e-5)
            assert two.header["seed"] != one.header["seed"]  # other batches


def test_each_seed_of_timing_trains_its_own_sae(made):
    timing = manifest.load(made)["timing"]
    trainings = {entry.seed: entry.run for entry in timing.of("mse")}
    assert len({run.end["ce_full"][0] for run in trainings.values()}) == 2
    for entry in timing.of("lora"):
        assert entry.run.header["sae"]["run"] == trainings[entry.seed].name
        assert entry.run.header["sae"]["share"] == entry.at["share"]
    for entry in timing.of("e2e"):  # from the same random SAE, on the same batches
        training = trainings[entry.seed].header
        assert entry.run.header["sae"]["sha256"] == training["sae"]["sha256"]
        assert entry.run.header["seed"] == training["seed"]


def test_measurements_agree_with_the_records(made):
    found = manifest.load(made)
    runs = {entry.run.name: entry.run for entry in found["timing"].entries if entry.run}
    for entry in found["no-sae"].entries:
        run, values = runs[entry.measure["of"]], entry.measure["values"]
        assert values["ce_clean"] == pytest.approx(run.header["ce_full_clean"], abs=1e-5)
        assert values["ce_spliced"] == pytest.approx(run.header["ce_full_spliced"], abs=1e-5)
        assert values["ce_adapted"] == pytest.approx(run.end["ce_full"], abs=1e-5)
        assert values["ce_without_sae"] != values["ce_clean"]
    for entry in found["token-loss"].entries:
        run, values = runs[entry.measure["of"]], entry.measure["values"]
        counted = sum(values["improved"]) + sum(values["degraded"])
        assert counted + values["below"] + values["above"] == values["n_tokens"]
        assert values["ce_adapted"] == pytest.approx(fmean(run.end["ce_full"]), abs=1e-4)
    for entry in found["distance"].entries:
        values = entry.measure["values"]
        assert values["layers"] == [1, 2, 3]
        for column in ("l2", "cosine"):
            pairs = zip(values["adapted"][column], values["spliced"][column], strict=True)
            change = [after - before for after, before in pairs]
            assert change == pytest.approx(values["difference"][column], abs=1e-6)


def test_wrong_names_are_one_line(command):
    code, _, err = command("experiment", "timming")
    assert code == 2 and "did you mean 'timing'?" in err
    code, _, err = command("experiment", "timing", "--scale", "ful")
    assert code == 2 and "did you mean 'full'?" in err
    code, _, err = command("experiment", "timing-llama")
    assert code == 2 and "only with --scale full" in err


def test_the_full_scale_is_the_papers_own():
    assert FULL.spec.steps * FULL.spec.seq_len * FULL.spec.batch_size == 15_360_000
    assert [job.at["rank"] for job in plans.jobs("rank", "full")][::2] == [1, 4, 16, 64, 256]
    fixed = [job for job in plans.jobs("rank", "full") if job.at["alpha"] == "fixed"]
    assert all("alpha=32" in job.label for job in fixed)
    assert [job.at["saes"] for job in plans.jobs("multi-sae", "full")][::3] == [
        1,
        2,
        3,
        5,
        7,
        10,
        15,
    ]
    for name in plans.expanded(["all"], "full"):
        for job in plans.jobs(name, "full"):
            for sae, site in zip(job.spec.saes, job.spec.sites, strict=True):
                if sae.startswith("saelens:"):
                    _, _, part = sae_sources.split(sae)  # raises where there is no such SAE
                    block = site.split(".")[1]
                    assert part.startswith((f"layer_{block}/", f"l{block}r_"))  # its own block
