"""Text: packed and split by document, held to a packer that is written here, or refused."""

import dataclasses
import hashlib
import random
from pathlib import Path

import pytest
import torch

from analysis.stats.gap import closed_at_end
from bench.config.spec import own_training
from bench.config.specs import named
from bench.errors import Rejected, Unavailable
from bench.export.reload import restore, spec_of, validation
from bench.io.record import read
from bench.io.verify import verify
from bench.loading import text
from bench.problem.batches import Batches
from bench.runs import loaded
from tests.helpers import tiny

EOS = 2


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))


def spec_for(folder, **changes):
    settings = {
        "seq_len": 12,
        "batch_size": 2,
        "curve_docs": 2,
        "curve_tokens": 48,
        "tune_docs": 2,
        "tune_tokens": 72,
        "val_docs": 4,
        "val_tokens": 192,
    }
    return named("smollm2-135m", text=str(folder), **{**settings, **changes})


def load(folder, tokenizer=None, **changes):
    return text.load(spec_for(folder, **changes), tokenizer or tiny.tokenizer(), tiny.VOCABULARY)


def write(folder, lengths, letters="abcdefgh"):
    """Documents of so many random characters -> the list of them, in the order of their hash."""
    draw, folder = random.Random(0), folder / "text"
    folder.mkdir(parents=True)
    strings = ["".join(draw.choices(letters, k=length)) for length in lengths]
    for number, string in enumerate(strings):
        (folder / f"{number}.txt").write_text(string)
    return sorted(set(strings), key=lambda string: hashlib.sha256(string.encode()).digest())


def packed(strings, content, bos=None, eos=EOS):
    """The windows of these documents, joined and cut: a list of lists of ids."""
    vocabulary, ids = tiny.tokenizer().get_vocab(), []
    for string in strings:
        ids += [eos] * bool(ids and eos is not None) + [vocabulary[c] for c in string]
    whole = range(0, len(ids) - content + 1, content)
    return [([] if bos is None else [bos]) + ids[at : at + content] for at in whole]


def units(strings, content, each, wanted):
    """Runs of the first strings that fill `each` windows or more -> a list of lists."""
    runs, run = [], []
    for string in strings:
        run = [*run, string]
        if len(packed(run, content)) >= each:
            runs, run = [*runs, run], []
    return runs[:wanted]


