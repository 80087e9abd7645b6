"""Where an SAE comes from: `--sae` -> a folder that SAELens loads.

`own` and `fresh` are made by `bench.runs.own_sae`. A folder of SAELens' is taken as it is; what
comes from the hub, or from sparsify, is converted once and cached.
"""

import hashlib
import importlib.util
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.config.spec import MADE_HERE
from bench.errors import Rejected, Unavailable, Usage, reason, unknown
from bench.io.console import say
from bench.io.files import cache_root, new_folder
from bench.loading import hub, saes, sparsify, tensors_only

FOLDER = f"a folder with cfg.json and {saes.WEIGHTS}, as SAELens saves it"
EXPECTED = "expected own, fresh, a folder with cfg.json, saelens:RELEASE:ID or sparsify:REPO:HOOK"


def check_source(sae: str) -> None:
    """Raise what is wrong with `--sae`, without loading anything."""
    if sae in MADE_HERE:
        return
    if from_hub(sae):
        _, repository, _ = split(sae)
        if not _cached(sae).exists():
            hub.reach(repository)
        return
    path = Path(sae).expanduser()
    if path.is_file():
        tensors_only.refuse(path, FOLDER)
    there, foreign = (path / "cfg.json").is_file(), tensors_only.first_in(path)
    if there and any((path / name).is_file() for name in (saes.WEIGHTS, sparsify.WEIGHTS)):
        return
    if foreign:
        tensors_only.refuse(foreign, FOLDER)
    if not there:
        raise Usage(f"no SAE at '{sae}': {EXPECTED}")
    saes.check_there(path)


def from_hub(sae: str) -> bool:
    """Whether this SAE is on the hub."""
    return sae.startswith(("saelens:", "sparsify:"))


def locate(sae: str) -> Path:
    """The SAELens folder of a `--sae` that is neither own nor fresh."""
    if from_hub(sae):
        return _from_hub(sae)
    folder = Path(sae).expanduser()
    if not sparsify.is_folder(folder):
        return folder
    read = hashlib.sha256((folder / "cfg.json").read_bytes())
    with (folder / sparsify.WEIGHTS).open("rb") as file:
        read.update(hashlib.file_digest(file, "sha256").digest())
    target = cache_root() / "saes" / f"sparsify-{read.hexdigest()[:16]}" / folder.name
    if not target.exists():
        with new_folder(target) as temporary:
            sparsify.convert(folder, temporary, folder.name)
    return target


def split(sae: str) -> tuple[str, str, str]:
    """`saelens:RELEASE:ID` or `sparsify:REPO:HOOK` -> (which, the hub's repository, the id)."""
    which, _, rest = sae.partition(":")
    name, _, part = rest.partition(":")
    if not (name and part):
        raise Usage(f"--sae '{sae}': {EXPECTED}")
    if which == "sparsify":
        return which, name, part
    releases = _releases()
    if name not in releases:
        raise unknown("SAELens release", name, _near(name, releases))
    known = [entry["id"] for entry in releases[name]["saes"]]
    if part not in known:
        raise unknown(f"SAE of {name}", part, _near(part, known))
    return which, releases[name]["repo_id"], part


@lru_cache
def _releases() -> dict[str, dict[str, Any]]:
    """SAELens' list of releases, without importing SAELens, which takes seconds."""
    import yaml

    (folder,) = importlib.util.find_spec("sae_lens").submodule_search_locations
    return yaml.safe_load((Path(folder) / "pretrained_saes.yaml").read_text(encoding="utf-8"))


def expected_l0(sae: str) -> float | None:
    """The L0 that a SAELens release states for this SAE, or None."""
    if not sae.startswith("saelens:"):
        return None
    _, release, part = sae.split(":", 2)
    return next((e.get("l0") for e in _releases()[release]["saes"] if e["id"] == part), None)


def _near(name: str, choices: Collection[str]) -> list[str]:
    """A few of many choices: those that share a beginning with `name`."""
    for length in range(len(name), 0, -1):
        near = [choice for choice in choices if choice.startswith(name[:length])]
        if near:
            return near[:8]
    return list(choices)[:8]


def _cached(sae: str) -> Path:
    return cache_root() / "saes" / "hub" / sae.replace(":", "--").replace("/", "--")


def _from_hub(sae: str) -> Path:
    target = _cached(sae)
    if target.exists():
        return target
    which, repository, part = split(sae)
    say(f"fetching {sae} (once; then it is cached)")
    with new_folder(target) as temporary:
        if which == "sparsify":
            sparsify.convert(_fetch_part(repository, part), temporary, part)
        else:
            _save_release(sae, temporary)
    return target


def _fetch_part(repository: str, part: str) -> Path:
    fetched = hub.fetch(repository, [f"{part}/*"]) / part
    if sparsify.is_folder(fetched):
        return fetched
    if not hub.reach(repository):  # its cache may hold a part of a folder
        raise Unavailable(f"no whole {part} of '{repository}' in the hub's cache, and no hub")
    known = hub.folders(repository, sparsify.WEIGHTS)
    if not known:
        raise Usage(f"'{repository}' on the hub shows no sparsify hook point, '{part}' or other")
    raise unknown(f"hook point of {repository}", part, _near(part, known))


def _save_release(sae: str, folder: Path) -> None:
    from sae_lens import SAE

    _, release, part = sae.split(":", 2)
    try:
        with tensors_only.enforced():  # some of its loaders read torch's files
            loaded = SAE.from_pretrained(release, part, dtype="float32")
        for parameter in loaded.parameters():  # some loaders transpose, and safetensors refuses
            parameter.data = parameter.data.contiguous()
        loaded.save_model(folder)
    except Exception as error:  # of any kind: the download, or a format that SAELens does not read
        if hub.from_network(error):
            raise Unavailable(f"cannot fetch {sae} ({reason(error)})") from None
        raise Rejected(f"{sae}: SAELens cannot load it ({reason(error)})") from None
