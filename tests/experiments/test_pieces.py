"""`make gpu`: pieces that are skipped when done, a limit on the time, and a whole list of them."""

import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest

from bench.cli.parser import parser
from bench.config.specs import SPECS, flags_of
from bench.experiments import pieces
from bench.experiments.pieces import Piece, run_all
from bench.experiments.scales import SCALES
from bench.io.clock import read as read_clock
from results.gpu import run
from tests.helpers import forked, records

FILE = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"
SLOW = (
    "import pathlib, signal, sys, time\n"
    "def stop(*_): pathlib.Path(sys.argv[2]).touch(); sys.exit(143)\n"
    "signal.signal(signal.SIGTERM, stop)\n"
    "pathlib.Path(sys.argv[1]).touch()\n"
    "time.sleep(60)\n"
)


def fake(path, code=FILE, done=None, **settings):
    """A piece that makes a file, and is done when that is there."""
    words = [sys.executable, "-c", code, path, f"{path}-wrote"]
    return Piece(path.name, lambda: words, done or path.exists, **settings)


def test_what_is_done_is_skipped(tmp_path, capfd):
    (tmp_path / "a").touch()
    both = [fake(tmp_path / "a"), fake(tmp_path / "b")]
    assert run_all(both, 1) == 0
    out = capfd.readouterr().out
    assert "== b: python -c" in out and "== a" not in out and "2 of 2 pieces done\n" in out
    assert run_all(both, 1) == 0
    assert "==" not in capfd.readouterr().out


def test_one_that_fails_does_not_stop_the_others(tmp_path, capfd):
    broken = fake(tmp_path / "a", "raise SystemExit(5)")
    waits = fake(tmp_path / "c", waits_for=("a",))
    assert run_all([broken, fake(tmp_path / "b"), waits], 1) == 5
    out = capfd.readouterr().out
    assert "left: a (exit code 5)\nleft: c (waits for a)\n1 of 3 pieces done; these failed" in out
    assert (tmp_path / "b").exists() and not (tmp_path / "c").exists()


def test_at_the_limit_a_piece_is_asked_to_stop_and_has_the_time_to_write(tmp_path, capfd):
    started = read_clock()
    slow = fake(tmp_path / "a", SLOW, done=(tmp_path / "never").exists)
    assert run_all([slow, fake(tmp_path / "b")], 2 / 60) == 75
    assert 1 < read_clock().since(started).seconds < 20
    assert (tmp_path / "a-wrote").exists() and not (tmp_path / "b").exists()
    assert "0 of 2 pieces done; call it again" in capfd.readouterr().out


def test_one_that_hears_nothing_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "GRACE", 0.5)
    deaf = SLOW.replace("def stop(*_): ", "def stop(*_): return; ")
    started = read_clock()
    assert run_all([fake(tmp_path / "a", deaf, done=lambda: False)], 1 / 60) == 75
    assert read_clock().since(started).seconds < 20


