"""Spec -> windows of tokens, split by document: training, curve set, validation set.

The curve set gives the rows of a run and the step sizes that were tuned. The validation set, of
other documents, is read for the clean and spliced model and at the end of a run only.

Documents are packed: those of a part are joined by EOS and cut into windows, so that short ones
count as long ones do. Validation takes whole documents from the front of their fixed order, the
curve set from the back. Training takes those between.
"""

import hashlib
from collections.abc import Callable, Sized
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
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
    """The three parts; those of a text that was split by document share none."""

    train: torch.Tensor | tokens.Packed  # [windows, seq], int64
    curve: Windows
    validation: Windows
    split: str
    """The validation set's error units: `by document`, `by group of documents`, or, of too few
    documents, `last tenth, by group of windows`; `random` for no text."""
    train_sha256: str
    """Stands for the training windows, whose tokens need not be read for it."""
    largest: int
    """The largest id that may be in it."""
    read: dict[str, Any] | None = None
    """The record's `text_read`: what was read and what was left out."""


Units = list[tuple[str, tokens.Packed]]
"""Error units by name."""
Split = tuple[str, tokens.Packed, Units, Units]
"""What was split by, training, curve set, validation set."""


def load(spec: Spec, tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> Text:
    """Tokenize (once; cached) and split the text of `spec` -> `Text`.

    Raises `Rejected`, with the numbers, for a text too short for one batch and the held-out
    windows.
    """
    if spec.prepend_bos and tokenizer.bos_token_id is None:
        raise Rejected("--prepend-bos true: the model's tokenizer has no BOS token")
    bos = tokenizer.bos_token_id if spec.prepend_bos else None
    if spec.text == "random":
        return _random(spec, vocabulary, bos)
    source = documents.source(spec)
    stream = tokens.stream(source, tokenizer)
    parts = _by_document(stream, spec, bos) or _last_tenth(stream, spec, bos)
    split, train, curve, validation = parts
    read = {
        "files": len(source.files),
        "files_left_out": dict(source.left_out.most_common()),
        **{name: stream.about[name] for name in ("documents", "duplicate", "empty", "tokens")},
        "tokens_left_out": train.left_out,
        "joined_by": tokenizer.eos_token,
    }
    cut = f"{stream.about['sha256']} {train.begin} {tuple(train.shape)} {bos}"
    sha256 = hashlib.sha256(cut.encode()).hexdigest()
    largest = max(stream.about["largest"], -1 if bos is None else bos)
    held_out = _spread(curve, spec.curve_tokens, spec), _spread(validation, spec.val_tokens, spec)
    return Text(train, *held_out, split, sha256, largest, read)


def _random(spec: Spec, vocabulary: int, bos: int | None) -> Text:
    """Tokens drawn evenly from the vocabulary: a document a window, as many as one run reads."""
    needed = [tokens // spec.seq_len for tokens in (spec.curve_tokens, spec.val_tokens)]
    counts = [spec.steps * spec.batch_size, *(max(1, n) for n in needed)]
    generator = torch.Generator().manual_seed(0)
    parts = []
    for count in counts:
        rows = torch.randint(vocabulary, (count, spec.seq_len), generator=generator)
        if bos is not None:
            rows[:, 0] = bos
        parts.append(Windows(rows, [f"window {number}" for number in range(count)]))
    train, curve, validation = parts
    sha256 = hashlib.sha256(train.tokens.numpy().tobytes()).hexdigest()
    largest = max(int(part.tokens.max()) for part in parts)
    return Text(train.tokens, curve, validation, "random", sha256, largest)


def _by_document(stream: tokens.Stream, spec: Spec, bos: int | None) -> Split | None:
    """(split, training, curve set, validation set) by document; None where there are too few.

    At most a quarter of the documents is for validation, an eighth for the curve set. Neither set
    depends on the size of the other.
    """
    n, cut = len(stream), partial(stream.windows, seq_len=spec.seq_len, bos=bos)
    front, back = range(n // 4), range(n)[::-1][: max(1, n // 8)]
    validation = _units(front, cut, spec.val_docs, spec.val_tokens, spec)
    curve = _units(back, cut, spec.curve_docs, spec.curve_tokens, spec)
    if len(validation) < min(2, spec.val_docs) or not curve:
        return None
    train = cut(validation[-1][1] + 1, curve[-1][0] - 1)
    if len(train) < spec.batch_size:
        return None
    alone = all(first == last for first, last in validation)
    split = "by document" if alone else "by group of documents"
    named = [[(stream.name(*unit), cut(*unit)) for unit in units] for units in (curve, validation)]
    return split, train, named[0], named[1]


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
    consecutive ones, since neighbours are not independent."""
    windows = stream.windows(0, len(stream) - 1, spec.seq_len, bos)
    n, batch = len(windows), spec.batch_size
    if n < batch + 2:
        content = spec.seq_len - (bos is not None)
        wanted = f"a batch of {batch} windows of {content} and two that are held out"
        numbers = f"{len(stream.ids):,} tokens, need {(batch + 2) * content:,}"
        raise Rejected(f"text '{spec.text}': {numbers}: {wanted}")
    n_held = min(max(2, n // 10), n - batch)
    first, middle = n - n_held, n - n_held + max(1, n_held // 8)
    curve = _groups(windows, first, middle, spec.curve_docs)
    validation = _groups(windows, middle, n, spec.val_docs)
    return "last tenth, by group of windows", windows.part(0, first), curve, validation


def _groups(windows: tokens.Packed, first: int, end: int, wanted: int) -> Units:
    """The windows from `first` to before `end` in (name, windows) groups of four or more where
    that leaves two, at most `wanted`."""
    n = end - first
    number = min(n, wanted, max(2, n // 4))
    bounds = [first + n * i // number for i in range(number + 1)]
    return [(f"windows {a} to {b - 1}", windows.part(a, b)) for a, b in pairwise(bounds)]


def _spread(units: Units, tokens: int, spec: Spec) -> Windows:
    """`tokens` in windows of these units: of each equally many, evenly spread, none twice."""
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
    """One line on what was read, what was left out, and what is held out."""
    assert text.read is not None  # as it is of random tokens
    read, units = text.read, [len(set(part.documents)) for part in (text.validation, text.curve)]
    aside = [f"{n:,} {suffix}" for suffix, n in read["files_left_out"].items()]
    not_read = ", not read: " + ", ".join(aside[:8]) + ", ..." * (len(aside) > 8)
    return (
        f"text: files {read['files']:,} read{not_read * bool(aside)}; documents "
        f"{read['documents']:,}, {read['duplicate']:,} duplicate and {read['empty']:,} empty left "
        f"out; tokens {read['tokens']:,}, {read['tokens_left_out']:,} fill no window; held out "
        f"{text.split}: {units[0]:,} for validation, {units[1]:,} for the curve"
    )


def moved(text: Text, device: str) -> Text:
    """The same text with its tokens on a device; training windows go there when they are read."""
    curve = replace(text.curve, tokens=text.curve.tokens.to(device))
    validation = replace(text.validation, tokens=text.validation.tokens.to(device))
    return replace(text, train=text.train.to(device), curve=curve, validation=validation)


def fingerprint(text: Text) -> str:
    """sha256 of the three parts."""
    digest = hashlib.sha256(text.train_sha256.encode())
    for part in (text.curve, text.validation):
        digest.update(part.tokens.numpy().tobytes())
    return digest.hexdigest()
