"""Texts that are streamed: their beginning is read once, and what breaks on the way is told."""

import json

import datasets
import pytest
import torch
import zstandard

from bench.config.specs import named
from bench.errors import Unavailable
from bench.loading import documents, text
from tests.helpers import tiny


def test_a_stream_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))
    lines = [json.dumps({"raw_content": f"{n} " + "abc " * 50}) for n in range(40)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    files = {"data_files": [str(tmp_path / "t.jsonl")]}
    stream = documents.Streamed("a/b", "json", "raw_content", files)
    monkeypatch.setitem(documents.STREAMS, "pile-uncopyrighted", stream)
    spec = named(
        "smollm2-135m",
        text="pile-uncopyrighted",
        stream_tokens=1_000,
        seq_len=12,
        curve_docs=1,
        curve_tokens=12,
        val_docs=2,
        val_tokens=24,
    )
    first = text.load(spec, tiny.tokenizer(), tiny.VOCABULARY)
    assert first.read["documents"] == 20  # 1,000 tokens of 4 characters, 202 characters each
    (tmp_path / "t.jsonl").unlink()
    documents.check_source(spec)
    again = text.load(spec, tiny.tokenizer(), tiny.VOCABULARY)
    assert torch.equal(again.train[:], first.train[:])


def test_a_packed_stream_that_ends_early_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))
    packed = zstandard.compress(b'{"text": "one two"}\n{"text": "three"}\n')
    (tmp_path / "t.jsonl.zst").write_bytes(packed)
    stream = documents.Streamed(
        "a/b", "json", "text", {"data_files": [str(tmp_path / "t.jsonl.zst")]}
    )
    monkeypatch.setitem(documents.STREAMS, "pile-uncopyrighted", stream)
    lines = documents.fetch("pile-uncopyrighted", 100).read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["one two", "three"]
    assert "a/b ended after 12 characters, 400 were asked for" in capsys.readouterr().out


def test_a_network_that_breaks_is_not_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))

    def broken(*args, **settings):
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(Unavailable, match=r"cannot stream monology/.* \(reset by peer\)"):
        documents.fetch("pile-uncopyrighted", 10)


def test_a_stream_that_breaks_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "t.jsonl").write_text('{"other": 1}\n')
    stream = documents.Streamed("a/b", "json", "text", {"data_files": [str(tmp_path / "t.jsonl")]})
    monkeypatch.setitem(documents.STREAMS, "pile-uncopyrighted", stream)
    with pytest.raises(Unavailable, match="cannot stream a/b"):
        documents.fetch("pile-uncopyrighted", 10)
    assert not list((tmp_path / "cache" / "streams").glob("*"))
