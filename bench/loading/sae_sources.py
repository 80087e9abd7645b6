"""Where an SAE comes from: `--sae` -> a folder that SAELens loads.

`own` and `fresh` are made by `bench.runs.own_sae`. A folder of SAELens' stays as it is. What comes
from the hub, or from EleutherAI's sparsify, is converted once and cached. SAELens' own loader
transposes a decoder that sparsify stores as [latents, d_in], and subtracts the decoder bias from
the input only sometimes; sparsify always does.
"""

import importlib.util
import re
from collections.abc import Collection
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.config.spec import MADE_HERE
from bench.errors import Rejected, Unavailable, Usage, reason, unknown
from bench.io.console import say
from bench.io.files import cache_root, new_folder, sha256_of_file
from bench.io.record import digest
from bench.loading import hub, saes, weights

FOLDER = f"a folder with cfg.json and {saes.WEIGHTS}, as SAELens saves it"
EXPECTED = "expected own, fresh, a folder with cfg.json, saelens:RELEASE:ID or sparsify:REPO:HOOK"
SPARSIFY_WEIGHTS = "sae.safetensors"
PLAIN = {"signed": False, "transcode": False, "skip_connection": False, "activation": "topk"}
"""Fields of a plain TopK autoencoder's config."""


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
    has_config = (path / "cfg.json").is_file()
    if has_config and any((path / name).is_file() for name in (saes.WEIGHTS, SPARSIFY_WEIGHTS)):
        return
    foreign = path if path.is_file() else weights.first_foreign(path)
    if foreign:
        weights.refuse(foreign, FOLDER)
    if not has_config:
        raise Usage(f"no SAE at '{sae}': {EXPECTED}")
    saes.check_there(path)


def from_hub(sae: str) -> bool:
    """Whether this SAE is on the hub."""
    return sae.startswith(("saelens:", "sparsify:"))


def locate(sae: str) -> Path:
    """The SAELens folder of a `--sae` that is neither own nor fresh; converted on first use."""
    folder = Path(sae).expanduser()
    if not from_hub(sae) and not is_sparsify(folder):
        return folder
    target = _cached(sae)
    if not target.exists():
        with new_folder(target) as temporary:
            if from_hub(sae):
                _from_hub(sae, temporary)
            else:
                convert_sparsify(folder, temporary, folder.name)
    return target


def _cached(sae: str) -> Path:
    """Where an SAE of another format, or of the hub, is kept once it is converted."""
    if from_hub(sae):
        return cache_root() / "saes" / "hub" / sae.replace(":", "--").replace("/", "--")
    folder = Path(sae).expanduser()
    content = [sha256_of_file(folder / name) for name in ("cfg.json", SPARSIFY_WEIGHTS)]
    return cache_root() / "saes" / f"sparsify-{digest(content)[:16]}" / folder.name


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
        raise _unknown("SAELens release", name, releases)
    known = [entry["id"] for entry in releases[name]["saes"]]
    if part not in known:
        raise _unknown(f"SAE of {name}", part, known)
    return which, releases[name]["repo_id"], part


