"""`bench verify`: sound records pass, every kind of damage is told with its file and line."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import __version__
from bench.cli.commands import main
from bench.io.record import Writer, run_name
from tests.helpers.records import DOUBLING, make

ROOT = Path(__file__).parents[2]


@pytest.fixture
def verify(monkeypatch, capsys):
    """Run `python -m bench verify` in this process -> (exit code, stdout, lines of stderr)."""

    def run(*paths):
        monkeypatch.setattr(sys, "argv", ["bench", "verify", *map(str, paths)])
        code = main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return run


def sound(**header):
    """The lines of a finished record, as dicts."""
    shares = [0, 0.04, 0.08, 0.12, 0.16, 0.19, 0.20]
    run = make("lora", 0, shares, DOUBLING, gains=[0.1, 0.08, 0.06, 0.1], **header)
    return [run.header, *run.rows, run.end]


def named(header):
    """What the file of a record is called."""
    identity = [header[field] for field in ("method", "config", "spec", "seed")]
    return f"{run_name(*identity, header['sae']['sha256'])}.jsonl"


def texts(lines):
    return [json.dumps(line) + "\n" for line in lines]


def write(folder, lines, name=None):
    """Dicts, or texts with their newlines -> a record."""
    made = [line if isinstance(line, str) else texts([line])[0] for line in lines]
    path = folder / (name or named(json.loads(made[0])))
    path.write_text("".join(made), encoding="utf-8")
    return path


def test_the_published_results_are_sound(verify):
    code, out, err = verify(ROOT / "results")
    assert (code, err) == (0, [])
    n_records = len(list((ROOT / "results").rglob("*.jsonl")))
    assert out.startswith(f"verified {n_records} records (") and out.count("\n") == 1
    assert all(what in out for what in ("measurements", "manifests", "other JSON files"))


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from bench.cli.commands import main; code = main(); "
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'transformers'}; "
        "print(sorted(heavy & set(sys.modules))); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "verify", "results/compare"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def field(line, **changes):
    """The damage of a line's fields being others."""

    def damage(lines):
        lines[line - 1].update(changes)

    return damage


def without(line, name):
    """The damage of a line that lacks a field."""

    def damage(lines):
        del lines[line - 1][name]

    return damage


def raw(line, text):
    """The damage of a line being this text."""

    def damage(lines):
        lines[line - 1] = text

    return damage


def inserted(before, text):
    """The damage of a text between two lines."""

    def damage(lines):
        lines.insert(before - 1, text)

    return damage


def removed(line):
    """The damage of a line that is gone."""

    def damage(lines):
        del lines[line - 1]

    return damage


