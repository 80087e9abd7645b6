"""`python -m bench speed`: both sides take the same steps; what cannot be compared is refused."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy
import pytest
import torch

pytest.importorskip("peft", reason="pip install 'splicebench[speed]'")

from bench import devices
from bench.config.method import MethodRequest, load
from bench.config.spec import block_of
from bench.config.specs import SPECS, named
from bench.errors import Rejected, RunFailed, Unavailable
from bench.harness.signals import Interrupted, handling, leave
from bench.speed import floor, remote, report, speed
from bench.speed.ours import KINDS, RANGES, Ours
from bench.speed.plain import Plain
from bench.speed.sides import release
from bench.speed.speed import identity, plain_settings
from tests.conftest import SMALL
from tests.helpers import tiny


def asked(label):
    """A method as `speed` asks for it, with the paper's step size."""
    return MethodRequest(label, (f"{label.partition(':')[0]}.lr=5e-5",))


RANDOM = {"weights": "random", "text": "random"}

pytestmark = pytest.mark.runs


class Here:
    """A `Side` without a process of its own."""

    def __init__(self, name, *arguments):
        self.subject = {"Ours": Ours, "Plain": Plain}[name](*arguments)

    pid = os.getpid()

    def call(self, name, *arguments):
        return getattr(self.subject, name)(*arguments)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture(autouse=True)
def ctrl_c():
    """As in a terminal: what a shell starts in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    """The rate of this machine's products is of no account here."""
    monkeypatch.setattr(floor, "SIZES", {"cpu": 256})


@pytest.fixture
def here(monkeypatch):
    """Both sides run in this process; no time goes into a large product or the profiler."""
    monkeypatch.setattr(speed, "Side", Here)
    monkeypatch.setattr(floor, "SIZES", {"cpu": 64})
    monkeypatch.setattr(Ours, "profile", lambda self: {"share_of_step": {"clean": 1.0}})


def spec_on(folder, model="model", **changes):
    fields = {name.replace("-", "_"): value for name, value in SMALL.items()}
    inputs = {"model": str(folder / model), "text": str(folder / "text"), "sae": "fresh"}
    return named("smollm2-135m", **{**fields, **inputs, **changes})


def both(spec, label, plain_dtype=None):
    """The two sides, ready to step."""
    ours = Ours(spec, spec.model, asked(label), steps=6)
    start = ours.start()
    settings = plain_settings(spec, load(asked(label)), start, plain_dtype or spec.dtype)
    plain = Plain(spec.model, start["sae"], block_of(spec.site), settings, spec.dtype)
    plain.start(start["weights"])
    return ours, plain


def largest_difference(ours, plain, n_steps=3):
    """Of the losses, relative to the plain one."""
    found = []
    for _ in range(n_steps):
        mine = ours.step()
        theirs = plain.step(mine["tokens"])
        found.append(abs(mine["loss"] / theirs["loss"] - 1))
    return max(found)


@pytest.mark.parametrize("label", ["lora:rank=4", "lora:rank=4:layers=all:alpha=7", "e2e"])
@pytest.mark.parametrize("cached", [False, True])
def test_both_sides_take_the_same_steps(label, cached, folder, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(folder / "cache"))
    spec = spec_on(folder, cache_clean=cached)
    ours, plain = both(spec, label)
    assert cached or ours.prepare() is None
    assert largest_difference(ours, plain) < 1e-5
    mine = ours.step()
    assert isinstance(mine["tokens"], numpy.ndarray) and mine["seconds"] > 0
    assert mine["device_peak_bytes"] > 0
    for shares, parts in zip(ours.profile().values(), (RANGES, KINDS), strict=True):
        assert set(shares) == {*parts, "rest"}
        assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0


