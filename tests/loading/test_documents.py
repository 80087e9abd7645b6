"""Reading text: every file and document that is there is read once, or counted as left out."""

import json
import os
from collections import Counter

import pytest

from bench.config.specs import named
from bench.errors import Rejected, Unavailable, Usage
from bench.loading import documents, text
from bench.runs.preflight import asks_the_hub, check_inputs
from tests.helpers import tiny


def read(path):
    """(names of the files, what was left out, name -> document)."""
    source = documents.source(named("smollm2-135m", text=str(path)))
    files, aside = list(source.files), Counter(source.left_out)
    texts = {
        documents.name_of(files[file], line): string
        for _, file, line, string in documents.documents(source, aside)
    }
    return files, {name: number for name, number in aside.items() if number}, texts


def test_suffixes_of_any_case_are_read_and_others_are_counted(tmp_path):
    for name in ("a.txt", "b.TXT", "c.md", "d.MD", "e"):
        (tmp_path / name).write_text(name)
    (tmp_path / "f.Jsonl").write_text('{"text": "f"}\n')
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    files, aside, texts = read(tmp_path)
    assert files == ["a.txt", "b.TXT", "f.Jsonl"]
    assert texts == {"a": "a.txt", "b": "b.TXT", "f:1": "f"}
    assert aside == {".md": 2, "no suffix": 1, "no file": 2}


def test_a_linked_folder_is_read_and_none_twice(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "a.txt").write_text("a")
    (tmp_path / "text" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "text" / "same").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path)
    files, aside, texts = read(tmp_path / "text")
    assert files == ["link/deep/a.txt"] and texts == {"link/deep/a": "a"} and not aside


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_a_byte_order_mark_is_no_text(tmp_path, suffix):
    content = json.dumps({"text": "caf\u00e9"}) if suffix == "jsonl" else "caf\u00e9"
    for name, encoding in (("plain", "utf-8"), ("marked", "utf-8-sig")):
        (tmp_path / f"{name}.{suffix}").write_text(content, encoding=encoding)
    _, aside, texts = read(tmp_path)
    assert list(texts.values()) == ["caf\u00e9"] and aside == {"duplicate": 1}


def test_what_is_empty_or_there_twice_is_counted(tmp_path):
    lines = [json.dumps({"text": string}) for string in ("a", "b", "", "a", "\ufeff", "\ufeffb")]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "u.txt").write_bytes(b"x\r\ny")
    (tmp_path / "v.txt").write_bytes(b"x\ny")
    _, aside, texts = read(tmp_path)
    assert texts == {"t:1": "a", "t:2": "b", "u": "x\ny"}
    assert aside == {"empty": 2, "duplicate": 3}


def test_json_lines_are_read_one_at_a_time(tmp_path):
    """The second document is not looked at before it is asked for."""
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    source = documents.source(named("smollm2-135m", text=str(tmp_path / "t.jsonl")))
    reader = documents.documents(source, Counter())
    assert next(reader)[-1] == "a"
    with pytest.raises(Rejected, match="t.jsonl:2: not a JSON line with a 'text' field"):
        next(reader)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", b"caf\xe9", "latin.txt: not UTF-8 .* at byte 3"),
        ("wide.txt", "abc".encode("utf-16"), "wide.txt: not UTF-8 .* at byte 0"),
        ("latin.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', "not UTF-8 .* at byte 24"),
        ("null.jsonl", b'{"text": null}', "null.jsonl:1: not a JSON line with a 'text' field"),
        ("bad.jsonl", b'{"txt": 1}', "bad.jsonl:1: not a JSON line with a 'text' field"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Rejected, match=message):
        read(tmp_path)


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(Usage, match="no text at"):
        read(tmp_path / "nope")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Rejected, match="no .txt or .jsonl file"):
        read(tmp_path / "empty")


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "closed").mkdir()
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(Unavailable, match="closed: cannot be read .Permission denied"):
        read(tmp_path)


def test_the_hash_of_a_text_is_of_names_and_contents(tmp_path):
    hashes = set()
    for name, content in (("a.txt", "b"), ("b.txt", "b"), ("a.txt", "c"), ("a/a.txt", "b")):
        folder = tmp_path / str(len(hashes))
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content)
        hashes.add(documents.source_sha256(named("smollm2-135m", text=str(folder))))
    assert len(hashes) == 4


def texts_of(text):
    return [one.text for one in documents.by_source(named("smollm2-135m", text=text))]


def test_sources_are_joined_by_a_plus_that_is_in_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert texts_of("sotu+corpora/novels95") == ["sotu", "corpora/novels95"]
    assert texts_of("a+b+pile-uncopyrighted") == ["a", "b", "pile-uncopyrighted"]
    for alone in ("a+b", "c+c.txt", "random+d"):
        (tmp_path / alone).mkdir()
        assert texts_of(alone) == [alone]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sotu+", "'sotu\\+': a source is empty"),
        ("+", "a source is empty"),
        ("random+sotu", "'random\\+sotu': a source is 'random', which nothing can be joined to"),
        ("sotu+random", "a source is 'random'"),
        ("sotu+sotu", "'sotu\\+sotu': 'sotu' is there twice"),
        ("here+sotu+./here/", "'./here/' is there twice"),
        ("sotu+nope+here", "no text at 'nope': expected sotu"),
        ("here+sotu+gone.txt", "no text at 'gone.txt'"),
    ],
)
def test_sources_that_cannot_be_joined(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.txt").write_text("a")
    spec = named("gpt2-small", weights="random", sae="own", text=text)
    for look in (documents.check_source, check_inputs, documents.source_sha256):
        with pytest.raises(Usage, match=message) as caught:
            look(spec)
        assert "\n" not in str(caught.value)


def test_the_hash_of_two_sources_is_of_both_in_their_order(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    a, b = (f"{tmp_path}/{name}.txt" for name in "ab")
    specs = [named("smollm2-135m", text=text) for text in (a, b, f"{a}+{b}", f"{b}+{a}")]
    hashes = {documents.source_sha256(spec) for spec in specs}
    (tmp_path / "b.txt").write_text("c")
    assert len(hashes | {documents.source_sha256(specs[2])}) == 5


def test_of_a_joined_stream_that_is_not_there_the_hub_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))
    asked = []
    monkeypatch.setattr(documents.hub, "reach", lambda name, kind: asked.append((name, kind)))
    spec = named("smollm2-135m", text="sotu+redpajama-v2")
    documents.check_source(spec)
    assert asked == [(documents.REDPAJAMA, "dataset")]
    assert documents.source_sha256(spec) is None and asks_the_hub(spec)
    assert not asks_the_hub(named("smollm2-135m", text=f"sotu+{tmp_path}"))


def test_what_was_read_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))
    tiny.write_text(tmp_path / "text")
    (tmp_path / "text" / "copy.txt").write_text((tmp_path / "text" / "00.txt").read_text())
    (tmp_path / "text" / "blank.txt").write_text("")
    (tmp_path / "text" / "notes.md").write_text("x")
    settings = {"seq_len": 12, "batch_size": 2, "curve_docs": 2, "curve_tokens": 48}
    settings |= {"tune_docs": 1, "val_docs": 4, "val_tokens": 192}
    spec = named("smollm2-135m", text=str(tmp_path / "text"), **settings)
    assert text.in_words(text.load(spec, tiny.tokenizer(), tiny.VOCABULARY)) == (
        "text: files 26 read, not read: 1 .md; documents 24, 1 duplicate and 1 empty left out; "
        "tokens 14,400, 4 fill no window; held out by document: 4 for validation, 2 for the curve, "
        "1 for tuning"
    )