END = 9  # the header, seven rows
DAMAGE = [
    (raw(1, "{torn\n"), 1, "not a JSON line"),
    (raw(1, "[1]\n"), 1, "expected an object"),
    (field(1, schema=None), 1, "schema None"),
    (without(1, "seed"), 1, "no 'seed'"),
    (field(1, method=3), 1, "method 3, expected text"),
    (field(1, config=[]), 1, "config [], expected an object"),
    (field(1, spec="s"), 1, "spec 's', expected an object"),
    (field(1, sae=None), 1, "sae None, expected an object"),
    (field(1, seed="0"), 1, "seed '0', expected a whole number"),
    (field(1, seed=True), 1, "seed True, expected a whole number"),
    (field(1, ce_clean=None), 1, "ce_clean None, expected a number"),
    (field(1, ce_spliced="4"), 1, "ce_spliced '4', expected a number"),
    (field(1, ce_full_clean=3.0), 1, "ce_full_clean 3.0, expected a list of numbers"),
    (field(1, ce_full_spliced=[3.5, "x", 3.7, 3.6]), 1, "expected a list of numbers"),
    (field(1, ce_full_spliced=[3.5]), 1, "ce_full_spliced is of length 1, expected 4"),
    (field(1, ce_full_spliced=[3.5, None, 3.7, 3.6]), 1, "a null that 'nonfinite' does not name"),
    (field(1, sets="lora.rank=4"), 1, "sets 'lora.rank=4', expected a list"),
    (field(1, key=7), 1, "key 7, expected text"),
    (field(1, seed=1), 1, "its header makes it lora-"),
    (raw(4, "{torn\n"), 4, "not a JSON line"),
    (raw(4, "\n"), 4, "not a JSON line"),
    (raw(4, '"step"\n'), 4, "expected an object"),
    (raw(4, '{"step": 2, "ce": NaN}\n'), 4, "NaN is not a finite number"),
    (raw(4, '{"step": 2, "ce": -Infinity}\n'), 4, "-Infinity is not a finite number"),
    (raw(4, '{"step": 2, "ce": 1e999}\n'), 4, "1e999 is not a finite number"),
    (raw(4, '{"step": ' + "9" * 5000 + "}\n"), 4, "not a JSON line"),
    (without(4, "tokens"), 4, "no 'tokens'"),
    (field(4, step=2.0), 4, "step 2.0, expected a whole number"),
    (field(4, step=1), 4, "step 1, expected at least 2"),
    (field(4, step=0), 4, "step 0, expected at least 2"),
    (removed(2), 2, "the first row is of step 1, expected 0"),
    (field(4, ce=None), 4, "ce has a null that 'nonfinite' does not name"),
    (field(4, kl="0.2"), 4, "kl '0.2', expected a number or null"),
    (field(4, fvu_by_site=[0.1, None]), 4, "fvu_by_site has a null"),
    (field(4, ce=None, nonfinite=["ce"]), 4, "nonfinite ['ce'], expected an object"),
    (field(4, seconds=None, nonfinite={"seconds": "nan"}), 4, "seconds None, expected a number"),
    (field(4, seconds=0.5), 4, "seconds 0.5, expected at least 1.0"),
    (field(4, forwards=1), 4, "forwards 1, expected at least 2"),
    (field(4, backwards=0), 4, "backwards 0, expected at least 1"),
    (field(4, tokens=-4), 4, "tokens -4, expected at least 512"),
    (field(4, tokens=1.5), 4, "tokens 1.5, expected a whole number"),
    (field(2, block_forwards=-1), 2, "block_forwards -1, expected at least 0"),
    (field(2, block_backwards=4), 3, "block_backwards 1, expected at least 4"),
    (field(2, backward_tokens=4), 3, "backward_tokens 1, expected at least 4"),
    (field(2, evaluation_seconds=4), 3, "evaluation_seconds 1, expected at least 4"),
    (field(2, checkpoint_seconds=4), 3, "checkpoint_seconds 1, expected at least 4"),
    (field(2, suspended_seconds=4), 3, "suspended_seconds 1, expected at least 4"),
    (field(2, clock_jump_seconds="1"), 2, "clock_jump_seconds '1', expected a number"),
    (field(2, micro_batch=0.5), 2, "micro_batch 0.5, expected a whole number"),
    (inserted(5, '{"end": "finished"}\n'), 6, "a line after the end line"),
    (inserted(END + 1, '{"step": 24}\n'), END + 1, "a line after the end line"),
    (inserted(END + 1, '{"st'), END + 1, "a line after the end line"),
    (inserted(END + 1, "\n"), END + 1, "not a JSON line"),
    (field(END, end="well"), END, "end 'well', expected one of finished"),
    (field(END, end=["finished"]), END, "end ['finished'], expected one of finished"),
    (without(END, "ce_full"), END, "finished, but ce_full is not there"),
    (field(END, ce_full=[3.4]), END, "ce_full is of length 1, expected 4"),
    (field(END, ce_full=[1, 2, 3, "4"]), END, "expected a list of numbers"),
    (field(END, ce_full=[1, 2, 3, None]), END, "ce_full is not there or not finite"),
    (removed(END - 1), END - 1, "finished, but the last row is not of step 20"),
    (field(END - 1, step=24), END, "finished, but the last row is not of step 20"),
    (field(END, sha256="0" * 64), END, "sha256 is not of the lines before"),
    (field(END, segments="two"), END, "segments 'two', expected a whole number"),
    (field(END, deterministic=0), END, "deterministic 0, expected true or false"),
    (field(END, memory={}), END, "memory {}, expected a list"),
    (field(END, step_seconds=[]), END, "step_seconds [], expected an object"),
]


@pytest.mark.parametrize(("damage", "line", "message"), DAMAGE, ids=range(len(DAMAGE)))
def test_damage_is_told_with_file_and_line(verify, tmp_path, damage, line, message):
    lines = sound()
    for name in ("block_backwards", "backward_tokens"):
        lines[2][name] = 1
    for name in ("evaluation_seconds", "checkpoint_seconds", "suspended_seconds"):
        lines[2][name] = 1
    name = named(lines[0])
    assert verify(write(tmp_path, lines))[0] == 0
    damage(lines)
    path = write(tmp_path, lines, name)
    code, out, err = verify(tmp_path)
    assert (code, out) == (3, "")
    assert any(text.startswith(f"{path}:{line}: ") and message in text for text in err), err
    assert err[-1].startswith("bench: ") and err[-1].endswith(" in 1 of 1 file")


def test_all_faults_are_told(verify, tmp_path):
    lines = sound()
    lines[2]["tokens"], lines[4]["seconds"], lines[-1]["ce_full"] = -1, None, [1.0]
    path = write(tmp_path, lines)
    torn = write(tmp_path, ["{\n"], "lora-00000000.jsonl")
    code, _, err = verify(tmp_path)
    assert code == 3
    assert [text.split(": ")[0] for text in err[:-1]] == [
        f"{torn}:1",
        f"{path}:3",
        f"{path}:5",
        f"{path}:9",
    ]
    assert err[-1] == "bench: 4 faults in 2 of 2 files"


