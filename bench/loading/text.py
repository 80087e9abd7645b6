"""Spec -> windows of tokens, split by document: training and three held-out parts.

The curve set gives the rows of a run, the tuning windows the step sizes. The validation set is read
for the clean and spliced model and at the end of a run only.

Documents are packed: those of a part are joined by EOS and cut into windows, so that short ones
count as long ones do. Validation takes whole documents from the front of their fixed order, the
curve set from the back, the tuning windows from before the curve set. Training takes those between.

A text of several sources, `A+B`, is each of them split so, and then joined: half of the training
windows and of every held-out part is from each.
"""

import hashlib
from collections.abc import Callable, Sized
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.config.spec import Spec
from bench.errors import Rejected
from bench.loading import documents, tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Windows:
    """Held-out windows."""

    tokens: torch.Tensor  # [windows, seq], int64
    documents: list[str]
    """The error unit of each window, by name; windows of one unit are not independent."""


@dataclass(frozen=True)
class Text:
    """The four parts; those of a text that was split by document share none."""

    train: tokens.Training  # [windows, seq], int64
    curve: Windows
    validation: Windows
    tuning: Windows
    """None of them where a text is too short for more than the other parts."""
    split: str
    """The validation set's error units, one of `SPLITS`, the last for too few documents; `random`
    for no text."""
    train_sha256: str
    """Stands for the training windows, whose tokens need not be read for it."""
    largest: int
    """The largest id that may be in it."""
    read: dict[str, Any] | None = None
    """The record's `text_read`: what was read and what was left out; of several sources by name."""

    @property
    def held_out(self) -> dict[str, Windows]:
        """The held-out parts by name."""
        return {"curve": self.curve, "validation": self.validation, "tuning": self.tuning}


SPLITS = ("by document", "by group of documents", "last tenth, by group of windows")
"""What a text can be split by, the finest first."""
Units = list[tuple[str, tokens.Packed]]
"""Error units by name."""
Split = tuple[str, tokens.Packed, Units, Units, Units]
"""What was split by, training, curve set, validation set, tuning windows."""


