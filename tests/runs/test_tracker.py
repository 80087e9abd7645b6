"""--tracker: what the real libraries hold afterwards, offline; and that a tracker loses nothing."""

import json
import struct

import pytest

from bench.errors import Unavailable
from bench.runs import tracker
from tests.helpers.records import make, write


@pytest.fixture
def record(tmp_path):
    """A record of three evaluations, on disk."""
    run = make("lora", shares=(0.0, 0.1, 0.2), gains=[0.1, 0.2, 0.1, 0.2], command="as typed")
    return write(tmp_path / "runs", run) / run.path


def shown(record):
    """What a tracker has to hold: (step, values) as they are in the file."""
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    rows = [(row.pop("step"), row) for row in lines[1:-1]]
    ce = lines[-1]["ce_full"]
    return [*rows, (rows[-1][0], {"validation/ce": pytest.approx(sum(ce) / len(ce))})]


def wandb_records(file):
    """The history and the config of a .wandb file: blocks of 32 KiB, a record in one or more."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at < len(data):
        left = 32_768 - at % 32_768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            made = Record()
            made.ParseFromString(whole)
            whole = b""
            yield made


def test_wandb_has_every_row_and_the_header(record, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker.send("wandb", record)
    wandb.teardown()  # waits for its service, which writes the file some time after finish()
    (file,) = record.parent.glob("wandb/offline-run-*/*.wandb")
    rows, config = {}, {}
    for made in wandb_records(file):
        for item in made.history.item:
            key = item.key or "/".join(item.nested_key)
            rows.setdefault(made.history.step.num, {})[key] = json.loads(item.value_json)
        config |= {item.key: json.loads(item.value_json) for item in made.run.config.update}
    for step, values in shown(record):
        assert values == {key: rows[step][key] for key in values}
    assert config["command"] == "as typed" and config["spec"]["model"] == "m"
    assert config["end"] == "finished" and "ce_full_clean" not in config


def test_tensorboard_has_every_row_and_the_header(record):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker.send("tensorboard", record)
    events = EventAccumulator(str(record.parent / "tensorboard" / record.stem)).Reload()
    for step, values in shown(record):
        for key, value in values.items():
            (found,) = [e.value for e in events.Scalars(key) if e.step == step]
            assert found == pytest.approx(getattr(value, "expected", value), rel=1e-6)
    text = events.Tensors("record/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"command": "as typed"' in text


def test_trackio_has_every_row_and_the_header(record, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    tracker.send("trackio", record)
    rows = SQLiteStorage.get_logs("splicebench", record.stem)
    for (step, values), row in zip(shown(record), rows, strict=True):
        assert row["step"] == step and values == {key: row[key] for key in values}
    config = SQLiteStorage.get_run_config("splicebench", record.stem)
    assert config["command"] == "as typed"


def test_each_run_is_shown_when_it_has_ended(bench, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(tracker, "check", lambda name: None)
    monkeypatch.setattr(
        tracker, "send", lambda *sending: sent.append((*sending, sending[1].read_text()[-200:]))
    )
    code, out, _ = bench("--out", tmp_path, "--methods", "lora", "--tracker", "wandb")
    assert code == 0 and [name for name, *_ in sent] == ["wandb"] * 2
    assert all('"sha256"' in text for *_, text in sent)


def test_a_tracker_that_fails_costs_no_run(bench, tmp_path, monkeypatch):
    def refuse(*_):
        raise Unavailable("--tracker wandb: no account")

    monkeypatch.setattr(tracker, "check", lambda name: None)
    monkeypatch.setattr(tracker, "send", refuse)
    code, out, _ = bench("--out", tmp_path, "--methods", "lora", "--tracker", "wandb")
    assert code == 0 and out.count("not shown: --tracker wandb: no account") == 2
    assert len(list(tmp_path.glob("*.jsonl"))) == 3  # with that of the SAE


def test_what_a_tracker_says_is_one_line(record, monkeypatch):
    def init(**_):
        raise RuntimeError("no account\nand a second line")

    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(Unavailable, match="^--tracker wandb: no account$"):
        tracker.send("wandb", record)


def test_one_that_is_not_there_or_not_known_is_one_line(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    code, _, err = bench("--out", tmp_path, "--tracker", "trackio")
    assert code == 4 and err == "bench: --tracker trackio: not installed; pip install trackio\n"
    code, _, err = bench("--out", tmp_path, "--tracker", "wandbs")
    assert code == 2 and err.count("\n") == 1 and "wandbs" in err