def test_a_file_without_text(verify, tmp_path):
    path = tmp_path / "lora-00000000.jsonl"
    path.write_bytes(b"")
    assert verify(path)[2][0] == f"{path}:1: empty, expected a record's header"
    path.write_bytes(b'{"schema": 1, \xff}\n')
    assert verify(path)[2][0].startswith(f"{path}:1: not a JSON line ('utf-8' codec")
    path.write_bytes(b"[" * 100_000)
    assert verify(path)[0] == 3
    path.unlink()
    path.symlink_to("nowhere")
    assert f"{path}:1: cannot be read" in verify(tmp_path)[2][0]


@pytest.mark.parametrize("name", ["lora-xyz", "e2e-00000000", "lora-00000000-2"])
def test_a_file_of_another_name(verify, tmp_path, name):
    lines = sound(sae={"source": "own"})
    assert verify(write(tmp_path, lines, "lora-00000000.jsonl"))[0] == 0, "its SAE is not known"
    path = write(tmp_path, lines, f"{name}.jsonl")
    expected = f"{path}:1: the file is named {name}, its header makes it lora-xxxxxxxx"
    assert verify(path)[2][0] == expected


def test_a_newer_schema_names_its_version(verify, tmp_path):
    reads = f"this version ({__version__}) reads schema 1"
    path = write(tmp_path, [{"schema": 2}, "other lines\n"], "lora-00000000.jsonl")
    assert verify(path)[2] == [f"{path}:1: schema 2, {reads}", "bench: 1 fault in 1 of 1 file"]
    write(tmp_path, [{"schema": 2, "versions": {"splicebench": "0.9"}}], path.name)
    assert verify(path)[2][0] == f"{path}:1: schema 2, written by 0.9, {reads}"


def test_a_record_cut_anywhere_after_its_header_is_sound(verify, tmp_path):
    path = write(tmp_path, sound())
    whole = path.read_bytes()
    path.unlink()
    lengths = range(whole.index(b"\n"), len(whole) + 1)
    for length in lengths:
        (tmp_path / f"{length}").mkdir()
        (tmp_path / f"{length}" / path.name).write_bytes(whole[:length])
    code, out, err = verify(tmp_path)
    assert code == 0, err
    cut = lengths[:-2]  # of the last two the second lacks nothing, the first a line's end
    within = sum(whole[n] != ord("\n") and whole[n - 1] != ord("\n") for n in cut)
    said = f"{len(cut) - within} cut off, {within} cut off within a line, 2 older than checksums"
    assert f"verified {len(lengths)} records ({said})" in out


def test_a_header_must_be_whole(verify, tmp_path):
    path = write(tmp_path, sound())
    path.write_bytes(path.read_bytes()[:100])
    assert verify(path)[2][0].startswith(f"{path}:1: not a JSON line")


@pytest.mark.parametrize("end", ["diverged", "interrupted", "error"])
def test_a_run_that_did_not_finish_is_sound(verify, tmp_path, end):
    lines = sound()[:4]
    lines[-1] |= {"ce": None, "nonfinite": {"ce": "nan"}}
    code, out, err = verify(write(tmp_path, [*lines, {"end": end, "reason": "loss nan"}]))
    assert code == 0, err
    assert "1 record (1 older than checksums) in" in out


def test_a_method_that_trains_nothing_has_one_row(verify, tmp_path):
    header, first, *_, end = sound()
    assert verify(write(tmp_path, [header, first, {**end, "trained_parameters": 0}]))[0] == 0
    code, _, err = verify(write(tmp_path, [header, first, {**end, "trained_parameters": 8}]))
    assert code == 3 and "the last row is not of step 20" in err[0]


def test_the_checksum_is_of_all_lines_before_the_end(verify, tmp_path):
    *lines, end = sound()
    hashed = hashlib.sha256("".join(texts(lines)).encode()).hexdigest()
    path = write(tmp_path, [*lines, {**end, "sha256": hashed}])
    code, out, err = verify(path)
    assert code == 0, err
    assert out == f"verified 1 record in {path}\n"
    path.write_text(path.read_text().replace('"tokens": 2048', '"tokens": 2049'))
    assert verify(path)[2][0].startswith(f"{path}:9: sha256 is not of the lines before")


