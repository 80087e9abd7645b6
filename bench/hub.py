"""The Hugging Face hub: asked only where a spec names something on it, one try, a clear answer.

HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN are honoured as its own client does.
"""

import re
from functools import cache
from pathlib import Path

from bench.errors import Unavailable, Usage, reason

SECONDS = 3.0
"""Limit on a connection to the hub; each of its addresses has its own."""


def is_id(name):
    """Whether `OWNER/NAME` can only be meant as a repository: no such folder, nor its parent."""
    looks = re.fullmatch(r"[\w.-]+/[\w.-]+", name)
    return bool(looks) and not name.startswith(".") and not Path(name).parent.exists()


@cache
def reach(repository, kind="model"):
    """Ask the hub for `repository` -> whether it answered; False: the hub's cache must do.

    An answer holds for the rest of the process. Raises `Unavailable` where the hub is out of reach
    and its cache has nothing, or where the repository is gated, and `Usage` where there is none.
    """
    from huggingface_hub import HfApi, constants, errors

    if constants.is_offline_mode():
        if _in_cache(repository, kind):
            return False
        raise Unavailable(
            f"HF_HUB_OFFLINE is set and '{repository}' is not in the hub's cache: "
            "unset it, or give a folder"
        )
    try:
        found = HfApi().repo_info(repository, repo_type=kind, timeout=SECONDS)
        if getattr(found, "gated", False):
            HfApi().auth_check(repository, repo_type=kind)
        return True
    except errors.GatedRepoError:
        raise Unavailable(
            f"'{repository}' is gated: accept its licence at https://huggingface.co/{repository} "
            "and set HF_TOKEN to a token of yours"
        ) from None
    except errors.RepositoryNotFoundError:
        raise Usage(
            f"'{repository}': neither a folder here nor a {kind} that the hub shows; "
            "if it is private, set HF_TOKEN"
        ) from None
    except Exception as error:  # whatever the client's transport raises
        if _in_cache(repository, kind):
            return False
        raise Unavailable(
            f"cannot reach the hub for '{repository}' ({reason(error)}); give a folder instead"
        ) from None


def fetch(repository, patterns):
    """The files of `repository` that match the patterns, in the hub's own cache -> their folder."""
    from huggingface_hub import snapshot_download

    local = not reach(repository)
    try:
        folder = snapshot_download(repository, allow_patterns=patterns, local_files_only=local)
    except Exception as error:  # of any kind: network, disk, a file that is not there
        raise Unavailable(f"cannot fetch '{repository}' from the hub ({reason(error)})") from None
    return Path(folder)


def _in_cache(repository, kind):
    from huggingface_hub import snapshot_download

    try:
        return bool(snapshot_download(repository, repo_type=kind, local_files_only=True))
    except Exception:  # not there, or not readable
        return False
