"""`python -m bench speed`: both sides take the same steps; what cannot be compared is refused."""

import json

import numpy
import pytest

pytest.importorskip("peft", reason="pip install 'splicebench[speed]'")

from bench import speed as speed_module
from bench.method import entry
from bench.race import RANGES, Ours, Plain
from bench.spec import block_of
from bench.specs import named
from bench.speed import plain_settings
from tests import tiny
from tests.conftest import SMALL

SETS = ("lora.lr=5e-5", "e2e.lr=5e-5")


def spec_on(folder, **changes):
    fields = {name.replace("-", "_"): value for name, value in SMALL.items()}
    inputs = {"model": str(folder / "model"), "text": str(folder / "text"), "sae": "fresh"}
    return named("smollm2-135m", **fields, **inputs, **changes)


@pytest.mark.parametrize("label", ["lora:rank=4", "lora:rank=4:layers=all:alpha=7", "e2e"])
@pytest.mark.parametrize("cached", [False, True])
def test_both_sides_take_the_same_steps(label, cached, folder, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(folder / "cache"))
    spec = spec_on(folder, cache_clean=cached)
    ours = Ours(spec, spec.model, label, SETS, steps=6)
    assert cached or ours.prepare() is None
    begun = ours.start()
    settings = plain_settings(spec, entry(label, SETS), begun)
    plain = Plain(spec.model, begun["sae"], block_of(spec.site), settings)
    plain.start(begun["weights"])
    for _ in range(3):
        mine = ours.step()
        theirs = plain.step(mine["tokens"])
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert isinstance(mine["tokens"], numpy.ndarray) and mine["seconds"] > 0
    shares = ours.profile()
    assert set(shares) == {*RANGES, "rest"}
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0
    assert ours.floor()["operations"] > 0 and ours.overhead() > 0


def test_a_race_of_two_processes(small, tmp_path):
    arguments = ("--methods", "lora:rank=4", "--pairs", "2", "--out", str(tmp_path))
    code, out, err = small("speed", *arguments, sae="fresh")
    assert (code, err) == (0, "")
    for words in ("warm-up", "our time: clean", "floor:", "harness:"):
        assert words in out
    (path,) = tmp_path.glob("speed-*.json")
    result = json.loads(path.read_text())
    assert len(result["pairs"]) == 2 and result["largest_difference"] < 1e-4
    assert result["spec"]["seq_len"] == SMALL["seq-len"]


def test_losses_that_differ_end_with_5(small, tmp_path, monkeypatch):
    monkeypatch.setattr(speed_module, "TOLERANCE", -1.0)
    arguments = ("--methods", "lora:rank=4", "--pairs", "1", "--out", str(tmp_path))
    code, _, err = small("speed", *arguments, sae="fresh")
    assert code == 5 and err.startswith("bench: the losses differ by up to")
    assert err.count("\n") == 1 and list(tmp_path.glob("speed-*.json"))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--methods", "mse"), 2, "no plain step of 'mse'"),
        (("--methods", "lora:dropout=0.1"), 2, "dropout and losses other than kl"),
        (("--methods", "e2e:loss=kl+mse"), 2, "dropout and losses other than kl"),
        (("--pairs", "0"), 2, "--pairs must be at least 1"),
        (("--site", "blocks.1.hook_mlp_out"), 2, "expected one site after a block"),
        (("--spliced", "all"), 2, "the same positions spliced and scored"),
        (("--model", "package:gemma"), 2, "did you mean 'gemma3-270m'"),
        (("--site", "blocks.9.hook_resid_post"), 2, "the model has blocks 0 to 3"),
    ],
)
def test_bad_input(arguments, code, words, small, tmp_path):
    found, _, err = small("speed", "--out", tmp_path, *arguments, sae="fresh")
    assert found == code and words in err and err.count("\n") == 1


def test_gpt2_is_refused(small, tmp_path):
    model = tmp_path / "gpt2"
    tiny.hf_model("gpt2").save_pretrained(model)
    code, _, err = small("speed", "--out", tmp_path, "--model", model, sae="fresh")
    assert code == 3 and "for Llama and Gemma, not gpt2" in err
