"""The named specs: each with the SAE, site, context and token rule of the paper or the field.

For an SAE of others, `prepend_bos`, `spliced` and `seq_len` are those of its training; `check`
compares them with the SAE's own metadata. The budgets of the two large models are the paper's
(Chen et al. 2501.19406: 15,000 steps of one window of 1,024 tokens). On less than a GPU give
`--steps` and `--val-tokens`.
"""

from dataclasses import asdict, replace
from typing import Any

from bench.config.spec import Spec, flag
from bench.errors import unknown

GPT2 = Spec(
    name="gpt2-small",
    model="openai-community/gpt2",
    site="blocks.8.hook_resid_post",
    sae="saelens:gpt2-small-resid-post-v5-32k:blocks.8.hook_resid_post",  # OpenAI's TopK, k = 32
    spliced="all",
    scored="all",
    seq_len=64,
    batch_size=8,
)
GPT2_JB = replace(
    GPT2,
    name="gpt2-small-jb",
    center_writing_weights=True,
    site="blocks.8.hook_resid_pre",
    sae="saelens:gpt2-small-res-jb:blocks.8.hook_resid_pre",  # Bloom's, ReLU
    prepend_bos=True,
    seq_len=128,
    batch_size=4,
)
PAPER = Spec(
    sae_k=64,
    sae_width=8,
    sae_tokens=50_000_000,  # the paper's own: 2e9 (Gemma), 4e9 (Llama)
    sae_lr=2e-4,
    prepend_bos=True,
    seq_len=1_024,
    batch_size=1,
    steps=15_000,
    curve_tokens=32_768,
    val_docs=256,
    val_tokens=1_048_576,
    stream_tokens=80_000_000,
)
GEMMA2_TOPK = replace(
    PAPER,
    name="gemma-2-2b-topk",
    model="google/gemma-2-2b",
    site="blocks.12.hook_resid_post",
    spliced="all",
    scored="all",
    text="redpajama-v2",
)
GEMMA2 = replace(
    GEMMA2_TOPK,
    name="gemma-2-2b",
    sae="saelens:gemma-scope-2b-pt-res-canonical:layer_12/width_16k/canonical",  # JumpReLU
    spliced="not-special",
    text="pile-uncopyrighted",
)
LLAMA = replace(GEMMA2_TOPK, name="llama-3.2-1b", model="meta-llama/Llama-3.2-1B")
LLAMA_SPARSIFY = replace(
    LLAMA,
    name="llama-3.2-1b-sparsify",
    site="blocks.12.mlp.hook_out",
    sae="sparsify:EleutherAI/sae-Llama-3.2-1B-131k:layers.12.mlp",
)
GEMMA3 = Spec(
    name="gemma-3-270m",
    model="package:gemma3-270m",
    site="blocks.9.hook_resid_post",
    prepend_bos=True,
    spliced="not-special",
    scored="not-special",
)
GEMMA3_SCOPE = replace(
    GEMMA3,
    name="gemma-3-270m-scope",
    model="google/gemma-3-270m",
    sae="saelens:gemma-scope-2-270m-pt-res:layer_9_width_16k_l0_medium",  # JumpReLU
    seq_len=1_024,
    batch_size=1,
)

SPECS = {
    spec.name: spec
    for spec in (
        Spec(),
        GEMMA3,
        GEMMA3_SCOPE,
        GPT2,
        GPT2_JB,
        GEMMA2,
        GEMMA2_TOPK,
        LLAMA,
        LLAMA_SPARSIFY,
    )
}
"""The named specs."""


def named(name: str, **changes: Any) -> Spec:
    """The named spec with some fields changed; `Usage` with the nearest name if there is none.

    Random weights read random tokens, as no tokenizer may be at hand, unless a text is given.
    """
    if name not in SPECS:
        raise unknown("spec", name, SPECS)
    if changes.get("weights") == "random":
        changes = {"text": "random", **changes}
    return replace(SPECS[name], **changes)


def flags_of(spec: Spec, changes: dict[str, Any]) -> list[str]:
    """The flags that make this spec, with some fields changed, of the named one."""
    values = {**asdict(spec), **changes}
    changed = {k: v for k, v in values.items() if v != getattr(SPECS[spec.name], k)}
    return ["--spec", spec.name, *(str(word) for k, v in changed.items() for word in (flag(k), v))]