LENGTHS = {
    "long": [600] * 24,
    "short": [random.Random(n).randint(2, 40) for n in range(200)],
    "mixed": [random.Random(n).choice([3, 15, 700]) for n in range(60)],
}


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_all_parts_are_those_of_an_independent_packer(tmp_path, lengths, bos):
    order, content = write(tmp_path, LENGTHS[lengths]), 12 - (bos is not None)
    parts = load(tmp_path / "text", prepend_bos=bos is not None)
    validation = units(order[: len(order) // 4], content, 4, 4)
    back = units(order[::-1][: len(order) // 8], content, 2, 2)
    curve = [run[::-1] for run in back]
    before = order[: order.index(curve[-1][0])][::-1][: len(order) // 8]
    tuning = [run[::-1] for run in units(before, content, 3, 2)]
    assert len(validation) == 4 and len(curve) == 2 and len(tuning) == 2
    held = [order.index(validation[-1][-1]) + 1, order.index(tuning[-1][0])]
    assert parts.train[:].tolist() == packed(order[slice(*held)], content, bos)
    named = ((validation, 4, parts.validation), (curve, 2, parts.curve), (tuning, 3, parts.tuning))
    for runs, each, part in named:
        expected = []
        for run in runs:
            windows = packed(run, content, bos)
            expected += [windows[int((i + 0.5) * len(windows) / each)] for i in range(each)]
        assert part.tokens.tolist() == expected
        assert [part.documents.count(name) for name in dict.fromkeys(part.documents)] == [
            each for _ in runs
        ]
    many = any(len(run) > 1 for run in validation)
    assert parts.split == ("by group of documents" if many else "by document")
    assert parts.read["tokens_left_out"] == len("e".join(order[slice(*held)])) % content


def test_documents_are_joined_directly_without_an_eos(tmp_path):
    order, tokenizer = write(tmp_path, [50] * 40), tiny.tokenizer()
    tokenizer.eos_token = None
    parts = load(tmp_path / "text", tokenizer)
    assert parts.train[:].tolist() == packed(order[4:-4], 12, eos=None)
    assert parts.read["joined_by"] is None
    assert load(tmp_path / "text").train[:].tolist() == packed(order[4:-4], 12)


SIZES = {
    "curve": {"curve_docs": 2, "curve_tokens": 48},
    "tuning": {"tune_docs": 2, "tune_tokens": 72},
    "validation": {"val_docs": 4, "val_tokens": 192},
}


def two(folder, lengths, other):
    """Two texts of such documents, of other letters -> (each one's documents, both as a text)."""
    orders = write(folder / "one", lengths), write(folder / "two", other, "ijklmnop")
    return orders, f"{folder}/one/text+{folder}/two/text"


def sized(sources, halved=""):
    """Sizes of the held-out parts, the same of each source, of one part the half."""
    factors = {part: sources if part == halved else 2 * sources for part in SIZES}
    return {k: n * factors[part] // 2 for part, sizes in SIZES.items() for k, n in sizes.items()}


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("sources", [1, 2])
def test_a_held_out_part_moves_with_its_own_size_alone(tmp_path, lengths, sources):
    """Only the tuning windows move with the curve set's, too, which they lie before."""
    _, both = two(tmp_path, LENGTHS[lengths], LENGTHS[lengths][:150])
    folder, found = both if sources == 2 else tmp_path / "one/text", {}
    for halved in ("", *SIZES):
        held_out = load(folder, **sized(sources, halved)).held_out
        found[halved] = {name: part.tokens.tolist() for name, part in held_out.items()}
    for part in SIZES:
        moved = {halved for halved in SIZES if found[halved][part] != found[""][part]}
        assert moved == {part} | ({"curve"} if part == "tuning" else set())
        if sources == 1:
            assert found[""][part][: len(found[part][part])] == found[part][part]


def places(orders, windows):
    """(source, number) of each document that these windows have a token of."""
    letters = {n: token for token, n in tiny.tokenizer().get_vocab().items()} | {EOS: "|"}
    found = set()
    for window in windows.tolist():
        string = "".join(letters[n] for n in window)
        (source,) = {n for n, order in enumerate(orders) if string in "|".join(order)}
        order = orders[source]
        of_token = [n for n, document in enumerate(order) for _ in f"{document}|"]
        at = "|".join(order).index(string)
        found |= {(source, n) for n in of_token[at : at + len(window)]}
    return found


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("sources", [1, 2])
def test_no_document_is_in_two_parts(tmp_path, lengths, sources):
    orders, both = two(tmp_path, LENGTHS[lengths], LENGTHS[lengths][:150])
    parts = load(both if sources == 2 else tmp_path / "one/text", **sized(sources))
    windows = [parts.train[:], *(part.tokens for part in parts.held_out.values())]
    found = [places(orders[:sources], part) for part in windows]
    assert len(found) == 4 and all(
        {source for source, _ in p} == set(range(sources)) for p in found
    )
    assert sum(map(len, found)) == len(set().union(*found))


def test_where_documents_are_few_more_is_taken_of_each(tmp_path):
    write(tmp_path, [600] * 12)
    parts = load(tmp_path / "text", val_docs=32, val_tokens=12 * 60, curve_docs=16)
    assert len(set(parts.validation.documents)) == 3 and len(parts.validation.tokens) == 60
    assert len(set(parts.curve.documents)) == 1 and len(parts.curve.tokens) == 4
    assert len(set(parts.tuning.documents)) == 1 and len(parts.tuning.tokens) == 6


def test_where_documents_are_short_less_is_taken_for_tuning(tmp_path):
    write(tmp_path, LENGTHS["short"])
    parts = load(tmp_path / "text", tune_docs=8, tune_tokens=12 * 8 * 80)
    assert len(set(parts.tuning.documents)) == 8 and len(parts.tuning.tokens) == 16


def test_tuning_takes_no_document_that_training_needs(tmp_path):
    """The 18 documents between the others give 91 windows, and 76 without three for tuning."""
    order = write(tmp_path, [60] * 24)
    settings = {"val_tokens": 4 * 60, "curve_tokens": 2 * 60, "tune_docs": 3, "tune_tokens": 36}
    for batch, units in ((76, 3), (77, 2), (82, 1), (86, 1), (87, 0), (91, 0)):
        parts = load(tmp_path / "text", batch_size=batch, **settings)
        assert len(set(parts.tuning.documents)) == units and parts.split == "by document"
        assert parts.train[:].tolist() == packed(order[4 : 22 - units], 12)


@pytest.mark.parametrize("documents", [1, 3, 5])
def test_too_few_documents_lose_the_last_tenth_in_groups(tmp_path, documents):
    order = write(tmp_path, [3600 // documents] * documents)
    parts, windows = load(tmp_path / "text"), packed(order, 12)
    assert parts.split == "last tenth, by group of windows" and len(windows) == 300
    assert parts.train[:].tolist() == windows[:267]
    assert parts.tuning.documents == ["windows 267 to 267", "windows 268 to 269"]
    assert parts.tuning.tokens.tolist() == [windows[267], windows[269]]
    assert parts.curve.tokens.tolist() == [windows[270], windows[272]]
    names = parts.validation.documents
    assert [names.count(name) for name in dict.fromkeys(names)] == [4, 4, 4, 4]
    places = [windows.index(window) for window in parts.validation.tokens.tolist()]
    assert places == sorted(set(places)) and places[0] >= 273
    edges = [273 + 27 * i // 4 for i in range(5)]
    assert all(edges[n // 4] <= place < edges[n // 4 + 1] for n, place in enumerate(places))


def test_a_batch_and_two_windows_are_enough(tmp_path):
    write(tmp_path, [48])
    parts = load(tmp_path / "text")
    assert len(parts.train) == 2 and parts.tuning.tokens.shape == (0, 12)
    with pytest.raises(Rejected, match="--held-out tuning: the text .* is too short for such"):
        load(tmp_path / "text", held_out="tuning")
    (tmp_path / "text" / "0.txt").write_text("a" * 47)
    with pytest.raises(Rejected) as caught:
        load(tmp_path / "text")
    assert "47 tokens, need 48: a batch of 2 windows of 12 and two that are" in str(caught.value)


def test_documents_in_two_files_of_one_name_are_two_units(tmp_path):
    write(tmp_path, [600] * 24)
    for path in sorted((tmp_path / "text").iterdir()):
        path.with_suffix(".TXT").write_text(path.read_text()[::-1])
    parts = load(tmp_path / "text", val_docs=12, val_tokens=12 * 12 * 4)
    assert len(set(parts.validation.documents)) == 12


def test_the_second_time_comes_from_the_cache(tmp_path, monkeypatch):
    write(tmp_path, [600] * 24)
    first = load(tmp_path / "text")
    monkeypatch.setattr(text.tokens, "_write", None)
    second = load(tmp_path / "text")
    assert torch.equal(first.train[:], second.train[:])
    assert text.fingerprint(first) == text.fingerprint(second) and first.read == second.read
    monkeypatch.undo()
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text" / "0.txt").write_text("something else entirely " * 30)
    third = load(tmp_path / "text")
    assert text.fingerprint(third) != text.fingerprint(first)


def test_fingerprints_differ_with_what_is_trained_on(tmp_path):
    write(tmp_path, [60] * 48)
    settings = [{}, {"prepend_bos": True}, {"curve_docs": 1}, {"val_docs": 3}, {"tune_docs": 1}]
    settings += [{"seq_len": 11}]
    hashes = [text.fingerprint(load(tmp_path / "text", **changes)) for changes in settings]
    assert len(set(hashes)) == len(settings)


def test_two_texts_have_equal_shares_of_every_part(tmp_path):
    """Each is split as it is alone with half of the sizes; odd ones are rounded up."""
    (one, other), both = two(tmp_path, [600] * 24, [300] * 48)
    sizes = {**sized(2), "val_docs": 7, "tune_tokens": 144}
    alone = [load(tmp_path / name / "text", **sized(1)) for name in ("one", "two")]
    parts = load(both, **sizes)
    least = min(len(text.train) for text in alone)
    trained = [text.train[:least] for text in alone]
    assert torch.equal(parts.train[:], torch.cat(trained))
    assert len(parts.train) == 2 * least and parts.train.numel() == 2 * least * 12
    for name, part in parts.held_out.items():
        halves = [text.held_out[name] for text in alone]
        assert torch.equal(part.tokens, torch.cat([half.tokens for half in halves]))
        names = zip(("text", "text (2)"), halves, strict=True)
        assert part.documents == [f"{text}/{d}" for text, half in names for d in half.documents]
    assert parts.largest == max(text.largest for text in alone)
    left_out = [read["windows_left_out"] for read in parts.read.values()]
    assert list(parts.read) == ["text", "text (2)"]
    assert left_out == [len(text.train) - least for text in alone] and max(left_out) > 0


@pytest.mark.parametrize("bos", [None, 1])
def test_joined_windows_are_indexed_as_a_tensor_is(tmp_path, bos):
    _, both = two(tmp_path, [300] * 48, [600] * 24)
    train = load(both, prepend_bos=bos is not None).train
    windows, n = train[:], len(train)
    assert windows.shape == train.shape == (n, 12) and windows.dtype == train.dtype == torch.int64
    assert train.numel() == windows.numel() and train.to("cpu")[:].tolist() == windows.tolist()
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    indices = [
        0,
        n - 1,
        -1,
        [n - 1, 0, n // 2, n // 2 - 1, 0, -2],
        [],
        slice(n // 2 - 3, n // 2 + 3),
    ]
    for rows in (*indices, slice(5, 1), shuffled, shuffled % 2 == 0):
        assert torch.equal(train[rows], windows[rows])
    with pytest.raises(IndexError):
        train[[n]]
    settings = {"batch_size": 2, "steps": n, "seed": 3}
    for expected, batch in zip(
        Batches(windows, **settings), Batches(train, **settings), strict=True
    ):
        assert torch.equal(batch, expected)


def test_the_hash_of_two_texts_is_of_both_and_of_their_order(tmp_path):
    _, both = two(tmp_path, [60] * 24, [60] * 24)
    one, other = both.split("+")
    hashes = {load(texts).train_sha256 for texts in (one, other, both, f"{other}+{one}")}
    (tmp_path / "one/text/0.txt").write_text("something else entirely " * 3)
    hashes.add(load(both).train_sha256)
    (tmp_path / "two/text/0.txt").write_text("another one " * 6)
    assert len(hashes | {load(both).train_sha256}) == 6


def test_a_document_of_two_texts_is_refused(tmp_path):
    _, both = two(tmp_path, [60] * 24, [60] * 24)
    (tmp_path / "two/text/copy.txt").write_bytes((tmp_path / "one/text/7.txt").read_bytes())
    with pytest.raises(Rejected, match="/one/text' and .*/two/text' have 1 .*, such as '7'"):
        load(both)


def test_what_was_read_of_two_texts_is_two_lines(tmp_path):
    _, both = two(tmp_path, [60] * 24, [60] * 30)
    lines = text.in_words(load(both)).splitlines()
    assert [line.split(";")[0] for line in lines] == [
        "text text: files 24 read",
        "text text (2): files 30 read",
    ]
    assert lines[1].endswith(
        "31 windows are more than another source has; held out by document: 4 for validation, "
        "2 for the curve, 2 for tuning"
    )


@pytest.mark.parametrize("other", [["a\0b", "c"], ["a", "b\0c"], ["a\0b\0c"], ["a", "b", "c"]])
def test_texts_that_look_alike_when_joined_have_tokens_of_their_own(tmp_path, other):
    (tmp_path / "text").mkdir()
    for content in (["a\0b", "c"], other):
        for path in (tmp_path / "text").iterdir():
            path.unlink()
        for number, string in enumerate(content):
            (tmp_path / "text" / f"{number}.txt").write_text(string)
        source = text.documents.source(spec_for(tmp_path / "text"))
        stream = text.tokens.stream(source, tiny.tokenizer())
        assert stream.about["documents"] == len(content)
        ids = [tiny.tokenizer()(string)["input_ids"] for string in content]
        assert stream.about["tokens"] == sum(map(len, ids))


def test_files_that_change_while_they_are_read_are_not_cached(tmp_path, monkeypatch):
    write(tmp_path, [600] * 24)
    write_tokens = text.tokens._write

    def change_then_write(source, *others):
        (tmp_path / "text" / "0.txt").write_text("another")
        write_tokens(source, *others)

    monkeypatch.setattr(text.tokens, "_write", change_then_write)
    with pytest.raises(Unavailable, match="changed while they were read"):
        load(tmp_path / "text")
    assert not list((tmp_path / "cache" / "tokens").iterdir())


def test_tokens_stay_on_the_disk(tmp_path):
    """What is drawn is int64 and a copy; what lies behind it is a map of the file of int32."""
    order = write(tmp_path, [600] * 24)
    parts = load(tmp_path / "text", prepend_bos=True)
    windows = torch.tensor(packed(order[4:-4], 11, 1))
    (path,) = (tmp_path / "cache" / "tokens").rglob("ids.int32")
    assert path.stat().st_size == 4 * (24 * 600 + 23) and parts.train.numel() % 12 == 0
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    assert maps
    settings = {"batch_size": 2, "steps": 30, "seed": 3}
    pairs = zip(Batches(windows, **settings), Batches(parts.train, **settings), strict=True)
    for expected, batch in pairs:
        assert batch.dtype == torch.int64 and torch.equal(batch, expected)


def test_a_damaged_cache_is_named(tmp_path):
    write(tmp_path, [600] * 24)
    load(tmp_path / "text")
    (path,) = (tmp_path / "cache" / "tokens").rglob("ids.int32")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(Unavailable, match="ids.int32: damaged; remove"):
        load(tmp_path / "text")


def test_ids_without_an_embedding_are_refused_without_a_scan(tmp_path):
    write(tmp_path, [600] * 24)
    parts, bridge = load(tmp_path / "text"), tiny.bridge("llama")
    assert parts.largest == max(tiny.tokenizer().get_vocab()[c] for c in "abcdefgh")
    loaded.check_vocabulary(parts, bridge)
    with pytest.raises(Rejected, match="token id 64, 64 rows"):
        loaded.check_vocabulary(dataclasses.replace(parts, largest=64), bridge)


def test_the_tuning_windows_are_measured_in_the_place_of_the_validation_set(small, tmp_path):
    """Two texts; the record passes `verify`, and the measurements of the run are on them, too."""
    _, both = two(tmp_path, [600] * 24, [300] * 48)
    for held_out, units in (("tuning", 6), ("validation", 4)):
        settings = {"text": both, "sae": "fresh", "tune-docs": 6, "tune-tokens": 144}
        out = tmp_path / held_out
        again = {"held-out": held_out, "out": out}
        code, _, err = small("compare", "--methods", "lora", **settings, **again)
        assert code == 0, err
        (path,) = out.glob("lora-*.jsonl")
        verify([path])
        run, (problem, _) = read(path), restore(path)
        windows = text.load(spec_of(run), tiny.tokenizer(), tiny.VOCABULARY).held_out[held_out]
        assert run.header["documents"] == list(dict.fromkeys(windows.documents))
        assert torch.equal(validation(run, problem).tokens, windows.tokens)
        logits = problem.bridge(windows.tokens)
        losses = tiny.ce_by_document(logits, windows.tokens, units)
        assert run.header["ce_full_clean"] == pytest.approx(losses, rel=1e-5)
        assert len(run.end["ce_full"]) == units


def test_what_a_run_is_measured_on_makes_no_other_sae(tmp_path):
    spec = spec_for(tmp_path)
    tuned = dataclasses.replace(spec, held_out="tuning")
    assert loaded.fields_of(tuned) == loaded.fields_of(spec)
    assert own_training(tuned) == own_training(spec)


def test_short_documents_give_a_comparison_with_errors(small, tmp_path):
    write(tmp_path, [random.Random(n).randint(5, 40) for n in range(200)])
    settings = {"text": tmp_path / "text", "sae": "fresh", "out": tmp_path / "out"}
    code, out, err = small("compare", "--methods", "lora", **settings)
    assert code == 0, err
    (path,) = (tmp_path / "out").glob("lora-*.jsonl")
    run = read(path)
    assert run.header["split"] == "by group of documents" and len(run.end["ce_full"]) == 4
    assert run.header["text_read"]["documents"] == 200
    assert "held out by group of documents: 4 for validation, 2 for the curve" in out
    assert "mean over 4 groups of documents" in " ".join(out.split())
    assert closed_at_end([run]) is None or closed_at_end([run]).error > 0
