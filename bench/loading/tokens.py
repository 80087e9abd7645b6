"""The tokens of a text: one stream of ids in the cache, mapped into memory where it is read.

Documents stand in the order of the hash of their text, a fixed and arbitrary one, with the
tokenizer's EOS between any two. Neither text nor tokens are ever in memory as a whole.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from bench.errors import Unavailable
from bench.io.files import cache_root, new_folder
from bench.loading import documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Document = tuple[bytes, int, int, str]
Place = tuple[bytes, int, int, int]
"""What `documents.documents` gives; the same with the number of ids for the string."""
AT_ONCE = 4_000_000
"""Characters that are tokenized at once: ids as Python's own numbers take ten times the room."""


@dataclass(frozen=True, eq=False)
class Packed:
    """Windows of consecutive ids on disk; indexed like the tensor [windows, seq] that they are.

    What an index takes is an int64 tensor of its own, on `device`.
    """

    content: torch.Tensor  # [windows, tokens in a window, without the BOS] int32
    bos: int | None = None
    device: torch.device = torch.device("cpu")
    begin: int = 0
    """Where in the stream the first one begins."""
    left_out: int = 0
    """How many ids at the end fill no window."""
    dtype = torch.long

    @property
    def shape(self) -> torch.Size:
        """(windows, tokens in a window), the BOS included."""
        windows, content = self.content.shape
        return torch.Size([windows, content + (self.bos is not None)])

    def __len__(self) -> int:
        return len(self.content)

    def __getitem__(self, rows: int | slice | torch.Tensor) -> torch.Tensor:
        windows = self.content[rows].long()
        if self.bos is not None:
            windows = torch.nn.functional.pad(windows, (1, 0), value=self.bos)
        return _moved(windows, self.device)

    def numel(self) -> int:
        """The number of tokens, every BOS included."""
        return self.shape.numel()

    def part(self, first: int, end: int) -> "Packed":
        """The windows from number `first` to before `end`."""
        begin = self.begin + first * self.content.shape[1]
        return replace(self, content=self.content[first:end], begin=begin)

    def to(self, device: str | torch.device) -> "Packed":
        """The same windows for another device; they stay on disk."""
        return replace(self, device=torch.device(device))


@dataclass(frozen=True, eq=False)
class Joined:
    """Windows of several texts: the first ones of each, as many as the smallest has. All of one
    text stand before those of the next; indexed as `Packed` is."""

    parts: tuple["Training", ...]
    device: torch.device = torch.device("cpu")
    dtype = torch.long

    @property
    def each(self) -> int:
        """How many windows each text gives."""
        return min(map(len, self.parts))

    @property
    def shape(self) -> torch.Size:
        """(windows, tokens in a window), the BOS included."""
        return torch.Size([len(self), self.parts[0].shape[1]])

    def __len__(self) -> int:
        return len(self.parts) * self.each

    def __getitem__(self, rows: int | slice | list[int] | torch.Tensor) -> torch.Tensor:
        numbers = torch.arange(len(self))[rows]
        windows = torch.empty(*numbers.shape, self.shape[1], dtype=self.dtype)
        for place, part in enumerate(self.parts):
            of_it = numbers // self.each == place
            windows[of_it] = part[numbers[of_it] % self.each]
        return _moved(windows, self.device)

    def numel(self) -> int:
        """The number of tokens, every BOS included."""
        return self.shape.numel()

    def to(self, device: str | torch.device) -> "Joined":
        """The same windows for another device; they stay on disk."""
        return replace(self, device=torch.device(device))


Training: TypeAlias = torch.Tensor | Packed | Joined
"""Training windows [windows, seq], int64."""


def _moved(windows: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cuda":  # which then copies while Python goes on
        return windows.pin_memory().to(device, non_blocking=True)
    return windows.to(device)


@dataclass(frozen=True)
class Stream:
    """The tokens of a whole text."""

    ids: torch.Tensor  # [tokens] int32, memory-mapped
    ends: torch.Tensor  # [documents] int64
    """Where each document ends in `ids`, its EOS not included."""
    places: torch.Tensor  # [documents, 2] int64
    """The number of each document's file, and its line or 0."""
    hashes: torch.Tensor  # [documents] int64
    """The beginning of the hash of each document's text."""
    joint: int
    """Ids between two documents: 1, or 0 where the tokenizer has no EOS."""
    about: dict[str, Any]
    """Names of the `files`, the `largest` id, `sha256` of the ids; the numbers of `tokens` and of
    `documents`, and of those left out as `duplicate` or `empty`."""

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, first: int, last: int) -> str:
        """The name of the documents `first` to `last`."""
        file, line = self.places[first].tolist()
        name = documents.name_of(self.about["files"][file], line)
        return name if first == last else f"{name} and {last - first} more"

    def windows(self, first: int, last: int, seq_len: int, bos: int | None = None) -> Packed:
        """The documents `first` to `last`, cut into windows of `seq_len`; the remainder is dropped.

        With a `bos` each window begins with it.
        """
        begin = int(self.ends[first - 1]) + self.joint if first else 0
        end = int(self.ends[last]) if first <= last else begin
        content = seq_len - (bos is not None)
        n_windows, left_out = divmod(end - begin, content)
        windows = self.ids[begin : end - left_out].view(n_windows, content)
        return Packed(windows, bos, begin=begin, left_out=left_out)


