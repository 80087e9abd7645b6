"""Does an SAE belong at this site: what it says of itself against what the spec says."""

import re

from bench import hub

ALIASES = {"gpt2": "gpt2-small", "gpt2small": "gpt2-small"}
"""Names that the field has for one model."""


def disagreements(spec, told):
    """One line for everything in an SAE's metadata (a dict) that the spec says otherwise.

    What the metadata leaves out is not compared, and neither is the name of a model in a folder.
    """
    lines = []
    hook, model = told.get("hook_name"), told.get("model_name")
    if hook and _canonical(hook) != _canonical(spec.site):
        lines.append(f"wrong layer: the SAE was trained at {hook}, --site is {spec.site}")
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
    processing = told.get("model_from_pretrained_kwargs")
    centred = bool((processing or {}).get("center_writing_weights"))
    if processing is not None and centred != spec.center_writing_weights:
        lines.append(f"wrong weights: the SAE wants --center-writing-weights {_flag(centred)}")
    return lines


def _flag(value):
    return str(bool(value)).lower()


def _canonical(name):
    """The same for all names of one residual: the input of block L+1 is the output of L."""
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
