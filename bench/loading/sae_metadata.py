"""Does an SAE belong at this site: what it says of itself against what the spec says."""

import re
from typing import Any

from bench.config.spec import Spec, ends_of
from bench.loading import hub

BLOCK, CENTRED = r"^blocks\.\d+\.", "center_writing_weights"
ALIASES = {"gpt2": "gpt2-small", "gpt2small": "gpt2-small"}
"""Names that the field has for one model."""
AT_HEADS = ("fold_value_biases", "refactor_factored_attn_matrices")
"""Processing by TransformerLens that changes what each head gives, and no other site."""
HARMLESS: tuple[str, ...] = ("fold_ln", "center_unembed", "dtype", "torch_dtype", "device_map")
HARMLESS += ("trust_remote_code", "default_prepend_bos", "default_padding_side", "move_to_device")
HARMLESS += ("n_devices",)
"""Settings of a model's loading that change what no SAE's site sees."""
UNFOLDED = ("expected_average_only_in", "covariance_whitening")
"""Scalings of SAELens' that an SAE cannot do by itself."""


def disagreements(
    spec: Spec, metadata: dict[str, Any], family: str = "", site: str | None = None
) -> list[str]:
    """One line for everything in an SAE's metadata that the spec says otherwise.

    What the metadata leaves out is not compared, and neither is the name of a model in a folder.
    `family` is the model's type: outside Gemma two of the points have two names each. `site` is
    the SAE's, where the spec has several.
    """
    get, site, trained = metadata.get, site or spec.site, "the SAE was trained"
    model = get("model_name") or spec.model
    bos, positions = get("prepend_bos"), get("spliced_positions")
    start, scaled = (get("seqpos_slice") or [None])[0], get("normalize_activations")
    site, written = ends_of(site)
    hook, out = get("hook_name") or site, get("hook_name_out") or written
    elsewhere = _canonical(hook, family) != _canonical(site, family)
    gives = _canonical(out, family) != _canonical(written, family)
    place = "site" if re.findall(BLOCK, hook) == re.findall(BLOCK, site) else "layer"
    rule = "with a BOS put first" if bos else "without a BOS"
    ours = f"--spliced is '{spec.spliced}'"
    never = "positions: the SAE never saw"
    unseen = get("exclude_special_tokens") and spec.spliced != "not-special"
    unlike_bos, unlike = bos not in (None, spec.prepend_bos), positions not in (None, spec.spliced)
    scale = "scale: the SAE wants activations scaled by the text it was trained on"
    is_wrong = {
        f"{place}: {trained} at {hook}, --site is {site}": elsewhere,
        f"site: the SAE was trained to give {out}, --site writes {written}": gives,
        f"model: {trained} on {model}, not {spec.model}": not _same_model(model, spec.model),
        f"BOS rule: {trained} {rule}, try --prepend-bos {_flag(bos)}": unlike_bos,
        f"positions: {trained} on '{positions}', {ours}": unlike,
        f"{never} special tokens, {ours}; try --spliced not-special": unseen,
        f"{never} the first {start} of a window, {ours}": start and spec.spliced == "all",
        f"{scale} ({scaled}); fold that into its weights first": scaled in UNFOLDED,
        **_processing(get("model_from_pretrained_kwargs"), spec, site, family),
    }
    return [f"wrong {line}" for line, wrong in is_wrong.items() if wrong]


def _processing(processing: dict | None, spec: Spec, site: str, family: str) -> dict[str, bool]:
    """Line -> whether it is wrong, of each way in which TransformerLens processed the weights.

    A switch that is not named was off: SAELens loads models without processing.
    """
    if processing is None:
        return {}
    # TransformerLens centres no weights that are read through an RMSNorm.
    centred = bool(processing.get(CENTRED)) and family in ("", "gpt2")
    wants = f"weights: the SAE wants --center-writing-weights {_flag(centred)}"
    unseen = {CENTRED, *HARMLESS, *(() if site.endswith("hook_z") else AT_HEADS)}
    unseen -= {"fold_ln"} if site.endswith("mlp.hook_in") else set()  # which has the norm's weight
    others = {name: value for name, value in processing.items() if name not in unseen}
    trained = "weights: the SAE was trained with {}={} of its model"
    lines = {trained.format(*item): bool(item[1]) for item in others.items()}
    return {wants: centred != spec.center_writing_weights, **lines}


def _flag(value: object) -> str:
    return str(bool(value)).lower()


def _canonical(name: str, family: str) -> str | int:
    """The same for all names of one point: the input of block L+1 is the output of L."""
    if not family.startswith("gemma"):  # which has a norm between the two
        name = re.sub(r"hook_(mlp|attn)_out$", r"\1.hook_out", name)
    match = re.fullmatch(r"blocks\.(\d+)\.hook_(?:(in|resid_pre)|out|resid_post)", name)
    return int(match[1]) + (not match[2]) if match else name


def _same_model(named: str, model: str) -> bool:
    """Whether two names may mean one model; a folder or a package has none of the field's names."""
    packages = [name.startswith("package:") for name in (named, model)]
    comparable = all(packages) or not any(packages) and hub.is_id(model)
    shorts = [name.rpartition("/")[2].lower() for name in (named, model)]
    return not comparable or len({ALIASES.get(short, short) for short in shorts}) == 1
