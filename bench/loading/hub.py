"""The Hugging Face hub: asked only where a spec names something on it, one try, a clear answer.

HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN are honoured as its own client does.
"""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from threading import Thread
from typing import TypeVar

from bench.errors import Rejected, Unavailable, Usage, reason

Answer = TypeVar("Answer")
SECONDS = 3.5
"""Whatever is asked before anything is fetched must be answered within this time."""
TRANSPORTS = ("aiohttp", "fsspec", "httpcore", "httpx", "huggingface_hub", "requests", "urllib3")


def is_id(name: str) -> bool:
    """Whether `OWNER/NAME` is meant as a repository: it looks like one, and no such path exists."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and not Path(name).exists()


@cache
def reach(repository: str, kind: str = "model") -> bool:
    """Ask the hub for `repository` -> whether it answered; False: the hub's cache must do.

    An answer holds for the rest of the process. Raises `Usage` where there is no such repository.
    Raises `Unavailable` where it is gated, or where the hub is out of reach and its cache empty.
    """
    from huggingface_hub import constants, errors

    try:
        if not constants.is_offline_mode():
            in_time(lambda: _ask(repository, kind))
            return True
        why = f"HF_HUB_OFFLINE is set and '{repository}' is not in the hub's cache: "
        why += "unset it, or give a folder"
    except errors.GatedRepoError:
        licence = f"accept its licence at https://huggingface.co/{repository}"
        wrong = f"'{repository}' is gated: {licence} and set HF_TOKEN to a token of yours"
        raise Unavailable(wrong) from None
    except errors.RepositoryNotFoundError:
        wrong = f"'{repository}': neither a folder here nor a {kind} that the hub shows"
        raise Usage(f"{wrong}; if it is private, set HF_TOKEN") from None
    except Exception as error:  # whatever the client's transport raises
        why = f"cannot reach the hub for '{repository}' ({reason(error)}); "
        why += "if it is meant as a folder here, there is none"
    if not _in_cache(repository, kind):
        raise Unavailable(why)
    return False


def in_time(ask: Callable[[], Answer]) -> Answer:
    """What `ask()` gives, or its error; TimeoutError after SECONDS, however many tries it makes."""
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if not answer.done():
        raise TimeoutError(f"no answer in {SECONDS:g} seconds")
    return answer.result()


def _ask(repository: str, kind: str) -> None:
    from huggingface_hub import HfApi

    about = HfApi().repo_info(repository, repo_type=kind, timeout=SECONDS)
    if getattr(about, "gated", False):
        HfApi().auth_check(repository, repo_type=kind)


def fetch(repository: str, patterns: list[str], needs: Sequence[str] = ()) -> Path:
    """The files of `repository` that match the patterns, in the hub's own cache -> their folder.

    Raises `Unavailable` where a file that matches one of `needs` cannot be had from here, and
    `Rejected` where the repository has none.
    """
    from huggingface_hub import snapshot_download

    local = not reach(repository)
    try:
        folder = snapshot_download(repository, allow_patterns=patterns, local_files_only=local)
    except Exception as error:  # of any kind: network, disk, a file that is not there
        raise Unavailable(f"cannot fetch '{repository}' from the hub ({reason(error)})") from None
    for need in needs:
        if not any(Path(folder).glob(need)):
            if local:  # a cache may hold a part of a repository
                raise Unavailable(f"no {need} of '{repository}' in the hub's cache, and no hub")
            raise Rejected(f"'{repository}' on the hub has no {need}")
    return Path(folder)


def folders(repository: str, name: str) -> list[str]:
    """Every folder of a repository that holds a file `name`; [] where the hub does not say."""
    from huggingface_hub import HfApi

    try:
        files = in_time(lambda: HfApi().list_repo_files(repository))
    except Exception:  # it only helps with a message
        return []
    return sorted({str(Path(file).parent) for file in files if Path(file).name == name} - {"."})


def from_network(error: Exception) -> bool:
    """Whether an exception is the network's or the disk's, and not the input's."""
    module = type(error).__module__.partition(".")[0].rstrip("2")
    return isinstance(error, OSError) or module in TRANSPORTS


def _in_cache(repository: str, kind: str) -> bool:
    from huggingface_hub import snapshot_download

    try:
        return bool(snapshot_download(repository, repo_type=kind, local_files_only=True))
    except Exception:  # not there, or not readable
        return False
