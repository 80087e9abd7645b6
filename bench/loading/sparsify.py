"""EleutherAI's sparsify checkpoints -> SAELens folders.

SAELens' own loader transposes a decoder that sparsify stores as [latents, d_in], and subtracts
the decoder bias from the input only sometimes; sparsify always does.
"""

import re
from pathlib import Path
from typing import Any

from bench.errors import Rejected, reason
from bench.loading import weights

WEIGHTS = "sae.safetensors"
PLAIN = {"signed": False, "transcode": False, "skip_connection": False, "activation": "topk"}
"""Fields of a plain TopK autoencoder's config."""


def is_folder(folder: Path) -> bool:
    """Whether a folder looks like one of sparsify's."""
    return (folder / WEIGHTS).is_file() and (folder / "cfg.json").is_file()


def convert(source: Path, target: Path, hookpoint: str | None = None) -> None:
    """Write the sparsify checkpoint in folder `source` as a SAELens TopK SAE to folder `target`.

    `hookpoint` is sparsify's name of the site (`layers.12`, `layers.12.mlp`), by default the
    folder's name. The model is not named, as the checkpoint does not know it. Raises `Rejected`
    for what is not a plain TopK autoencoder.
    """
    import torch
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from safetensors.torch import load_file

    config = read_config(source)
    metadata = SAEMetadata(
        hook_name=site(hookpoint or source.name),
        prepend_bos=True,  # its chunks start as the tokenizer starts a text
    )
    try:
        tensors = {name: value.float() for name, value in load_file(source / WEIGHTS).items()}
        state = {
            "W_enc": tensors["encoder.weight"].T.contiguous(),
            "b_enc": tensors["encoder.bias"],
            "W_dec": tensors["W_dec"],
            "b_dec": tensors["b_dec"],
        }
        d_sae, d_in = state["W_dec"].shape
        sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=config["k"], metadata=metadata))
        sae.load_state_dict(state)
    except Exception as error:  # of any kind: a torn file, a tensor's name or shape
        wrong = reason(" ".join(str(error).split()))
        raise Rejected(f"{source / WEIGHTS}: not a sparsify autoencoder ({wrong})") from None
    with torch.no_grad():
        sae.save_model(target)


def read_config(source: Path) -> dict[str, Any]:
    """sparsify's cfg.json; `Rejected` where it names something other than a TopK autoencoder."""
    path = source / "cfg.json"
    config = weights.read_json(path, "a sparsify config", k=int)
    for field, plain in PLAIN.items():
        if config.get(field, plain) not in (plain, None):
            raise Rejected(f"{path}: {field} is {config[field]!r}, expected a plain TopK SAE")
    return config


def site(hookpoint: str) -> str:
    """sparsify's name of a site -> TransformerLens': `layers.12` is the residual after block 12."""
    match = re.fullmatch(r"(?:.*\.)?(?:layers|h)[._](\d+)(\.mlp|\.self_attn|\.attn)?", hookpoint)
    if not match:
        raise Rejected(f"sparsify hook point '{hookpoint}': expected layers.N or layers.N.mlp")
    points = {None: "hook_resid_post", ".mlp": "mlp.hook_out"}
    return f"blocks.{match[1]}.{points.get(match[2], 'attn.hook_out')}"