def test_a_piece_that_begins_anew_waits_for_a_call_with_time_enough(tmp_path):
    long = fake(tmp_path / "b", minutes=6)
    assert run_all([fake(tmp_path / "a"), long], 5) == 75
    assert (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    assert run_all([long], 5) == 0  # the first of a call is begun all the same


def test_what_is_done_afterwards_counts(tmp_path):
    after = (tmp_path / "chosen").touch
    assert run_all([fake(tmp_path / "a", done=(tmp_path / "chosen").exists, after=after)], 1) == 0


def test_a_signal_is_handed_on(tmp_path, monkeypatch):
    slow = fake(tmp_path / "a", SLOW, done=lambda: False)
    monkeypatch.setattr(run, "rehearsal", lambda: [slow])
    pid = os.fork()
    if pid == 0:
        os._exit(run.main(["--rehearse"]))
    forked.until((tmp_path / "a").exists)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143
    assert (tmp_path / "a-wrote").exists()


@pytest.fixture(params=["on_gpu", "rehearsal"])
def listed(request, tmp_path, monkeypatch):
    """All pieces of a list, in a checkout where nothing was run."""
    monkeypatch.setattr(run, "ROOT", tmp_path)
    return request.param, list(getattr(run, request.param)())


def test_every_command_is_one_that_can_be_typed(listed):
    for piece in listed[1]:
        words = [str(word) for word in piece.command()]
        if words[2] == "bench":
            told = re.sub(r"--plain-dtype \S+|--best-batch", "", shlex.join(words[3:]))
            parser().parse_args(shlex.split(told))  # raises `Usage`
        else:
            assert words[1:3] == ["-m", "analysis"]


def test_the_list_is_complete(listed):
    which, made = listed
    names = [piece.name for piece in made]
    assert len(set(names)) == len(names)
    for model in ("smollm2", "gemma3"):
        scale = f"{'gpu' if which == 'on_gpu' else 'rehearsal'}-{model}"
        order = [f"sweep-sae-{scale}", f"sweep-methods-{scale}", f"timing {scale}"]
        order += [f"rivals {scale}"]
        assert [name for name in names if name in order] == order
        assert any(name.startswith(f"speed {model}") for name in names)
    assert names[-1].startswith("figures") and "shapes" in names
    assert {name for piece in made for name in piece.waits_for} <= set(names)


def test_nothing_is_done_where_nothing_was_run(listed):
    """But for figures, of which there are none to draw, and what an experiment says itself."""
    for piece in listed[1]:
        if not piece.name.startswith(("figures", "timing", "rivals")):
            assert not piece.done(), piece.name


def test_the_rehearsal_has_a_part_for_each_of_the_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    kinds = [
        {shlex.split(str(p.name))[0].replace("rehearsal", "gpu") for p in pieces()}
        for pieces in (run.on_gpu, run.rehearsal)
    ]
    assert kinds[0] == kinds[1]
    for piece in run.rehearsal():
        assert "cuda" not in [str(word) for word in piece.command()]


def test_a_sweep_chooses_and_says_so(tmp_path):
    out, path = tmp_path / "sweep", tmp_path / "sizes-gpu-smollm2.json"
    path.write_text(json.dumps({"sae": "lr=2e-3"}))
    grid = {"lora": ["lora:lr=1e-3", "lora:lr=4e-4"], "ridge": ["ridge:shrink=1"]}
    piece = run.sweep("sweep", out, "gpu-smollm2", {}, grid, 160, path)
    assert not piece.done()
    piece.after()  # stopped early: nothing is chosen
    assert json.loads(path.read_text()) == {"sae": "lr=2e-3"}
    for number, (label, gain) in enumerate(
        [("lora:lr=1e-3", 0.1), ("lora:lr=4e-4", 0.2), ("ridge:shrink=1", 0.01)]
    ):
        made = records.make(
            label.partition(":")[0], number, (0, gain), gains=[0.1] * 4, label=label
        )
        records.write(out, made)
    assert not piece.done()
    piece.after()
    chosen = {"sae": "lr=2e-3", "lora": "lr=4e-4", "ridge": "shrink=1"}
    assert json.loads(path.read_text()) == chosen and piece.done()


def test_flags_make_the_spec_that_was_meant():
    spec = SCALES["gpu-gemma3"]().spec
    words = flags_of(spec, {"steps": 160})
    given = vars(parser().parse_args(["compare", *words]))
    for field, value in vars(spec).items():
        if field != "name":
            told = given[field] if given[field] is not None else getattr(SPECS[spec.name], field)
            assert told == (160 if field == "steps" else value)


def test_a_race_is_kept_under_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    out, made = tmp_path / "speed", tmp_path / "runs" / "speed" / "small"
    piece = run.speed("small", out, "--pairs 1", "e2e", 0)
    assert not piece.done()
    made.mkdir(parents=True)
    (made / "speed-11111111.json").write_text("{}")
    piece.after()
    assert piece.done() and (out / "small.json").exists()
    assert not run.speed("small-too", out, "", "e2e", 0).done()


def test_figures_are_drawn_again_when_a_record_is_younger(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    piece = run.figures(tmp_path)
    assert piece.done()  # nothing there
    records.write(tmp_path / "sweep", records.make())
    assert not piece.done()
    table = Path(tmp_path / "sweep" / "table.txt")
    table.write_text("")
    assert piece.done()
    os.utime(table, (1, 1))
    assert not piece.done()
