"""Does an SAE belong at this site: what it says of itself against what the spec says."""

import re

ALIASES = {"gpt2": "gpt2-small", "gpt2small": "gpt2-small"}
"""Names that the field has for one model."""


def disagreements(spec, sae):
    """One line for everything in the SAE's metadata that the spec says otherwise.

    What the metadata leaves out is not compared, and neither is the name of a model in a folder.
    """
    told = sae.cfg.metadata
    lines = []
    if told.hook_name and not same_point(told.hook_name, spec.site):
        lines.append(f"wrong layer or point: the SAE was trained at {told.hook_name}, {_at(spec)}")
    if told.model_name and not _same_model(told.model_name, spec.model):
        lines.append(f"wrong model: the SAE was trained on {told.model_name}, not {spec.model}")
    if told.prepend_bos is not None and bool(told.prepend_bos) != spec.prepend_bos:
        rule = "with a BOS put first" if told.prepend_bos else "without a BOS"
        value = str(bool(told.prepend_bos)).lower()
        lines.append(f"wrong BOS rule: the SAE was trained {rule}: --prepend-bos {value}")
    if told.spliced_positions not in (None, spec.spliced):
        lines.append(
            f"wrong positions: the SAE was trained on '{told.spliced_positions}', "
            f"--spliced is '{spec.spliced}'"
        )
    centred = bool((told.model_from_pretrained_kwargs or {}).get("center_writing_weights"))
    if told.model_from_pretrained_kwargs is not None and centred != spec.center_writing_weights:
        value = str(centred).lower()
        lines.append(f"wrong weights: the SAE wants --center-writing-weights {value}")
    return lines


def _at(spec):
    return f"--site is {spec.site}"


def same_point(a, b):
    """Whether two names mean the same activation: the input of block L+1 is the output of L."""
    return _canonical(a) == _canonical(b)


def _canonical(name):
    match = re.fullmatch(r"blocks\.(\d+)\.(hook_in|hook_resid_pre|hook_out|hook_resid_post)", name)
    if not match:
        return name
    return int(match[1]) + (match[2] in ("hook_out", "hook_resid_post"))


def _same_model(told, model):
    """Whether two names may mean one model; a folder or a package has none of the field's names."""
    if told.startswith("package:") != model.startswith("package:"):
        return True
    if "package:" not in model and not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return True
    return _short(told) == _short(model)


def _short(name):
    short = name.rpartition("/")[2].lower()
    return ALIASES.get(short, short)
