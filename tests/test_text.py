"""Text: split by document, windows as asked, refused with the numbers."""

import pytest
import torch

from bench import documents, text
from bench.errors import Rejected, Usage
from bench.specs import named
from tests import tiny


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))


def spec_for(folder, **changes):
    settings = {
        "seq_len": 12,
        "batch_size": 2,
        "curve_docs": 2,
        "curve_tokens": 48,
        "val_docs": 4,
        "val_tokens": 192,
    }
    return named("smollm2-135m", text=str(folder), **{**settings, **changes})


def test_no_document_is_in_two_parts(tmp_path):
    tiny.write_text(tmp_path / "text")
    found = text.load(spec_for(tmp_path / "text"), tiny.tokenizer(), tiny.VOCABULARY)
    parts = [set(part.documents) for part in (found.train, found.curve, found.validation)]
    assert [len(part) for part in parts] == [18, 2, 4]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert found.split == "by document"
    assert found.validation.tokens.shape == (16, 12) and found.curve.tokens.shape == (4, 12)
    counts = [found.validation.documents.count(name) for name in parts[2]]
    assert counts == [4, 4, 4, 4]


def test_windows_are_the_text(tmp_path):
    tiny.write_text(tmp_path / "text")
    tokenizer = tiny.tokenizer()
    found = text.load(spec_for(tmp_path / "text"), tokenizer, tiny.VOCABULARY)
    first = found.train.documents[0]
    content = (tmp_path / "text" / f"{first}.txt").read_text()
    assert tokenizer.decode(found.train.tokens[0]).replace(" ", "") == content[:12].replace(" ", "")


def test_a_bos_is_put_first_where_the_spec_says_so(tmp_path):
    tiny.write_text(tmp_path / "text")
    plain = text.load(spec_for(tmp_path / "text"), tiny.tokenizer(), tiny.VOCABULARY)
    found = text.load(
        spec_for(tmp_path / "text", prepend_bos=True), tiny.tokenizer(), tiny.VOCABULARY
    )
    assert (found.train.tokens[:, 0] == 1).all() and found.train.tokens.shape[1] == 12
    assert torch.equal(found.train.tokens[0, 1:], plain.train.tokens[0, :11])


def test_the_second_time_comes_from_the_cache(tmp_path):
    tiny.write_text(tmp_path / "text")
    first = text.load(spec_for(tmp_path / "text"), tiny.tokenizer(), tiny.VOCABULARY)
    second = text.load(spec_for(tmp_path / "text"), tiny.tokenizer(), tiny.VOCABULARY)
    assert torch.equal(first.train.tokens, second.train.tokens)
    (tmp_path / "text" / "00.txt").write_text("something else entirely " * 30)
    third = text.load(spec_for(tmp_path / "text"), tiny.tokenizer(), tiny.VOCABULARY)
    assert not torch.equal(first.train.tokens, third.train.tokens[: len(first.train.tokens)])


def test_few_documents_lose_their_last_tenth(tmp_path):
    tiny.write_text(tmp_path / "text", documents=1, characters=1200)
    found = text.load(spec_for(tmp_path / "text"), tiny.tokenizer(), tiny.VOCABULARY)
    assert found.split == "last tenth"
    assert [len(p.tokens) for p in (found.train, found.curve, found.validation)] == [90, 1, 9]
    spec = spec_for(tmp_path / "text", val_tokens=36)
    assert len(text.load(spec, tiny.tokenizer(), tiny.VOCABULARY).validation.tokens) == 3


def test_json_lines(tmp_path):
    lines = [f'{{"text": "{"abc " * 100}{n}"}}' for n in range(12)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    spec = spec_for(tmp_path / "t.jsonl", curve_docs=1, val_docs=2, val_tokens=48, curve_tokens=24)
    found = text.load(spec, tiny.tokenizer(), tiny.VOCABULARY)
    assert len(set(found.train.documents)) == 9


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short.txt", b"abc def", "0 training tokens in windows of 12, one batch needs 24"),
        ("latin.txt", b"caf\xe9", "latin.txt: not UTF-8"),
        ("null.jsonl", b'{"text": null}', "null.jsonl:1: not a JSON line with a 'text' field"),
        ("bad.jsonl", b'{"txt": 1}', "bad.jsonl:1: not a JSON line with a 'text' field"),
    ],
)
def test_a_text_that_does_not_fit(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Rejected) as caught:
        text.load(spec_for(tmp_path / name), tiny.tokenizer(), tiny.VOCABULARY)
    assert message in str(caught.value)


def test_documents_too_short_to_hold_out(tmp_path):
    tiny.write_text(tmp_path / "text", characters=40)
    with pytest.raises(Rejected, match="0 documents of 48 tokens or more, need 4"):
        text.load(spec_for(tmp_path / "text"), tiny.tokenizer(), tiny.VOCABULARY)


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(Usage, match="no text at"):
        documents.check_source(spec_for(tmp_path / "nope"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(Rejected, match="no .txt or .jsonl file"):
        documents.check_source(spec_for(tmp_path / "empty"))
