"""Records: written as measured, read back, refused with file and line."""

import json
import math

import pytest

from bench.errors import Rejected
from bench.io.record import Writer, read, read_folder, run_name

HEADER = {
    "schema": 1,
    "method": "lora",
    "config": {},
    "spec": {},
    "seed": 0,
    "sae": {},
    "ce_clean": 3.0,
    "ce_spliced": 4.0,
}
ROW = {"step": 0, "ce": 4.0, "seconds": 0.0, "forwards": 0, "backwards": 0, "tokens": 0}


def write(path, *lines):
    writer = Writer(path)
    for line in lines:
        writer.write(line)
    writer.close()
    return path


def test_round_trip(tmp_path):
    run = read(write(tmp_path / "lora-1.jsonl", HEADER, ROW, {"end": "finished", "ce_full": [1.0]}))
    assert (run.name, run.label, run.status) == ("lora-1", "lora", "finished")
    assert run.header == HEADER and run.rows == [ROW] and run.end["ce_full"] == [1.0]
    assert read_folder(tmp_path) == [run]


def test_what_is_not_finite_is_null_and_named(tmp_path):
    end = {"end": "finished", "ce_full": [1.0, math.nan]}
    path = write(tmp_path / "a.jsonl", HEADER, {**ROW, "ce": math.inf}, end)
    run = read(path)
    assert run.rows[0]["ce"] is None and run.rows[0]["nonfinite"] == {"ce": "inf"}
    assert run.end["ce_full"] == [1.0, None]
    assert "NaN" not in path.read_text()


def test_a_file_cut_anywhere_after_its_header_still_reads(tmp_path):
    path = write(tmp_path / "a.jsonl", HEADER, ROW, {"end": "finished"})
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    for length in range(header, len(whole) - 1):
        path.write_bytes(whole[:length])
        run = read(path)
        assert run.status in ("cut off", "finished")
        assert len(run.rows) <= 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "empty"),
        (["[1]"], "a.jsonl:1: expected a JSON object"),
        (["{"], "a.jsonl:1: not a JSON line"),
        ([json.dumps({**HEADER, "schema": 99})], "schema 99, this version reads schema 1"),
        ([json.dumps({"schema": 1})], "header has no 'method'"),
        ([json.dumps(HEADER), '{"step": 1}', '{"end": "finished"}'], "a.jsonl:2: row has no 'ce'"),
        ([json.dumps(HEADER), "{torn", '{"end": "finished"}'], "a.jsonl:2: not a JSON line"),
        ([json.dumps(HEADER), '{"end": "well"}'], "end 'well', expected one of finished"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, lines, message):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(Rejected) as caught:
        read(path)
    assert message in str(caught.value)


def test_a_runs_name_is_its_identity():
    name = run_name("lora", {"rank": 4}, {"steps": 8}, 0, "abc")
    assert name.startswith("lora-") and len(name) == len("lora-") + 8
    assert name == run_name("lora", {"rank": 4}, {"steps": 8}, 0, "abc")
    assert name != run_name("lora", {"rank": 4}, {"steps": 9}, 0, "abc")
    assert name != run_name("lora", {"rank": 4}, {"steps": 8}, 1, "abc")