@pytest.mark.parametrize(
    ("label", "dtype", "plain_dtype"),
    [
        ("lora:rank=4", "bfloat16", "bfloat16"),
        ("e2e", "bfloat16", "bfloat16"),
        ("lora:rank=4", "bfloat16", "float32"),
        ("lora:rank=4", "float32", "bfloat16"),
    ],
)
def test_the_lm_in_bfloat16(label, dtype, plain_dtype, folder, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(folder / "cache"))
    ours, plain = both(spec_on(folder, dtype=dtype), label, plain_dtype)
    assert largest_difference(ours, plain) < report.TOLERANCE["coarse"]
    assert plain.reference.model.get_input_embeddings().weight.dtype == getattr(torch, plain_dtype)
    assert {p.dtype for p in plain.reference.parameters} == {torch.float32}
    sides = {"ours": ours.setting(), "plain": plain.setting()}
    assert [told["dtype"] for told in sides.values()] == [dtype, plain_dtype]
    assert report.tolerance(sides) == 5e-2


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_random_weights_are_the_same_on_both_sides(family, tmp_path, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))
    tiny.hf_model(family).config.save_pretrained(tmp_path / "model")
    ours, plain = both(spec_on(tmp_path, **RANDOM), "lora:rank=4")
    assert largest_difference(ours, plain) < 1e-5
    # Drawn in bfloat16, as float32 would draw other numbers.
    ours, plain = both(spec_on(tmp_path, dtype="bfloat16", **RANDOM), "lora:rank=4", "float32")
    weight = plain.reference.model.get_input_embeddings().weight
    assert weight.dtype == torch.float32 and torch.equal(weight, weight.bfloat16().float())
    assert largest_difference(ours, plain) < report.TOLERANCE["coarse"]


def test_an_accelerator_is_asked_no_more_than_it_can_tell(folder, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(folder / "cache"))
    formats = []
    monkeypatch.setattr(devices, "set_precision", lambda *given: formats.append(given))
    ours, plain = both(spec_on(folder, dtype="bfloat16"), "lora:rank=4", "float32")
    assert formats == [("cpu", "bfloat16")] * 2  # TF32 or not: the same for both
    ours.device = plain.device = torch.device("cuda")
    assert ours.peak() is plain.peak() is None and not ours.profile()
    monkeypatch.setattr(devices, "float32_products", lambda device: "TF32")
    assert ours.setting()["tf32"] and plain.setting()["tf32"]
    assert report.coarser({"ours": ours.setting(), "plain": plain.setting()}) == [
        "TF32",
        "bfloat16",
    ]
    emptied = []
    for kind in ("cuda", "mps"):
        monkeypatch.setattr(getattr(torch, kind), "empty_cache", lambda k=kind: emptied.append(k))
        release(torch.device(kind))
    release(torch.device("cpu"))
    assert emptied == ["cuda", "mps"]


def test_a_race_of_two_processes(small, tmp_path):
    arguments = ("--methods", "lora:rank=4", "--pairs", "2", "--out", str(tmp_path))
    code, out, err = small("speed", *arguments, sae="fresh")
    assert (code, err) == (0, "")
    for words in ("warm-up", "our time: clean", "floor:", "harness:", "may differ by 1e-04"):
        assert words in out
    for words in ("2 pairs: about ", "to be believed: other processes took"):
        assert words in out or sys.platform != "linux"
    (path,) = tmp_path.glob("speed-*.json")
    result = json.loads(path.read_text())
    assert len(result["pairs"]) == 2 and result["largest_difference"] < 1e-4
    # Where a random SAE is trained end to end, larger steps take the losses apart in a few pairs.
    assert result["config"]["lr"] == 5e-9 and result["floor"]["times"] > 0
    assert result["spec"]["seq_len"] == SMALL["seq-len"] and "note" not in result
    assert min(result["device_peak_bytes"].values()) > 0 and min(result["peak_bytes"].values()) > 0
    told = {"device": "cpu", "dtype": "float32", "tf32": False}
    assert result["sides"] == {"ours": {**told, "micro_batch": 2}, "plain": told}