def test_what_the_harness_writes_is_sound(verify, tmp_path):
    header, *rows, end = sound()
    path = tmp_path / named(header)
    writer = Writer(path)
    for line in (header, *rows):
        writer.write(line)
    told = {"step_seconds": {"p50": 1.0, "p95": 1.2}, "segments": 2, "timing": "resumed"}
    halving = {"step": 3, "micro_batch": 2, "loss_changed": False}
    told |= {"deterministic": False, "why": "another threads in between", "memory": [halving]}
    writer.end({**end, **told})
    assert verify(path) == (0, f"verified 1 record in {path}\n", [])


def test_younger_fields_of_rows_are_sound(verify, tmp_path):
    lines = sound()
    for number, row in enumerate(lines[1:-1]):
        row |= {"micro_batch": 4, "checkpoint_seconds": 0.1 * number}
    for row in lines[4:-1]:
        row |= {"suspended_seconds": 600.0, "clock_jump_seconds": -3600.0}
    assert verify(write(tmp_path, lines))[0] == 0


MEASURE = {"schema": 1, "measure": "distance", "ce": 3.4, "values": {"l2": [0.1]}}
MEASURE |= {"method": "lora", "config": {}, "spec": {}, "seed": 0, "sae": {}}
MANIFEST = {"experiment": "rank", "scale": "laptop", "command": "python -m bench experiment rank"}


def entry(record):
    return {"record": record, "role": "lora", "seed": 0, "at": {"rank": 4}}


def put(folder, name, value):
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value, indent=1) + "\n")
    return path


def test_measurements_and_manifests_name_what_lies_beside_them(verify, tmp_path):
    run = write(tmp_path, sound()).stem
    put(tmp_path, "distance-1.json", {**MEASURE, "of": run})
    runs = [entry(run), entry("distance-1"), entry(None)]
    put(tmp_path, "rank.json", {**MANIFEST, "runs": runs})
    put(tmp_path, "speed-1.json", {"label": "lora"})
    put(tmp_path, ".hidden-1.json", "{")
    code, out, err = verify(tmp_path)
    assert code == 0, err
    parts = "1 record (1 older than checksums), 1 measurement, 1 manifest, 1 other JSON file"
    assert out == f"verified {parts} in {tmp_path}\n"


BESIDE = [
    ({**MEASURE, "of": "lora-1"}, 15, "names 'lora-1', which does not lie beside it"),
    ({**MEASURE, "of": None}, 1, "of None, expected text"),
    ({**MEASURE, "of": "RUN", "schema": 7}, 1, "schema 7, this version"),
    ({**MEASURE, "of": "RUN", "seed": "0"}, 1, "seed '0', expected a whole number"),
    ({**MEASURE, "of": "RUN", "spec": []}, 1, "spec [], expected an object"),
    ({**MEASURE, "of": "RUN", "label": 3}, 1, "label 3, expected text"),
    ({**MEASURE, "of": "RUN", "device": False}, 1, "device False, expected text"),
    ({**MEASURE, "of": "RUN", "values": [1]}, 1, "values [1], expected an object"),
    ({k: v for k, v in MEASURE.items() if k != "config"} | {"of": "RUN"}, 1, "no 'config'"),
    ({**MANIFEST, "runs": [entry("RUN"), entry("lora-1")]}, 15, "names 'lora-1', which does"),
    ({**MANIFEST, "runs": {}}, 1, "runs {}, expected a list"),
    ({**MANIFEST, "runs": [1]}, 6, "names 1, which does not lie"),
    ('{\n "a": 1,\n "b": NaN\n}\n', 3, "not JSON (NaN is not a finite number)"),
    ('{\n "a": 1,\n "b": \n}\n', 4, "not JSON (Expecting value)"),
    ("", 1, "not JSON (Expecting value)"),
]


@pytest.mark.parametrize(("value", "line", "message"), BESIDE, ids=range(len(BESIDE)))
def test_what_is_wrong_beside_the_records(verify, tmp_path, value, line, message):
    run = write(tmp_path, sound()).stem
    text = value if isinstance(value, str) else json.dumps(value, indent=1) + "\n"
    path = put(tmp_path, "found.json", text.replace("RUN", run))
    code, _, err = verify(tmp_path)
    assert code == 3
    assert err[0].startswith(f"{path}:{line}: ") and message in err[0], err
    assert err[1] == "bench: 1 fault in 1 of 2 files"


def test_paths(verify, tmp_path):
    below = tmp_path / "runs" / "a"
    below.mkdir(parents=True)
    assert verify(tmp_path / "nowhere")[0] == 2
    assert verify(__file__)[0] == 2
    code, out, err = verify(tmp_path)
    assert (code, out) == (3, "")
    assert err == [f"bench: no records (*.jsonl) in '{tmp_path}' or below it"]
    path = write(below, sound())
    assert verify(tmp_path)[0] == 0
    code, out, _ = verify(tmp_path / "runs", path, below)
    assert code == 0 and out.startswith("verified 1 record (1 older than checksums) in ")
