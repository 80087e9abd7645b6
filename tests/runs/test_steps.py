"""`steps=` in a label: a run's own number of steps, wherever runs are made, found or named."""

from dataclasses import asdict, replace

import pytest

from analysis.records.comparison import load as comparisons
from analysis.tables.notes import budget
from bench.config.method import MethodRequest, load
from bench.config.spec import Spec
from bench.errors import Usage
from bench.experiments.plans import Job
from bench.experiments.pool import Pool
from bench.experiments.times import Times
from bench.io.record import read
from bench.runs import compare
from tests.helpers import records


@pytest.mark.parametrize(
    ("label", "steps"),
    [
        ("lora", 16),
        ("lora:steps=64", 64),
        ("lora:steps=64:rank=4", 64),
        ("lora:steps=64:steps=32", 32),
        ("mse:steps=4x", 64),
        ("mse:steps=2.5x", 40),
        ("mse:steps=0.3x", 5),
        ("mse:steps=0.001x", 1),
    ],
)
def test_a_label_says_how_long_its_run_is(label, steps):
    asked, spec = MethodRequest(label), Spec(steps=16)
    assert asked.spec_of(spec) == replace(spec, steps=steps)
    assert "steps" not in load(asked).settings and "steps" not in asked.fields


def test_set_is_for_all_labels_without_steps_of_their_own():
    sets = ("lora.steps=2x", "lora.rank=4")
    assert MethodRequest("lora", sets).spec_of(Spec(steps=8)).steps == 16
    assert MethodRequest("lora:steps=3", sets).spec_of(Spec(steps=8)).steps == 3
    assert load(MethodRequest("lora", sets)).settings["rank"] == 4


@pytest.mark.parametrize(
    "steps", ["0", "-1", "x", "", "2.5", "0x", "-2x", "nanx", "infx", "1e999x", "many"]
)
def test_wrong_steps_are_one_line(steps, bench, tmp_path):
    with pytest.raises(Usage, match=f"^'lora:steps={steps}': steps '{steps}': expected a whole"):
        MethodRequest(f"lora:steps={steps}").spec_of(Spec())
    if steps in ("0", "x", "-2x"):
        code, _, err = bench("--methods", f"lora:steps={steps}", "--out", tmp_path)
        assert code == 2 and err.count("\n") == 1 and "a factor such as 4x" in err


def test_runs_of_several_lengths(bench, command, tmp_path, monkeypatch):
    call = ("--methods", "lora,lora:steps=2,mse:steps=2x", "--out", tmp_path)
    code, out, err = bench(*call)
    assert code == 0 and "up to 3 runs of 2 to 8 steps" in out, err
    runs = {run.label: run for run in map(read, tmp_path.glob("*.jsonl")) if not run.header["seed"]}
    lengths = {"lora": 4, "lora:steps=2": 2, "mse:steps=2x": 8}
    for label, steps in lengths.items():
        assert runs[label].header["spec"]["steps"] == runs[label].rows[-1]["step"] == steps
    assert runs["lora"].name != runs["lora:steps=2"].name
    assert command("verify", tmp_path)[0] == 0
    (comparison,) = comparisons(tmp_path, [run.name for run in runs.values()])
    assert [*comparison.trained] == [*lengths] and " 2 to 8 steps " in budget(comparison)
    monkeypatch.setattr(compare, "run_all", None)
    code, out, _ = bench(*call)
    assert code == 0 and "nothing to do: 4 of 4" in out


def test_a_lock_is_of_one_length():
    one, other = load(MethodRequest("lora")), load(MethodRequest("lora:steps=2"))
    assert compare.lock_key(one, Spec(), 0) != compare.lock_key(other, Spec(), 0)
    assert compare.lock_key(one, Spec(steps=2), 0) == compare.lock_key(other, Spec(), 0)


def test_a_race_has_no_steps_of_its_own(small, tmp_path):
    code, _, err = small("speed", "--methods", "lora:steps=2", "--out", tmp_path, sae="fresh")
    assert code == 2 and "--pairs says how many" in err and err.count("\n") == 1


def test_an_experiment_finds_a_run_by_its_own_length(tmp_path):
    job = Job("lora", "lora:steps=2x", Spec(), 0)
    recorded = {"label": job.label, "spec": {**asdict(Spec()), "steps": 32}}
    records.write(tmp_path, run := records.make("lora", **recorded))
    pool = Pool(tmp_path, "laptop")
    assert pool.find(job) == run.name
    assert pool.find(replace(job, label="lora:steps=3x")) is None
    assert Times({32: 40.0}).of([job]) == "about 40 s"


def of_length(steps, method="lora", seed=0, **header):
    spec = {**records.make().header["spec"], "steps": steps}
    return records.make(method, seed, spec=spec, **header)


def test_runs_of_one_label_and_several_lengths_are_told_apart(tmp_path):
    both = [of_length(16), of_length(64, seed=7), of_length(64, "e2e"), of_length(16, "none")]
    both.append(of_length(64, "none", seed=7))
    (comparison,) = comparisons(records.write(tmp_path, *both))
    assert [*comparison.runs] == ["none", "lora:steps=16", "lora:steps=64", "e2e"]
    assert "16 to 64 steps" in budget(comparison)


def test_the_reference_takes_no_steps(tmp_path):
    records.write(tmp_path, of_length(16, "none"), of_length(64))
    (comparison,) = comparisons(tmp_path)
    assert " · 64 steps · " in budget(comparison)


def test_a_factor_of_two_specs_is_told_apart(tmp_path):
    both = [of_length(steps, label="lora:steps=4x", config={"lr": 1.0}) for steps in (64, 256)]
    other = both[1].path.with_name("later.jsonl")
    records.write(tmp_path, both[0])
    records.write(tmp_path, replace(both[1], path=other))
    (comparison,) = comparisons(tmp_path)
    assert {*comparison.runs} == {"lora:steps=4x,steps=64", "lora:steps=4x,steps=256"}


def test_saes_trained_for_several_lengths_are_no_one_recipe(tmp_path):
    for seed, steps in enumerate((16, 64)):
        name = f"mse-{steps:08x}"
        trained = of_length(steps, "mse", label=name, sae={"source": "fresh", "sha256": "f"})
        records.write(tmp_path, replace(trained, path=tmp_path / f"{name}.jsonl"))
        sae = {"source": "own", "sha256": str(steps), "run": name, "share": 1.0}
        run = of_length(16, "lora", seed, sae=sae)
        records.write(tmp_path, replace(run, path=tmp_path / f"lora-{steps:08x}.jsonl"))
    assert len(comparisons(tmp_path)) == 2
