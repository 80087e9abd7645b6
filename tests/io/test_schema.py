"""The one schema of the record: what is written, published and documented is what it says."""

import dataclasses
import json
from pathlib import Path

import pytest

from bench.harness.meter import Cost
from bench.io import schema
from bench.io.schema import End, Header, Row, fields_of, is_a

ROOT = Path(__file__).parents[2]


def unknown(path):
    """(line, field) of each field of a record that its schema does not have, or not as it is."""
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    kinds = [Header, *(End if "end" in line else Row for line in lines[1:])]
    for number, (line, kind) in enumerate(zip(lines, kinds, strict=True), start=1):
        known = fields_of(kind)
        for name, value in line.items():
            fits = name in known and (value is None or is_a(known[name].kind, value))
            if not fits:
                yield f"{path.name}:{number}: {name}"


def test_published_records_have_no_other_fields():
    records = sorted((ROOT / "results").rglob("*.jsonl"))
    assert len(records) > 100
    assert [found for path in records for found in unknown(path)] == []


def test_nor_has_what_a_run_writes(bench, tmp_path):
    code, _, err = bench("--methods", "lora,e2e", "--out", tmp_path)
    assert code == 0, err
    records = sorted(tmp_path.glob("*.jsonl"))
    assert len(records) == 4, "with none, and the training of the SAE"
    assert [found for path in records for found in unknown(path)] == []


def test_an_unknown_field_is_found(tmp_path):
    path = tmp_path / "lora-00000000.jsonl"
    path.write_text('{"method": "lora", "colour": 1}\n{"step": "0"}\n{"end": "error", "step": 1}\n')
    assert [found.partition(":")[2] for found in unknown(path)] == [
        "1: colour",
        "2: step",
        "3: step",
    ]


def test_all_that_the_meter_counts_is_in_a_row():
    assert {field.name for field in dataclasses.fields(Cost)} <= fields_of(Row).keys()


@pytest.mark.parametrize("line", [Header, Row, End])
def test_every_field_has_a_kind_and_a_meaning(line):
    for name, field in fields_of(line).items():
        assert field.kind in schema.KINDS and field.text.endswith("."), name


def test_the_committed_schema_and_table_are_those_of_the_code():
    """`python -m bench.io.schema` writes both anew."""
    committed = json.loads((ROOT / "docs/record.schema.json").read_text(encoding="utf-8"))
    assert committed == schema.json_schema()
    assert schema.table() in (ROOT / "docs/records.md").read_text(encoding="utf-8")