@lru_cache
def _releases() -> dict[str, dict[str, Any]]:
    """SAELens' list of releases, without importing SAELens, which takes seconds."""
    import yaml

    spec = importlib.util.find_spec("sae_lens")
    assert spec and spec.submodule_search_locations  # a dependency of ours
    path = Path(spec.submodule_search_locations[0], "pretrained_saes.yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def expected_l0(sae: str) -> float | None:
    """The L0 that a SAELens release states for this SAE, or None."""
    if not sae.startswith("saelens:"):
        return None
    _, release, part = sae.split(":", 2)
    return next((e.get("l0") for e in _releases()[release]["saes"] if e["id"] == part), None)


def _unknown(kind: str, name: str, choices: Collection[str]) -> Usage:
    """`unknown` where there are many choices: it names the nearest."""
    return unknown(kind, name, get_close_matches(name, choices, n=8, cutoff=0))


def _from_hub(sae: str, folder: Path) -> None:
    which, repository, part = split(sae)
    say(f"fetching {sae} (once; then it is cached)")
    if which == "sparsify":
        convert_sparsify(_fetch_part(repository, part), folder, part)
    else:
        _save_release(sae, folder)


def _fetch_part(repository: str, part: str) -> Path:
    fetched = hub.fetch(repository, [f"{part}/*"]) / part
    if is_sparsify(fetched):
        return fetched
    if not hub.reach(repository):  # its cache may hold a part of a folder
        raise Unavailable(f"no whole {part} of '{repository}' in the hub's cache, and no hub")
    known = hub.folders(repository, SPARSIFY_WEIGHTS)
    if not known:
        raise Usage(f"'{repository}' on the hub shows no sparsify hook point, '{part}' or other")
    raise _unknown(f"hook point of {repository}", part, known)


def _save_release(sae: str, folder: Path) -> None:
    from sae_lens import SAE

    _, release, part = sae.split(":", 2)
    try:
        with weights.tensors_only():  # some of its loaders read torch's files
            loaded = SAE.from_pretrained(release, part, dtype="float32")
        for parameter in loaded.parameters():  # some loaders transpose, and safetensors refuses
            parameter.data = parameter.data.contiguous()
        loaded.save_model(folder)
    except Exception as error:  # of any kind: the download, or a format that SAELens does not read
        if hub.from_network(error):
            raise Unavailable(f"cannot fetch {sae} ({reason(error)})") from None
        raise Rejected(f"{sae}: SAELens cannot load it ({reason(error)})") from None


def is_sparsify(folder: Path) -> bool:
    """Whether a folder looks like one of sparsify's."""
    return (folder / SPARSIFY_WEIGHTS).is_file() and (folder / "cfg.json").is_file()


def convert_sparsify(source: Path, target: Path, hookpoint: str) -> None:
    """Write the sparsify checkpoint in folder `source` as a SAELens TopK SAE to folder `target`.

    `hookpoint` is sparsify's name of the site (`layers.12`, `layers.12.mlp`). The model is not
    named, as the checkpoint does not know it. Raises `Rejected` for what is not a plain TopK
    autoencoder.
    """
    import torch
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from safetensors.torch import load_file

    path = source / SPARSIFY_WEIGHTS
    config = weights.read_json(source / "cfg.json", "a sparsify config", k=int)
    for field, plain in PLAIN.items():
        if config.get(field, plain) not in (plain, None):
            wrong = f"{field} is {config[field]!r}, expected a plain TopK SAE"
            raise Rejected(f"{source / 'cfg.json'}: {wrong}")
    # Its chunks start as the tokenizer starts a text.
    metadata = SAEMetadata(hook_name=site(hookpoint), prepend_bos=True)
    try:
        tensors = {name: value.float() for name, value in load_file(path).items()}
        tensors["W_enc"] = tensors.pop("encoder.weight").T.contiguous()
        tensors["b_enc"] = tensors.pop("encoder.bias")
        d_sae, d_in = tensors["W_dec"].shape
        sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=config["k"], metadata=metadata))
        sae.load_state_dict(tensors)
    except Exception as error:  # of any kind: a torn file, a tensor's name or shape
        wrong = reason(" ".join(str(error).split()))
        raise Rejected(f"{path}: not a sparsify autoencoder ({wrong})") from None
    with torch.no_grad():
        sae.save_model(target)


def site(hookpoint: str) -> str:
    """sparsify's name of a site -> TransformerLens': `layers.12` is the residual after block 12."""
    match = re.fullmatch(r"(?:.*\.)?(?:layers|h)[._](\d+)(\.mlp|\.self_attn|\.attn)?", hookpoint)
    if not match:
        raise Rejected(f"sparsify hook point '{hookpoint}': expected layers.N or layers.N.mlp")
    points = {None: "hook_resid_post", ".mlp": "mlp.hook_out"}
    return f"blocks.{match[1]}.{points.get(match[2], 'attn.hook_out')}"
