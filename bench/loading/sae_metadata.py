"""Does an SAE belong at this site: what it says of itself against what the spec says."""

import re

from bench.loading import hub

ALIASES = {"gpt2": "gpt2-small", "gpt2small": "gpt2-small"}
"""Names that the field has for one model."""
AT_HEADS = ("fold_value_biases", "refactor_factored_attn_matrices")
"""Processing by TransformerLens that changes what each head gives, and no other site."""
HARMLESS = ("fold_ln", "center_unembed", "dtype", "torch_dtype", "device_map", "n_devices")
HARMLESS += ("trust_remote_code", "default_prepend_bos", "default_padding_side", "move_to_device")
"""Settings of a model's loading that change what no site sees."""
UNFOLDED = ("expected_average_only_in", "covariance_whitening")
"""Scalings of SAELens' that an SAE cannot do by itself."""


def disagreements(spec, told, family="", site=None):
    """One line for everything in an SAE's metadata (a dict) that the spec says otherwise.

    What the metadata leaves out is not compared, and neither is the name of a model in a folder.
    `family` is the model's type: outside Gemma two of the points have two names each. `site` is
    the SAE's, where the spec has several.
    """
    lines, site = [], site or spec.site
    hook, model = told.get("hook_name"), told.get("model_name")
    if hook and _canonical(hook, family) != _canonical(site, family):
        what = "site" if _block(hook) == _block(site) else "layer"
        lines.append(f"wrong {what}: the SAE was trained at {hook}, --site is {site}")
    if model and not _same_model(model, spec.model):
        lines.append(f"wrong model: the SAE was trained on {model}, not {spec.model}")
    bos = told.get("prepend_bos")
    if bos not in (None, spec.prepend_bos):
        rule = "with a BOS put first" if bos else "without a BOS"
        lines.append(f"wrong BOS rule: the SAE was trained {rule}, try --prepend-bos {_flag(bos)}")
    positions = told.get("spliced_positions")
    if positions not in (None, spec.spliced):
        lines.append(
            f"wrong positions: the SAE was trained on '{positions}', --spliced is '{spec.spliced}'"
        )
    if told.get("exclude_special_tokens") and spec.spliced != "not-special":
        lines.append(
            f"wrong positions: the SAE never saw special tokens, --spliced is '{spec.spliced}'; "
            "try --spliced not-special"
        )
    start = (told.get("seqpos_slice") or [None])[0]
    if start and spec.spliced == "all":
        lines.append(
            f"wrong positions: the SAE never saw the first {start} of a window, --spliced is 'all'"
        )
    scaled = told.get("normalize_activations")
    if scaled in UNFOLDED:
        lines.append(
            f"wrong scale: the SAE wants activations scaled by the text it was trained on "
            f"({scaled}); fold that into its weights first"
        )
    processing = told.get("model_from_pretrained_kwargs")
    if processing is not None:
        lines += _processed_otherwise(processing, spec.center_writing_weights, site, family)
    return lines


def _processed_otherwise(asked, centred, site, family):
    """One line for each way in which TransformerLens processed the weights, as `asked`, that
    changes what the SAE saw at its site. A switch that is not named was off: SAELens loads models
    without processing."""
    # TransformerLens centres no weights that are read through an RMSNorm.
    wanted = bool(asked.get("center_writing_weights")) and family in ("", "gpt2")
    if wanted != centred:
        yield f"wrong weights: the SAE wants --center-writing-weights {_flag(wanted)}"
    for name, value in asked.items():
        elsewhere = name in AT_HEADS and not site.endswith("hook_z")
        if value and name != "center_writing_weights" and name not in HARMLESS and not elsewhere:
            yield f"wrong weights: the SAE was trained with {name}={value} of its model"


def _flag(value):
    return str(bool(value)).lower()


def _block(hook):
    match = re.match(r"blocks\.(\d+)\.", hook)
    return match and match[1]


def _canonical(name, family):
    """The same for all names of one point: the input of block L+1 is the output of L."""
    if not family.startswith("gemma"):  # which has a norm between the two
        name = re.sub(r"hook_(mlp|attn)_out$", r"\1.hook_out", name)
    match = re.fullmatch(r"blocks\.(\d+)\.(hook_in|hook_resid_pre|hook_out|hook_resid_post)", name)
    if not match:
        return name
    return int(match[1]) + (match[2] in ("hook_out", "hook_resid_post"))


def _same_model(told, model):
    """Whether two names may mean one model; a folder or a package has none of the field's names."""
    if told.startswith("package:") != model.startswith("package:"):
        return True
    if not (model.startswith("package:") or hub.is_id(model)):
        return True
    return _short(told) == _short(model)


def _short(name):
    short = name.rpartition("/")[2].lower()
    return ALIASES.get(short, short)
