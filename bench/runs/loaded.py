"""Spec -> model and text, before any SAE, with the keys of their files in the cache."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.config.spec import Spec
from bench.errors import Rejected
from bench.harness.provenance import clock, versions
from bench.io.console import say
from bench.io.files import cache_root
from bench.io.record import digest
from bench.loading import models, text
from bench.problem.clean_cache import CleanCache
from bench.problem.hooks import HookPoints
from bench.problem.problem import Problem
from bench.runs.code_hash import code
from bench.runs.preflight import quiet_libraries

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Loaded:
    """The model and the text of a spec, before any SAE."""

    spec: Spec
    bridge: "TransformerBridge"
    text: text.Text
    widths: tuple[tuple[int, ...], ...]
    """Width of each site, or of its two points."""
    key: str
    """What model and text depend on, hashed: names the caches."""
    model_key: str
    """What the model alone depends on, hashed."""
    special: tuple[int, ...]
    """Ids of BOS, EOS, PAD and their like."""
    model: dict[str, str]
    """The record's `model`: family and hash."""

    @property
    def recipe(self) -> dict[str, Any]:
        """The fields of the spec that make an own or fresh SAE what it is, at any share."""
        others = ("sae_share", "sae_set", "sae_decoder")  # of its training and what follows
        fields = asdict(self.spec).items()
        return {k: v for k, v in fields if k.startswith("sae_") and k not in others}

    def problem(self, saes: torch.nn.ModuleList) -> Problem:
        """A `Problem` with these SAEs."""
        spec = self.spec
        return Problem(
            self.bridge,
            saes,
            spec.sites,
            self.text.train,
            spliced=spec.spliced,
            scored=spec.scored,
            special=self.special,
            batch_size=spec.batch_size,
            clean_cache=CleanCache(self.clean_folder) if spec.cache_clean else None,
        )

    @property
    def clean_folder(self) -> Path:
        """Where `cache_clean` keeps the clean side of training windows."""
        return (
            cache_root() / "clean" / digest([self.model_key, self.spec.site, self.spec.scored])[:16]
        )


def load(spec: Spec, folder: Path, tell: bool = True, shard: bool = False) -> Loaded:
    """Model and text of a spec -> `Loaded`; `folder` is the model's. With `shard` its blocks are
    spread over the processes."""
    quiet_libraries()
    if tell:
        say(f"loading {spec.model} and the text '{spec.text}'")
    tokenizer = models.load_tokenizer(folder)
    models.check_tokenizer(tokenizer, spec.text)
    special = tuple(sorted(models.special_ids(tokenizer)))  # before the bridge may add to them
    bridge = models.load(folder, spec, tokenizer, shard)
    parts = text.load(spec, tokenizer, len(bridge.unembed.weight))
    check_vocabulary(parts, bridge)
    if tell and parts.read:
        say(text.in_words(parts))
    numbers = [spec.device, spec.dtype, spec.weights, spec.center_writing_weights]
    numbers += [clock(spec.device)["matmul"], special]
    about = {
        "type": models.read_config(folder)["model_type"],
        "sha256": models.fingerprint(folder),
    }
    model = [versions(), code(), about, numbers]
    written = text.fingerprint(parts)
    parts = text.moved(parts, spec.device)
    points = HookPoints(bridge)
    widths = tuple(points.widths_at(site) for site in spec.sites)  # raises without such a point
    key = digest([model, fields_of(spec), written])[:16]
    return Loaded(spec, bridge, parts, widths, key, digest(model), special, about)


def fields_of(spec: Spec) -> dict[str, Any]:
    """The fields of a spec that model and text depend on."""
    others = ("name", "sae", "steps", "cache_clean", "held_out")
    return {k: v for k, v in asdict(spec).items() if not k.startswith(others)}


def check_vocabulary(parts: text.Text, bridge: "TransformerBridge") -> None:
    """Raise `Rejected` if the tokenizer has ids that the model has no embedding for."""
    rows = len(bridge.unembed.weight)
    if parts.largest >= rows:
        raise Rejected(
            f"the tokenizer does not fit the model: token id {parts.largest}, {rows} rows"
        )