def stream(source: documents.Source, tokenizer: "PreTrainedTokenizerBase") -> Stream:
    """The tokens of a text's files, from the cache; tokenized on first use.

    Raises what `documents.documents` does, and `Unavailable` for files that change meanwhile.
    """
    from safetensors.torch import load_file

    text, eos = documents.sha256(source), tokenizer.eos_token_id
    key = f"{text} {eos} {tokenizer.backend_tokenizer.to_str()}"
    folder = cache_root() / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not folder.exists():
        with new_folder(folder) as temporary:
            _write(source, tokenizer, temporary)
            if documents.sha256(source) != text:
                raise Unavailable("the files of the text changed while they were read; start again")
    about = json.loads((folder / "told.json").read_text(encoding="utf-8"))
    index, path, n = load_file(folder / "index.safetensors"), folder / "ids.int32", about["length"]
    if path.stat().st_size != 4 * n:
        raise Unavailable(f"{path}: damaged; remove {folder} and start again")
    ids = torch.empty(0, dtype=torch.int32)
    if n:
        ids = torch.from_file(str(path), shared=False, size=n, dtype=torch.int32)
    joint = int(eos is not None)
    return Stream(ids, index["ends"], index["places"], index["hashes"], joint, about)


def _write(source: documents.Source, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Tokenize the documents as they come, then bring them in order."""
    from safetensors.torch import save_file

    left_out, raw = Counter(duplicate=0, empty=0), folder / "raw.int32"
    placed = _encode(documents.documents(source, left_out), tokenizer, raw)
    lengths = np.array([length for *_, length in placed], dtype=np.int64)
    places = np.array([place for _, *place, _ in placed], dtype=np.int64).reshape(-1, 2)
    filled = sorted((n for n in range(len(placed)) if lengths[n]), key=lambda n: placed[n][0])
    order, ends, eos = np.array(filled, dtype=np.int64), np.cumsum(lengths), tokenizer.eos_token_id
    bounds = np.stack([ends - lengths, ends], axis=1)[order]
    about = _in_order(raw, bounds.tolist(), eos, folder)
    raw.unlink()
    joint = int(eos is not None)
    ends = np.cumsum(lengths[order] + joint) - joint
    hashes = np.array([int.from_bytes(placed[n][0][:8], signed=True) for n in filled], np.int64)
    numbers = {"ends": ends, "places": places[order], "hashes": hashes}
    index = {name: torch.from_numpy(array) for name, array in numbers.items()}
    save_file(index, folder / "index.safetensors")
    left_out["empty"] += len(placed) - len(order)
    about |= {"documents": len(order), "tokens": int(lengths.sum()), "files": list(source.files)}
    about |= left_out
    (folder / "told.json").write_text(json.dumps(about), encoding="utf-8")


def _encode(
    texts: Iterable[Document], tokenizer: "PreTrainedTokenizerBase", path: Path
) -> list[Place]:
    """Write the ids of the documents as they come -> (hash, file, line, number of ids) of each."""
    places = []
    with path.open("wb") as out:
        for batch in _batches(texts):
            strings = [string for *_, string in batch]
            encoded = tokenizer(strings, add_special_tokens=False)["input_ids"]
            for (digest, file, line, _), ids in zip(batch, encoded, strict=True):
                out.write(np.asarray(ids, dtype=np.int32).tobytes())
                places.append((digest, file, line, len(ids)))
    return places


def _batches(texts: Iterable[Document]) -> Iterator[list[Document]]:
    """Lists of documents, of about `AT_ONCE` characters each."""
    batch, size = [], 0
    for document in texts:
        batch.append(document)
        size += len(document[-1])
        if size >= AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _in_order(raw: Path, bounds: list[list[int]], eos: int | None, folder: Path) -> dict[str, Any]:
    """Write the ids of the documents in this order, an EOS between any two -> their
    `sha256`, `largest` and number (`length`)."""
    joint = np.array([] if eos is None else [eos], dtype=np.int32)
    digest, largest, length = hashlib.sha256(), 0, 0
    ids = np.memmap(raw, dtype=np.int32, mode="r") if raw.stat().st_size else joint[:0]
    with (folder / "ids.int32").open("wb") as out:
        for place, (begin, end) in enumerate(bounds):
            document = ids[begin:end]
            for part in (joint, document) if place else (document,):
                out.write(part.tobytes())
                digest.update(part.tobytes())
                largest = max(largest, int(part.max(initial=0)))
                length += len(part)
    return {"sha256": digest.hexdigest(), "largest": largest, "length": length}
