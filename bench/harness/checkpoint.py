"""The state of a run on disk, from which a killed run is resumed: the last two are kept.

A checkpoint is a file of tensors and plain values, `step-00000016-<hash>.pt` in the run's folder;
the hash in its name is that of its bytes, so that a damaged one is known before it is read.
"""

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bench.config.method_files import same_code
from bench.errors import Rejected, Unavailable, Usage, reason
from bench.io.console import say
from bench.io.files import new_file, synchronize

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 2
DIGITS = 16


def check_room(folder: Path, parameters: "Iterable[Tensor]") -> None:
    """Raise `Unavailable` where the disk has no room for the checkpoints of these parameters.

    A checkpoint holds them and two averages of Adam's; two lie there while a third is written.
    """
    need = (KEPT + 1) * 3 * sum(p.numel() * p.element_size() for p in parameters)
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < need:
        raise Unavailable(f"{folder}: its checkpoints need {need:,} bytes, {free:,} are free")


def write(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state at `step`; the two latest checkpoints stay, older ones are deleted.

    Raises `Unavailable` where there is no room: the ones before are then still there.
    """
    for left in folder.glob(".step-*"):  # of a process that was killed
        left.unlink()
    written = folder / f"step-{step:08d}.writing"
    new_file(written, lambda temporary: _save(state, temporary))
    path = folder / f"step-{step:08d}-{_hash(written)}.pt"
    written.replace(path)
    synchronize(folder)
    for older in found(folder)[KEPT:]:
        older.unlink()


def found(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, the latest first."""
    return sorted(folder.glob("step-*-*.pt"), reverse=True)


def latest(folder: Path, run: str) -> dict[str, Any] | None:
    """The latest sound checkpoint of the run of this name, or None where there is none.

    A damaged one is named and the one before it is taken; `Rejected` where all are damaged.
    """
    damaged = []
    for path in found(folder):
        try:
            return _load(path, run)
        except Rejected as error:
            damaged.append(str(error))
            say(f"{error}; going on from the one before")
    if damaged:
        raise Rejected(f"no sound checkpoint of {run}: {'; '.join(damaged)} (--fresh begins again)")
    return None


def clear(folder: Path) -> None:
    """Delete the checkpoints of a run that has ended well."""
    for path in [*found(folder), *folder.glob("*.writing")]:
        path.unlink(missing_ok=True)


def _load(path: Path, run: str) -> dict[str, Any]:
    import torch

    try:
        sound = _hash(path) == path.stem.rpartition("-")[2]
    except OSError as error:
        raise Rejected(f"{path}: cannot be read ({error.strerror or error})") from None
    if not sound:
        raise Rejected(f"{path}: damaged ({path.stat().st_size:,} bytes that do not fit its name)")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch raises: the bytes are as they were written
        raise Rejected(f"{path}: cannot be read ({reason(error)})") from None
    if state["run"] != run:
        raise Rejected(f"{path}: of another run, {state['run']}")
    return state


def _save(state: dict[str, Any], path: Path) -> None:
    """`torch.save` that raises the OSError of a full disk as such, which torch hides."""
    import torch

    with path.open("wb") as file:
        watched = _Watched(file)
        try:
            torch.save(state, watched)
        except RuntimeError:
            if watched.error:
                raise watched.error from None
            raise


class _Watched:
    """A file that remembers what went wrong in writing to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]


def check_unchanged(header: dict[str, Any], present: Mapping[str, Any], path: Path) -> None:
    """Raise `Usage` where a record's `header` names other code or inputs than the `present`."""
    changed = []
    if not same_code(header.get("source") or present["source"], present["source"]):
        changed.append(f"methods/{header['method']}.py")
    if _differ(header.get("versions"), present["versions"], "torch"):
        changed.append("torch")
    if _differ(header.get("model"), present["model"], "sha256"):
        changed.append("model")
    if _differ(header, present, "text_sha256"):
        changed.append("text")
    if changed:
        raise Usage(f"{path}: made with another {' and '.join(changed)}; --fresh runs it again")


def _differ(before: Mapping | None, after: Mapping, field: str) -> bool:
    values = [(before or {}).get(field), after.get(field)]
    return None not in values and values[0] != values[1]
