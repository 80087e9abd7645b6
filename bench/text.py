"""Spec -> windows of tokens, split by document: training, curve set, validation set.

The curve set gives the rows of a run and the step sizes that were tuned; the validation set,
of other documents, is read for the clean and spliced model and at the end of a run only.
"""

import hashlib
from dataclasses import dataclass, replace

from bench import cache, streams
from bench.documents import documents
from bench.errors import Rejected
from bench.files import new_file

DOCUMENTS_AT_ONCE = 1_000
"""Documents that are tokenized at once: ids as Python's own numbers take ten times the room."""


@dataclass(frozen=True)
class Windows:
    """Windows of one part of the text."""

    tokens: object  # torch.Tensor [windows, seq], int64
    documents: list
    """The document of each window, by name."""


@dataclass(frozen=True)
class Text:
    """The three parts, which share no document."""

    train: Windows
    curve: Windows
    validation: Windows
    split: str
    """`by document`, or how else a text of too few documents was split."""


def load(spec, tokenizer, vocabulary):
    """Tokenize (once; cached) and split the text of `spec` -> `Text`.

    Raises `Rejected`, with the numbers, for a text too short for one batch and the held-out
    windows.
    """
    if spec.prepend_bos and tokenizer.bos_token_id is None:
        raise Rejected("--prepend-bos true: the model's tokenizer has no BOS token")
    if spec.text == "random":
        return _random(spec, vocabulary, tokenizer.bos_token_id)
    cut = [(name, windows) for name, windows in _windows(spec, tokenizer) if len(windows)]
    if len(cut) < 4:
        return _last_tenth(cut, spec)
    curve, rest = _held_out(cut, len(cut) // 8, spec.curve_docs, spec.curve_tokens, spec)
    validation, train = _held_out(rest, len(cut) // 4, spec.val_docs, spec.val_tokens, spec)
    return _checked(Text(_joined(train), curve, validation, "by document"), spec)


def _random(spec, vocabulary, bos):
    """Tokens drawn evenly from the vocabulary: a document a window, as many as one run reads."""
    import torch

    needed = [tokens // spec.seq_len for tokens in (spec.curve_tokens, spec.val_tokens)]
    counts = [spec.steps * spec.batch_size, *(max(1, n) for n in needed)]
    generator = torch.Generator().manual_seed(0)
    parts = []
    for count in counts:
        tokens = torch.randint(vocabulary, (count, spec.seq_len), generator=generator)
        if spec.prepend_bos:
            tokens[:, 0] = bos
        parts.append(Windows(tokens, [f"window {number}" for number in range(count)]))
    return Text(*parts, "random")


def _held_out(cut, most, wanted, tokens, spec):
    """The first documents that are long enough, an equal number of windows each, and the rest.

    The documents are in order of the hash of their text: a fixed, arbitrary order.
    """
    n_documents = max(1, min(wanted, most))
    each = max(1, -(-tokens // (spec.seq_len * n_documents)))
    names = [name for name, windows in cut if len(windows) >= each][:n_documents]
    if len(names) < n_documents:
        raise Rejected(
            f"text '{spec.text}': {len(names)} documents of {each * spec.seq_len} tokens or more, "
            f"need {n_documents} to hold {tokens} tokens out; lower --val-tokens or --curve-tokens"
        )
    spread = [
        (name, windows[[len(windows) * i // each for i in range(each)]])
        for name, windows in cut
        if name in names
    ]
    return _joined(spread), [(name, windows) for name, windows in cut if name not in names]


def _last_tenth(cut, spec):
    """Too few documents to split by: the text's last tenth is held out, every window a document."""
    import torch

    none = torch.empty(0, spec.seq_len, dtype=torch.long)
    tokens = torch.cat([none, *(windows for _, windows in cut)])
    names = [f"window {number}" for number in range(len(tokens))]
    n_held = max(2, len(tokens) // 10)
    a = max(0, len(tokens) - n_held)
    b = min(len(tokens), a + max(1, n_held // 8))
    wanted = (len(tokens), spec.curve_tokens // spec.seq_len, spec.val_tokens // spec.seq_len)
    train, curve, validation = (
        Windows(tokens[rows], [names[row] for row in rows])
        for rows in map(_spread, (range(a), range(a, b), range(b, len(tokens))), wanted)
    )
    return _checked(Text(train, curve, validation, "last tenth"), spec)


def _spread(rows, most):
    """At most `most` (and at least one) of `rows`, evenly spaced."""
    number = min(len(rows), max(1, most))
    return [rows[len(rows) * i // number] for i in range(number)]


def _checked(text, spec):
    have, need = len(text.train.tokens), spec.batch_size
    if have < need or not len(text.curve.tokens) or not len(text.validation.tokens):
        raise Rejected(
            f"text '{spec.text}': {have * spec.seq_len} training tokens in windows of "
            f"{spec.seq_len}, one batch needs {need * spec.seq_len}, and some must be held out"
        )
    return text


def moved(text, device):
    """The same text with its tokens on a device."""
    parts = {
        name: Windows(getattr(text, name).tokens.to(device), getattr(text, name).documents)
        for name in ("train", "curve", "validation")
    }
    return replace(text, **parts)


def fingerprint(text):
    """sha256 of the tokens of the three parts."""
    found = hashlib.sha256()
    for part in (text.train, text.curve, text.validation):
        found.update(part.tokens.numpy().tobytes())
    return found.hexdigest()


def _joined(named_windows):
    import torch

    documents = [name for name, windows in named_windows for _ in range(len(windows))]
    return Windows(torch.cat([windows for _, windows in named_windows]), documents)


def _windows(spec, tokenizer):
    """(document, its consecutive windows [n, seq_len]), the BOS first where the spec says so."""
    import torch

    content = spec.seq_len - spec.prepend_bos
    streamed = spec.text in streams.STREAMS
    source = streams.file(spec.text, spec.stream_tokens) if streamed else spec.text
    for name, ids in _tokens(source, tokenizer):
        windows = ids[: len(ids) // content * content].reshape(-1, content).long()
        if spec.prepend_bos:
            windows = torch.nn.functional.pad(windows, (1, 0), value=tokenizer.bos_token_id)
        yield name, windows


def _tokens(text, tokenizer):
    """(document, token ids [n], int32) of the whole text; kept in the cache by content."""
    import torch
    from safetensors.torch import load_file, save_file

    texts = documents(text)
    content = hashlib.sha256("\0".join(string for _, string in texts).encode())
    content.update(tokenizer.backend_tokenizer.to_str().encode())
    path = cache.root() / "tokens" / f"{content.hexdigest()[:16]}.safetensors"
    if not path.exists():
        arrays = {}
        for at in range(0, len(texts), DOCUMENTS_AT_ONCE):
            strings = [string for _, string in texts[at : at + DOCUMENTS_AT_ONCE]]
            encoded = tokenizer(strings, add_special_tokens=False)["input_ids"]
            for number, ids in enumerate(encoded, start=at):
                arrays[str(number)] = torch.tensor(ids, dtype=torch.int32)
        new_file(path, lambda temporary: save_file(arrays, temporary))
    arrays = load_file(path)
    return [(name, arrays[str(i)]) for i, (name, _) in enumerate(texts)]