def test_a_race_that_is_broken_off_keeps_its_pairs(small, here, tmp_path, monkeypatch):
    arguments = ("--methods", "lora:rank=4", "--pairs", "3", "--out", tmp_path)
    step, fresh = Plain.step, "was broken off: this is a fresh one"
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        seen = []

        def signal_in_the_third_pair(self, tokens, number=number, seen=seen):
            seen.append([json.loads(path.read_text()) for path in tmp_path.glob("*.partial.json")])
            if len(seen) == 4:
                os.kill(os.getpid(), number)
            return step(self, tokens)

        with monkeypatch.context() as patch:
            patch.setattr(Plain, "step", signal_in_the_third_pair)
            found, out, err = small("speed", *arguments)
        assert found == code and "to race anew: " in err and "after 2 of 3 pairs" in out
        assert (fresh in out) == (code == 143)
        (path,) = tmp_path.glob("speed-*.json")
        kept = json.loads(path.read_text())
        assert len(seen) == 4 and seen[3] == [kept], "what a kill would have left"
        assert len(kept["pairs"]) == 2 and kept["n_pairs"] == {"done": 2, "asked": 3}
        assert kept["ratio"] > 0 and kept["matmul"] and "floor" not in kept

    found, out, err = small("speed", *arguments)
    assert (found, err) == (0, "") and fresh in out
    (path,) = tmp_path.glob("speed-*.json")
    whole = json.loads(path.read_text())
    assert "partial" not in path.name and whole["n_pairs"] == {"done": 3, "asked": 3}
    assert {*kept} < {*whole} and whole["pairs"][0]["ours"] != kept["pairs"][0]["ours"]


@pytest.mark.parametrize(
    ("given", "sae"),
    [
        ((), "fresh"),
        (("--sae", "own"), "own"),
        (("--spec", "gemma-2-2b-topk"), "fresh"),
        (("--spec", "gpt2-small"), SPECS["gpt2-small"].sae),
        (("--spec", "gpt2-small", "--weights", "random"), "fresh"),
    ],
)
def test_no_sae_is_trained_unless_it_is_asked_for(given, sae, command, monkeypatch):
    raced = []
    monkeypatch.setattr(speed, "speed", lambda spec, *rest: raced.append((spec, rest[0])))
    assert command("speed", *given)[0] == 0
    ((spec, methods),) = raced
    assert spec.sae == sae and [asked.label for asked in methods] == ["lora:rank=64", "e2e"]


def test_random_weights_and_the_best_batch(command, here, monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "WORTH_IT", 100)  # so that two batches are tried
    tiny.write_model(tmp_path / "model", "gemma2")
    changes = {**SMALL, "model": tmp_path / "model", "dtype": "bfloat16", "weights": "random"}
    flags = [item for name, value in changes.items() for item in (f"--{name}", value)]
    given = ("--methods", "lora:rank=4", "--pairs", "1", "--best-batch", "--out", tmp_path)
    given += ("--spec", "gemma-2-2b-topk", "--plain-dtype", "float32")
    code, out, err = command("speed", *given, *flags)
    assert (code, err) == (0, "")
    for words in (report.RANDOM, "ours bfloat16, plain float32", "tokens/s ours", "best: "):
        assert words in out
    (path,) = tmp_path.glob("speed-*.json")
    result = json.loads(path.read_text())
    assert result["note"] == report.RANDOM and result["spec"]["sae"] == "fresh"
    assert result["tolerance"] == 5e-2 > result["largest_difference"]
    best = result["best_batch"]
    for one in ("ours", "plain"):
        assert [tried["batch"] for tried in best[one]["tried"]] == [1, 2]
        assert best[one]["tokens_per_second"] == max(
            tried["tokens_per_second"] for tried in best[one]["tried"]
        )
    assert best["ratio"] > 0 and best["ours"]["tried"][1]["micro_batch"] == 2


def test_losses_that_differ_end_with_5(small, here, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "TOLERANCE", {"float32": -1.0, "coarse": -1.0})
    arguments = ("--methods", "lora:rank=4", "--pairs", "1", "--cache-clean", "--out", tmp_path)
    code, out, err = small("speed", *arguments, seq_len=10)
    assert "filling the cache of the clean side took" in out
    assert code == 5 and err.startswith("bench: the losses differ by up to")
    assert err.count("\n") == 1 and list(tmp_path.glob("speed-*.json"))


