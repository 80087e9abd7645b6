"""SAELens SAEs: fresh, from a folder, to a folder, and ready to be trained.

The kinds are those of SAELens' inference classes: topk, jumprelu, standard, gated, and transcoders.
A batchtopk is saved as a jumprelu with one threshold for all latents.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config.spec import Spec
from bench.errors import Rejected, reason
from bench.io.record import digest
from bench.loading import weights

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch.nn import Module, ModuleList

WEIGHTS = "sae_weights.safetensors"
TRANSCODERS = tuple(f"{kind}transcoder" for kind in ("", "skip_", "jumprelu_", "jumprelu_skip_"))
KINDS = ("topk", "jumprelu", "standard", "gated", *TRANSCODERS)
"""What can be spliced in and trained end to end."""
COST = "cost.json"
"""Beside a saved SAE: what its training had cost by then, and the record of that training."""


def save_fresh(spec: Spec, index: int, d_in: int, folder: Path) -> None:
    """Write a random TopK SAE for site number `index`, started as SAELens does, to `folder`."""
    import torch
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    site = spec.sites[index]
    config = TopKTrainingSAEConfig(
        d_in=d_in,
        d_sae=spec.sae_width * d_in,
        k=spec.sae_k,
        reshape_activations="hook_z" if site.endswith("hook_z") else "none",
        metadata=SAEMetadata(
            model_name=spec.model,
            hook_name=site,
            context_size=spec.seq_len,
            prepend_bos=spec.prepend_bos,
            spliced_positions=spec.spliced,
        ),
    )
    with torch.random.fork_rng():
        torch.manual_seed(spec.sae_seed + index)
        save(TopKTrainingSAE(config), folder)


def save(sae: "Module", folder: Path, **cost: object) -> None:
    """Write an SAE as a SAELens folder (in its inference form); `cost` goes beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(sae, "folded"):  # a correction of its output
        sae = sae.folded()
    getattr(sae, "save_inference_model", sae.save_model)(folder)
    if cost:
        (folder / COST).write_text(json.dumps(cost, indent=1) + "\n", encoding="utf-8")


STATE = "training.pt"
"""Beside a saved SAE: what its training has kept, so that another one goes on from there."""


def save_state(state: dict[str, Any], folder: Path) -> None:
    """Keep the state of a training beside its SAE, or beside the first of several."""
    import torch

    torch.save(state, folder / STATE)


def kept_state(folder: Path) -> dict[str, Any]:
    """What the training of the SAE in `folder` has kept; `Rejected` where that is nothing."""
    import torch

    path = folder / STATE
    if not path.is_file():
        raise Rejected(f"SAE {folder.name}: its training kept no state; expected one with decay 0")
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # of whatever kind torch raises
        raise Rejected(f"{path}: cannot be read ({reason(error)})") from None