def load(spec: Spec, tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> Text:
    """Tokenize (once; cached) and split the text of `spec` -> `Text`.

    Raises `Rejected`, with the numbers, for a text too short for one batch and the held-out
    windows, and for sources that have a document in common.
    """
    if spec.prepend_bos and tokenizer.bos_token_id is None:
        raise Rejected("--prepend-bos true: the model's tokenizer has no BOS token")
    bos = tokenizer.bos_token_id if spec.prepend_bos else None
    if spec.text == "random":
        return _random(spec, vocabulary, bos)
    specs = _shares(spec)
    sources = [documents.source(one) for one in specs]
    streams = [tokens.stream(source, tokenizer) for source in sources]
    _check_apart(specs, streams)
    read = zip(specs, sources, streams, strict=True)
    texts = [_split(one, source, stream, tokenizer.eos_token, bos) for one, source, stream in read]
    text = texts[0] if len(texts) == 1 else _joined(specs, texts)
    if not text.held_out[spec.held_out].documents:
        raise Rejected(f"--held-out tuning: the text '{spec.text}' is too short for such windows")
    return text


def _shares(spec: Spec) -> list[Spec]:
    """The spec for each source of the text, with its share, rounded up, of what is held out."""
    specs = documents.by_source(spec)
    held = [f"{part}_{unit}" for part in ("curve", "tune", "val") for unit in ("docs", "tokens")]
    share = {field: -(-getattr(spec, field) // len(specs)) for field in held}
    return [replace(one, **share) for one in specs]


def _check_apart(specs: list[Spec], streams: list[tokens.Stream]) -> None:
    """Raise `Rejected` for a document that two sources have: one may train on it, one hold it
    out."""
    for (a, one), (b, other) in combinations(zip(specs, streams, strict=True), 2):
        shared = torch.isin(one.hashes, other.hashes).nonzero().flatten().tolist()
        if shared:
            first = one.name(shared[0], shared[0])
            number = f"{len(shared):,} documents in common, such as '{first}'"
            raise Rejected(f"--text: '{a.text}' and '{b.text}' have {number}")


def _split(
    spec: Spec, source: documents.Source, stream: tokens.Stream, eos: str | None, bos: int | None
) -> Text:
    """The `Text` of one source."""
    parts = _by_document(stream, spec, bos) or _last_tenth(stream, spec, bos)
    split, train, curve, validation, tuning = parts
    read = {
        "files": len(source.files),
        "files_left_out": dict(source.left_out.most_common()),
        **{name: stream.about[name] for name in ("documents", "duplicate", "empty", "tokens")},
        "tokens_left_out": train.left_out,
        "joined_by": eos,
    }
    cut = f"{stream.about['sha256']} {train.begin} {tuple(train.shape)} {bos}"
    sha256 = hashlib.sha256(cut.encode()).hexdigest()
    largest = max(stream.about["largest"], -1 if bos is None else bos)
    return Text(
        train,
        _spread(curve, spec.curve_tokens, spec),
        _spread(validation, spec.val_tokens, spec),
        _spread(tuning, spec.tune_tokens, spec),
        split,
        sha256,
        largest,
        read,
    )


def _joined(specs: list[Spec], texts: list[Text]) -> Text:
    """The texts of several sources as one; documents and what was read are named after them.

    The units are said to be the coarsest of any.
    """
    names = _unique([Path(one.text).name for one in specs])
    train, read = tokens.Joined(tuple(text.train for text in texts)), {}
    for name, text in zip(names, texts, strict=True):
        read[name] = {**(text.read or {}), "windows_left_out": len(text.train) - train.each}
    hashes = " ".join(text.train_sha256 for text in texts)
    return Text(
        train,
        _together(names, [text.curve for text in texts]),
        _together(names, [text.validation for text in texts]),
        _together(names, [text.tuning for text in texts]),
        max((text.split for text in texts), key=SPLITS.index),
        hashlib.sha256(hashes.encode()).hexdigest(),
        max(text.largest for text in texts),
        read,
    )


def _together(names: list[str], parts: list[Windows]) -> Windows:
    """The windows of one part of all sources, their documents named after the source, too."""
    pairs = zip(names, parts, strict=True)
    documents = [f"{name}/{document}" for name, part in pairs for document in part.documents]
    return Windows(torch.cat([part.tokens for part in parts]), documents)


def _random(spec: Spec, vocabulary: int, bos: int | None) -> Text:
    """Tokens drawn evenly from the vocabulary: a document a window, as many as one run reads."""
    wanted = (spec.curve_tokens, spec.val_tokens, spec.tune_tokens)
    needed = [tokens // spec.seq_len for tokens in wanted]
    counts = [spec.steps * spec.batch_size, *(max(1, n) for n in needed)]
    generator = torch.Generator().manual_seed(0)
    parts = []
    for count in counts:
        rows = torch.randint(vocabulary, (count, spec.seq_len), generator=generator)
        if bos is not None:
            rows[:, 0] = bos
        parts.append(Windows(rows, [f"window {number}" for number in range(count)]))
    train, curve, validation, tuning = parts
    sha256 = hashlib.sha256(train.tokens.numpy().tobytes()).hexdigest()
    largest = max(int(part.tokens.max()) for part in parts)
    return Text(train.tokens, curve, validation, tuning, "random", sha256, largest)


def _by_document(stream: tokens.Stream, spec: Spec, bos: int | None) -> Split | None:
    """The parts by document; None where there are too few for training, curve set and validation.

    At most a quarter of the documents is for validation, an eighth for the curve set, an eighth for
    tuning. No size moves the validation or the curve set but its own; the tuning windows lie before
    the curve set, and move with its size alone. They have units of a window where none holds its
    share, and fewer units, or none, where they would not leave a batch for training.
    """
    n, cut = len(stream), partial(stream.windows, seq_len=spec.seq_len, bos=bos)
    front, back = range(n // 4), range(n)[::-1][: max(1, n // 8)]
    validation = _units(front, cut, spec.val_docs, spec.val_tokens, spec)
    curve = _units(back, cut, spec.curve_docs, spec.curve_tokens, spec)
    if len(validation) < min(2, spec.val_docs) or not curve:
        return None
    first, before = validation[-1][1] + 1, range(curve[-1][0])[::-1][: max(1, n // 8)]
    tuning = _units(before, cut, spec.tune_docs, spec.tune_tokens, spec)
    tuning = tuning or _units(before, cut, spec.tune_docs, 1, spec)
    while tuning and len(cut(first, tuning[-1][0] - 1)) < spec.batch_size:
        tuning.pop()
    train = cut(first, (tuning or curve)[-1][0] - 1)
    if len(train) < spec.batch_size:
        return None
    alone = all(first == last for first, last in validation)
    parts = (curve, validation, tuning)
    named = [[(stream.name(*unit), cut(*unit)) for unit in units] for units in parts]
    return SPLITS[0 if alone else 1], train, named[0], named[1], named[2]


def _units(
    numbers: range, cut: Callable[..., Sized], wanted: int, tokens: int, spec: Spec
) -> list[tuple[int, int]]:
    """The first and last document of each error unit, at most `wanted`.

    A unit is the smallest run of consecutive documents that holds its share of `tokens`.
    """
    each = -(-tokens // (spec.seq_len * wanted))
    units, start = [], None
    for number in numbers:
        start = number if start is None else start
        unit = min(start, number), max(start, number)
        if len(cut(*unit)) >= each:
            units.append(unit)
            start = None
        if len(units) == wanted:
            break
    return units


def _last_tenth(stream: tokens.Stream, spec: Spec, bos: int | None) -> Split:
    """Held out where documents are too few: the last tenth of all windows, in groups of
    consecutive ones, since neighbours are not independent.

    Before it lie as many tuning windows as the curve set has, or those that a batch leaves.
    """
    windows = stream.windows(0, len(stream) - 1, spec.seq_len, bos)
    n, batch = len(windows), spec.batch_size
    if n < batch + 2:
        content = spec.seq_len - (bos is not None)
        wanted = f"a batch of {batch} windows of {content} and two that are held out"
        numbers = f"{len(stream.ids):,} tokens, need {(batch + 2) * content:,}"
        raise Rejected(f"text '{spec.text}': {numbers}: {wanted}")
    n_held = min(max(2, n // 10), n - batch)
    first, middle = n - n_held, n - n_held + max(1, n_held // 8)
    end = first - min(middle - first, first - batch)
    curve = _groups(windows, first, middle, spec.curve_docs)
    validation = _groups(windows, middle, n, spec.val_docs)
    tuning = _groups(windows, end, first, spec.tune_docs)
    return SPLITS[2], windows.part(0, end), curve, validation, tuning


def _groups(windows: tokens.Packed, first: int, end: int, wanted: int) -> Units:
    """The windows from `first` to before `end` in (name, windows) groups of four or more where
    that leaves two, at most `wanted`."""
    n = end - first
    number = min(n, wanted, max(2, n // 4))
    bounds = [first + n * i // number for i in range(number + 1)] if n else []
    return [(f"windows {a} to {b - 1}", windows.part(a, b)) for a, b in pairwise(bounds)]


def _spread(units: Units, tokens: int, spec: Spec) -> Windows:
    """`tokens` in windows of these units: of each equally many, evenly spread, none twice."""
    if not units:
        return Windows(torch.empty(0, spec.seq_len, dtype=torch.long), [])
    least = min(len(windows) for _, windows in units)
    each = max(1, min(least, -(-tokens // (spec.seq_len * len(units)))))
    rows = [[(2 * i + 1) * len(w) // (2 * each) for i in range(each)] for _, w in units]
    spread = [windows[chosen] for (_, windows), chosen in zip(units, rows, strict=True)]
    names = [name for name in _unique([name for name, _ in units]) for _ in range(each)]
    return Windows(torch.cat(spread), names)


def samples(
    name: str, tokenizer: "PreTrainedTokenizerBase", like: torch.Tensor, each: int
) -> Windows:
    """Windows of every document of the text `name`, as long as those of `like` and begun as they.

    Of each document equally many, `each` tokens or what the shortest has, evenly spread.
    """
    spec, bos = Spec(text=name, seq_len=like.shape[1]), tokenizer.bos_token_id
    bos = bos if bos is not None and bool((like[:, 0] == bos).all()) else None
    stream = tokens.stream(documents.source(spec), tokenizer)
    units = [
        (stream.name(n, n), stream.windows(n, n, spec.seq_len, bos)) for n in range(len(stream))
    ]
    units = [(name, windows) for name, windows in units if len(windows)]
    return _spread(units, each * len(units), spec)


def _unique(names: list[str]) -> list[str]:
    """The names, numbered where two files differ in their suffix alone."""
    return [
        f"{name} ({names[:place].count(name) + 1})" if name in names[:place] else name
        for place, name in enumerate(names)
    ]


def in_words(text: Text) -> str:
    """One line for each source on what was read and left out, and on what is held out of all."""
    assert text.read is not None  # as it is of random tokens
    sources = text.read if isinstance(text.train, tokens.Joined) else {"": text.read}
    units = {name: len(set(part.documents)) for name, part in text.held_out.items()}
    lines = [f"text{f' {name}' * bool(name)}: {_read(of_it)}" for name, of_it in sources.items()]
    return "\n".join(lines) + (
        f"; held out {text.split}: {units['validation']:,} for validation, "
        f"{units['curve']:,} for the curve, {units['tuning']:,} for tuning"
    )


def _read(read: dict[str, Any]) -> str:
    aside = [f"{n:,} {suffix}" for suffix, n in read["files_left_out"].items()]
    not_read = ", not read: " + ", ".join(aside[:8]) + ", ..." * (len(aside) > 8)
    more = read.get("windows_left_out", 0)
    beyond = f", {more:,} windows are more than another source has"
    return (
        f"files {read['files']:,} read{not_read * bool(aside)}; documents {read['documents']:,}, "
        f"{read['duplicate']:,} duplicate and {read['empty']:,} empty left out; tokens "
        f"{read['tokens']:,}, {read['tokens_left_out']:,} fill no window{beyond * bool(more)}"
    )


def moved(text: Text, device: str) -> Text:
    """The same text with its tokens on a device; training windows go there when they are read."""
    parts = text.held_out.items()
    held_out: Any = {name: replace(part, tokens=part.tokens.to(device)) for name, part in parts}
    return replace(text, train=text.train.to(device), **held_out)


def fingerprint(text: Text) -> str:
    """sha256 of the four parts."""
    digest = hashlib.sha256(text.train_sha256.encode())
    for part in text.held_out.values():
        digest.update(part.tokens.numpy().tobytes())
    return digest.hexdigest()
