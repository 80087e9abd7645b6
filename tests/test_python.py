"""`import splicebench`: what is held in Python gives what its files give on the command line."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FunctionType

import pandas
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import methods.lora
import splicebench as sb
from bench.errors import Fault, Rejected, Usage
from bench.loading import models
from splicebench import given
from tests import conftest
from tests.helpers import forked, records, tiny
from tests.helpers.forked import until
from tests.test_transcoders import SITE, transcoder

FIELDS = {name.replace("-", "_"): value for name, value in conftest.SMALL.items()}
OF_OWN = ("sae_width", "sae_k", "sae_tokens")
IN_NO_FILE = FunctionType((lambda: 0).__code__.replace(co_filename="<stdin>"), {})


@pytest.fixture
def compare(command, folder, monkeypatch, tmp_path):
    """`sb.compare` on the small setting, its command in this process."""

    def here(*words):
        code, _, err = command(*words)
        return sb.FAULTS.get(code, Fault)(err) if code else None

    def run(methods, **given):
        fields = FIELDS | {"text": folder / "text", "force": True, "out": tmp_path / "out"}
        if "sae" in given:
            fields = {k: v for k, v in fields.items() if k not in OF_OWN}
        return sb.compare(methods, **({"model": folder / "model"} | fields | given))

    monkeypatch.setattr(sb, "_run", here)
    return run


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("bridged", [False, True])
def test_a_model_that_one_holds_is_written_as_it_is(family, bridged, tmp_path):
    model, tokenizer, tokens = tiny.hf_model(family), tiny.tokenizer(), tiny.windows(2)
    wanted = model(tokens).logits
    bridge = models.bridge(model, tokenizer) if bridged else None
    held = {"model": [bridge or model]}
    path = given.as_paths(held, tokenizer, tmp_path)["model"]
    again = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    assert torch.equal(again(tokens).logits, wanted)
    assert AutoTokenizer.from_pretrained(path).get_vocab() == tokenizer.get_vocab()
    # A bridge over it changes nothing of what it is; another weight or another tokenizer does.
    assert given.as_paths({"model": [model]}, tokenizer, tmp_path)["model"] == path
    other = tiny.tokenizer()
    other.add_special_tokens({"sep_token": "a"})
    assert given.as_paths(held, other, tmp_path)["model"] != path
    with torch.no_grad():
        next(iter(model.parameters())).mul_(0.5)
    assert given.as_paths(held, tokenizer, tmp_path)["model"] != path


def test_weights_that_were_processed_are_refused(tmp_path):
    model, tokenizer = tiny.hf_model("gpt2"), tiny.tokenizer()
    bridge = models.bridge(model, tokenizer, center_writing_weights=True)
    for held in (bridge, model):  # which processing changes in place
        with pytest.raises(Usage, match="processed"):
            given.as_paths({"model": [held]}, tokenizer, tmp_path)


def test_embeddings_that_were_untied_by_hand_are_refused(tmp_path):
    model = tiny.hf_model("gpt2")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1)
    with pytest.raises(Usage, match="config ties them"):
        given.as_paths({"model": [model]}, tiny.tokenizer(), tmp_path)


def test_a_model_runs_where_it_is():
    assert given.placed(tiny.hf_model("llama").to(torch.bfloat16)) == {
        "device": "cpu",
        "dtype": "bfloat16",
    }
    assert given.placed("a/path") == {}


def test_a_model_and_saes_that_one_holds(compare, tmp_path):
    sae, names = tiny.sae()[0], ["method", "ce", "kl"]
    with torch.no_grad():
        sae.W_dec.data = sae.W_dec.data.T.contiguous().T  # as some loaders give it
    held = compare("lora:rank=2", sae=sae, model=tiny.hf_model("llama"), tokenizer=tiny.tokenizer())
    sae.save_model(tmp_path / "sae")
    saved = compare("lora:rank=2", sae=tmp_path / "sae", out=tmp_path / "saved")
    assert held.frame()[names].equals(saved.frame()[names])
    assert [path.name[:4] for path in sorted((tmp_path / "out" / "given").iterdir())] == [
        "mode",
        "sae-",
    ]
    site = "blocks.1.hook_resid_post+blocks.2.hook_resid_post"
    two = compare("none", sae=[sae, tmp_path / "sae"], site=site)
    spec = two.runs[0].header["spec"]
    assert spec["sae"].endswith(f"+{tmp_path / 'sae'}") and "/given/sae-" in spec["sae"]


def test_a_transcoder_that_one_holds(compare, tmp_path):
    """Its two points are its site; what is held gives what its folder gives."""
    one = transcoder("skip_transcoder")
    held = compare("e2e", sae=one, site=SITE)
    one.save_model(tmp_path / "lent")
    saved = compare("e2e", sae=tmp_path / "lent", site=SITE, out=tmp_path / "saved")
    (run,) = [run for run in held.runs if run.header["method"] == "e2e"]
    assert run.header["sae"]["kind"] == "skip_transcoder" and run.header["spec"]["site"] == SITE
    assert held.frame()[["method", "ce", "kl"]].equals(saved.frame()[["method", "ce", "kl"]])


def test_what_a_comparison_gives(compare, tmp_path, command, capfd):
    found = compare(["lora:rank=2", methods.lora.train], seeds=range(2))
    assert found.frame().method.tolist() == ["none", "lora:rank=2", "lora"]
    assert list(found.frame(of="run").groupby("method").size()) == [2, 2, 1]
    curves = found.frame(of="evaluation")
    last = curves[curves.step == 4].set_index("run")
    for run in found.runs:
        if run.header["method"] != "none":
            assert last.loc[run.name, "kl"] == run.rows[-1]["kl"]
    assert isinstance(curves, pandas.DataFrame) and not found.failed
    assert found.table("latex").startswith(r"\begin{tabular}")
    assert found.figure().axes and repr(found) == found.table()
    read = sb.read(tmp_path / "out")
    assert read.table() == found.table()
    capfd.readouterr()
    for kind in ("csv", "markdown"):
        printed = command("analysis", tmp_path / "out", "--format", kind)[1]
        assert printed.rstrip("\n") == read.table(kind)
    # Of what lies in the folder it gives what was asked for.
    assert compare(methods.lora).frame().method.tolist() == ["none", "lora"]


def test_a_run_that_fails_is_named(compare):
    (name,) = compare("mse, lora:lr=1e30").failed
    assert name.startswith("lora")


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ({"methods": "lorra"}, "unknown method 'lorra'"),
        ({"methods": [len]}, "a method is <built-in function len>"),
        ({"methods": [IN_NO_FILE]}, "'<lambda>' is in no file"),
        ({"step": 4}, "unknown field of the spec 'step'"),
        ({"steps": "4"}, "steps='4': expected int"),
        ({"cache_clean": 1}, "cache_clean=1: expected bool"),
        ({"name": "x"}, "unknown field of the spec 'name'"),
        ({"model": 3}, "model is a int"),
        ({"seeds": -1}, "--seeds '-1'"),
        ({"seeds": ()}, "--seeds ''"),
        ({"step": 4, "model": tiny.hf_model("llama")}, "unknown field of the spec 'step'"),
        ({"sae": torch.nn.Linear(2, 2)}, "sae is a Linear"),
        ({"model": "no/folder", "tokenizer": object()}, "tokenizer: only with"),
        ({"model": "no", "sae": tiny.sae()[0], "tokenizer": object()}, "tokenizer: only with"),
        ({"model": tiny.hf_model("llama")}, "expected its tokenizer as well"),
    ],
)
def test_a_call_that_is_wrong_is_one_line(call, line, tmp_path):
    with pytest.raises(Usage) as raised:
        sb.compare(out=tmp_path / "out", **call)
    assert line in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(Rejected, match="no records"):
        sb.read(tmp_path)
    with pytest.raises(Usage, match="at least one folder"):
        sb.read()
    records.write(tmp_path, records.make("lora", gains=[0.1, 0.2, 0.1, 0.2]))
    with pytest.raises(Usage, match="figure 1: expected 0 to 0"):
        sb.read(tmp_path).figure(1)
    with pytest.raises(Usage, match="unknown row 'epoch'"):
        sb.read(tmp_path).frame(of="epoch")


@pytest.fixture
def script(folder, tmp_path):
    """Start a script that calls `sb.compare` as users do, without a guard."""
    started = []

    def start(**changes):
        fields = {**FIELDS, "model": str(folder / "model"), "text": str(folder / "text"), **changes}
        call = f"sb.compare('lora', out={str(tmp_path / 'out')!r}, force=True, **{fields})"
        path = tmp_path / "script.py"
        path.write_text(f"import splicebench as sb\nprint('begun')\n{call}\n", encoding="utf-8")
        settings = {
            **os.environ,
            "SPLICEBENCH_CACHE": str(folder / "cache"),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        place = {"env": settings, "cwd": tmp_path, "start_new_session": True}
        command, hears = [sys.executable, path], forked.hear_ctrl_c
        started.append(subprocess.Popen(command, preexec_fn=hears, **pipes, **place))
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):  # its whole group has ended
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.runs
def test_a_script_without_a_guard_starts_once(script, tmp_path):
    out, err = (process := script()).communicate(timeout=240)
    assert process.returncode == 0 and err == ""
    assert out.count("begun") == 1 and "written in " in out
    (run,) = [run for run in sb.read(tmp_path / "out").runs if run.header["method"] == "lora"]
    assert run.status == "finished" and run.header["command"].startswith("python -m bench compare")


@pytest.mark.runs
def test_ctrl_c_stops_the_runs_too(script, tmp_path):
    process = script(steps=100_000)
    until(lambda: list((tmp_path / "out").glob("lora-*.jsonl")))
    process.send_signal(signal.SIGINT)  # to it alone, as a notebook's kernel may get it
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0 and err.rstrip().endswith("KeyboardInterrupt")
    (run,) = [run for run in sb.read(tmp_path / "out").runs if run.header["method"] == "lora"]
    assert run.status == "interrupted"