def shuffle(folder: Path) -> None:
    """Exchange the rows of the decoder in `folder`: each latent keeps another one's direction."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    draw = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(tensors["W_dec"]), generator=draw)
    tensors["W_dec"] = tensors["W_dec"][rows].contiguous()
    save_file(tensors, folder / WEIGHTS)


DROPPED = ("finetuning_scaling_factor", "hook_head_index", "hook_point_head_index")
"""Fields of older formats that change what an SAE does, and that SAELens leaves out."""


def load_all(
    folders: list[Path], widths: Sequence[tuple[int, ...]], device: str = "cpu"
) -> "ModuleList":
    """The SAEs in these folders, for sites of these widths, as a ModuleList."""
    import torch

    pairs = zip(folders, widths, strict=True)
    return torch.nn.ModuleList(load(folder, *width, device=device) for folder, width in pairs)


def load(folder: Path, d_in: int, d_out: int | None = None, *, device: str = "cpu") -> "SAE":
    """The SAE in `folder`, float32; the caller freezes it. With `d_out` it is a transcoder.

    Raises `Rejected` where the folder is no SAELens SAE of these widths, or its tensors are not
    finite or not those of its config.
    """
    import torch
    from sae_lens import SAE

    from bench import devices

    config = read_config(folder)
    check_function(config, folder)
    if (kind := config.get("architecture")) in TRANSCODERS and not d_out:
        raise Rejected(f"SAE {folder.name}: a {kind}: expected --site READ:WRITTEN, two points")
    if kind not in TRANSCODERS and d_out:
        raise Rejected(f"SAE {folder.name}: no transcoder: expected a --site of one point")
    for name, width in {"d_in": d_in, **({"d_out": d_out} if d_out else {})}.items():
        if (own := config.get(name)) != width:
            raise Rejected(f"SAE {folder.name}: {name} {own}, the model's site has width {width}")
    check_there(folder)
    weights.names_in(folder / WEIGHTS)
    try:
        sae = SAE.load_from_disk(folder, device=devices.own(device), dtype="float32")
    except Exception as error:  # of any kind; torch's has a line for each name
        why = reason(" ".join(str(error).split()))
        unfit = "loading state_dict" in why
        wrong = "its tensors are not those of its cfg.json" if unfit else "SAELens cannot load it"
        raise Rejected(f"SAE {folder}: {wrong} ({why})") from None
    kind, kinds = sae.cfg.architecture(), ", ".join(KINDS)
    if kind not in KINDS:
        raise Rejected(f"SAE {folder}: kind '{kind}', expected one of {kinds}")
    sae.turn_off_forward_pass_hook_z_reshaping()  # its input is heads that are flattened already
    if (getattr(sae, "threshold", torch.zeros(1)) < 0).any():
        raise Rejected(f"SAE {folder}: it has thresholds below 0")
    weights.check_finite(sae.state_dict().items(), f"SAE {folder}")
    return sae


def check_function(config: dict[str, Any], folder: Path) -> None:
    """Raise `Rejected` where a cfg.json asks for a function that SAELens would load as another.

    SAELens drops the fields of older formats that it does not know; an unknown activation
    becomes ReLU.
    """
    activation = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    settings = {k: v for k, v in (config.get("activation_fn_kwargs") or {}).items() if v}
    k = settings.pop("k", None) or config.get("k")
    dropped = {"activation_fn_kwargs": settings or None} | {n: config.get(n) for n in DROPPED}
    # The first head is number 0.
    odd = {n: v for n, v in dropped.items() if v is not None and v is not False}
    wrong = {
        f"activation '{activation}', expected relu or topk": activation not in ("relu", "topk"),
        "activation 'topk' without a k": activation == "topk" and not k,
        **{f"{name} '{value}', expected none": True for name, value in odd.items()},
    }
    for line in filter(wrong.get, wrong):
        raise Rejected(f"SAE {folder}: {line}")


def check_there(folder: Path) -> None:
    """Raise `Rejected` for a folder without weights that SAELens would read."""
    if not (folder / WEIGHTS).is_file():
        raise Rejected(f"SAE {folder}: no {WEIGHTS}")


def checkpoint_name(share: float, index: int, n_saes: int) -> str:
    """The folder that SAE number `index` of a run is kept in at `share` of it."""
    return f"sae-{round(100 * share):03d}" + (f"-{index}" if n_saes > 1 else "")


def checkpoint(run: Path, share: float) -> list[Path]:
    """The folders of the SAEs that a run, at the folder `run`, kept at `share` of it; or []."""
    one = run / checkpoint_name(share, 0, 1)
    several = sorted(run.glob(f"{one.name}-*"), key=lambda f: int(f.name.rpartition("-")[2]))
    return [one] if one.is_dir() else several


def cost_of(folder: Path) -> dict[str, Any] | None:
    """What the SAE's training had cost when it was saved, or None where nothing says so."""
    path = folder / COST
    return weights.read_json(path, "what a training cost") if path.is_file() else None


def sha256(folder: Path) -> str:
    """The hash of the SAE's weights and config: what makes it the same SAE.

    The config counts by content: SAELens writes its keys in an order of the moment. Where the
    SAE was when it was saved, and what it says of its training, does not count.
    """
    check_there(folder)
    config = {k: v for k, v in read_config(folder).items() if k not in ("device", "metadata")}
    content = (folder / WEIGHTS).read_bytes()
    return hashlib.sha256(content + digest(config).encode()).hexdigest()


def sha256_of(folders: list[Path]) -> str:
    """`sha256` of one SAE, or one hash for the SAEs of several sites."""
    hashes = [sha256(folder) for folder in folders]
    return hashes[0] if len(hashes) == 1 else digest(hashes)


def read_config(folder: Path) -> dict[str, Any]:
    """The SAE's cfg.json; `Rejected` where it is none of SAELens'."""
    return weights.read_json(folder / "cfg.json", "a SAELens config", d_in=int)


def metadata(folder: Path) -> dict[str, Any]:
    """What the SAE says of where it was trained, as its cfg.json has it, and no more."""
    config = read_config(folder)
    about = config.get("metadata", config)  # at the top, before SAELens 6
    scaled = {"normalize_activations": config.get("normalize_activations")}
    return {**about, **scaled} if isinstance(about, dict) else scaled