def test_a_loss_that_is_not_finite_ends_with_5(small, here, tmp_path, monkeypatch):
    wrong = {"loss": float("nan"), "seconds": 1.0, "device_peak_bytes": 1}
    monkeypatch.setattr(Plain, "step", lambda self, tokens: wrong)
    code, _, err = small("speed", "--methods", "e2e", "--out", tmp_path, sae="fresh")
    assert code == 5 and "a loss is not finite" in err and not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), Unavailable, "on the side 'Plain'"),
        (Rejected("no such SAE"), Rejected, "no such SAE"),
        (ValueError("a bug"), RunFailed, "ValueError: a bug"),
    ],
)
def test_a_side_that_fails_says_so(error, kind, words, monkeypatch):
    class Failing:
        def __init__(self):
            raise error

    class Connection(list):
        send = list.append

    sent = Connection()
    monkeypatch.setattr("bench.speed.plain.Plain", Failing)
    remote.serve(sent, "Plain", ())
    (fault,) = sent
    assert type(fault) is kind and words in str(fault)


@pytest.fixture
def forked(monkeypatch):
    """A side is forked from this process, with what is planted in it."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: fork)


def test_a_side_that_dies_says_so(forked, monkeypatch):
    monkeypatch.setattr(remote, "serve", lambda *given: os._exit(3))
    died = pytest.raises(RunFailed, match=r"ended by itself \(exit code 3\)")
    with died, remote.Side("Plain") as side:
        side.call("step")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_sides_at_once(number, forked, monkeypatch):
    """Ctrl-C reaches a side as well, which leaves it to the command."""

    class Slow:
        def start(self):
            pass

        def step(self):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getppid(), number)
            time.sleep(60)

    monkeypatch.setattr("bench.speed.plain.Plain", Slow)
    began = time.perf_counter()
    with handling(leave), pytest.raises(Interrupted), remote.Side("Plain") as side:
        side.call("start")
        side.call("step")
    assert time.perf_counter() - began < 5
    with pytest.raises(ProcessLookupError):
        os.kill(side.pid, 0)


def test_a_side_imports_nothing_of_the_other_and_the_command_neither():
    """What is imported before a step is no longer counted as its memory."""
    for module, absent in (("plain", "bench.problem"), ("speed", "transformers")):
        code = f"import sys, bench.speed.{module}; sys.exit({absent!r} in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_another_format_of_the_plain_side_is_another_file():
    result = {"label": "lora", "spec": {"dtype": "bfloat16"}, "matmul": "TF32"}
    same, other = ({"plain": {"dtype": dtype}} for dtype in ("bfloat16", "float32"))
    assert identity({**result, "sides": same}) == ["lora", {"dtype": "bfloat16"}, "TF32"]
    assert identity({**result, "sides": other})[3:] == ["float32"]


SPECIAL = ("--spliced", "not-special", "--scored", "not-special")
BOS = ("--prepend-bos", "true")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--methods", "mse"), 2, "no plain step of 'mse'"),
        (("--methods", "lora:dropout=0.1"), 2, "dropout and losses other than kl"),
        (("--methods", "e2e:loss=kl+mse"), 2, "dropout and losses other than kl"),
        (("--pairs", "0"), 2, "--pairs must be at least 1"),
        (("--site", "blocks.1.hook_mlp_out"), 2, "expected one site after a block"),
        (("--spliced", "all"), 2, "the same positions spliced and scored"),
        (("--plain-dtype", "float16"), 2, "invalid choice: 'float16'"),
        (("--device", "cuda"), 4, "--device cuda: not available here; expected cpu"),
        (("--weights", "random", "--sae", "own"), 2, "expected fresh, or an SAE that is there"),
        (("--best-batch", "--cache-clean"), 2, "--best-batch: not with --cache-clean"),
        (SPECIAL, 2, "not-special only with a BOS put first"),
        (
            (*SPECIAL, *BOS, "--weights", "random", "--text", "random"),
            2,
            "some of which are special",
        ),
        (("--model", "package:gemma"), 2, "did you mean 'gemma3-270m'"),
        (("--site", "blocks.9.hook_resid_post"), 2, "the model has blocks 0 to 3"),
    ],
)
def test_bad_input(arguments, code, words, small, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "available", lambda: ["cpu"])
    found, _, err = small("speed", "--out", tmp_path, *arguments, sae="fresh")
    assert found == code and words in err and err.count("\n") == 1


def test_gpt2_is_refused(small, tmp_path):
    model = tmp_path / "gpt2"
    tiny.hf_model("gpt2").save_pretrained(model)
    code, _, err = small("speed", "--out", tmp_path, "--model", model, sae="fresh")
    assert code == 3 and "for Llama and Gemma, not gpt2" in err
