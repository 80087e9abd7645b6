"""`python -m bench export RUN --to DIR`: the weights that a run trained, for PEFT and SAELens.

Adapters become a PEFT adapter, SAEs a folder that SAELens loads. Beside them lie a model card
and `splicebench.json`, which says what belongs together: SAE, site, positions, BOS.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.errors import Rejected, Usage
from bench.export.artefacts import end_of, finished, lent_saes, trained_saes
from bench.io.console import say
from bench.io.files import new_folder, os_errors
from bench.io.record import Run
from bench.loading import hub, packages, peft_format, saes
from bench.runs import process

SIDECAR = "splicebench.json"


def export(source: str | Path, folder: str | Path, closed: Callable[[Run], str]) -> None:
    """Write what a run trained to `folder`; `source` is its record, or the folder beside it.

    `closed(run)` is what the model card says of the gap.
    """
    run, folder = finished(source), Path(folder)
    if "model" not in run.header:
        raise Rejected(f"{run.path}: an older record, which does not name the family of its model")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise Usage(f"--to {folder}: not empty, expected a new folder")
    if end_of(run).get("trained_parameters") and not run.path.with_suffix("").is_dir():
        raise Usage(f"{run.path}: no folder {run.name} beside it; a record alone has no weights")
    process.call(export_to, run, folder, closed(run))
    say("written: " + ", ".join(str(path) for path in sorted(folder.rglob("*")) if path.is_file()))


def export_to(run: Run, folder: Path, closed: str) -> None:
    """`export` in the process that loads what the run (its record, as read) trained."""
    pairs, trained = pairs_of(run), trained_saes(run)
    if not pairs and not trained:
        raise Usage(f"{run.path}: the run trained neither adapters nor an SAE, nothing to export")
    own_saes = trained or lent_saes(run)
    places = [f"sae-{index}" for index in range(len(own_saes))]
    if len(own_saes) == 1:
        places = ["sae" if pairs else "."]
    with os_errors(folder), new_folder(folder, replace_empty=True) as temporary:
        if pairs:
            write_adapter(run, pairs, temporary)
        for sae, place in zip(own_saes, places, strict=True):
            copy_sae(sae, temporary / place, base_model(run.header["spec"]))
        write_sidecar(run, temporary, places)
        (temporary / "README.md").write_text(card(run, bool(pairs), closed), encoding="utf-8")
    if not own_saes:
        say(f"the SAE '{run.header['sae']['source']}' is not copied: {SIDECAR} names it")


def pairs_of(run: Run) -> peft_format.Pairs:
    """The adapters that a run trained, or {}: linear map -> (A, B)."""
    from safetensors.torch import load_file

    path = run.path.with_suffix("") / "state.safetensors"
    if not path.is_file():
        return {}
    state, pairs = load_file(path), {}
    for name, a in state.items():
        if name.startswith("adapters.") and name.endswith(".a"):
            module = name.removeprefix("adapters.").removesuffix(".a")
            pairs[peft_format.linear_name(module)] = (a, state[f"{name[:-1]}b"])
    return pairs


def copy_sae(source: Path, target: Path, model_name: str) -> None:
    """Copy a SAELens folder without the suite's own files, the model by its public name."""
    target.mkdir(exist_ok=True)
    shutil.copy(source / saes.WEIGHTS, target / saes.WEIGHTS)
    config = renamed(saes.read_config(source), model_name)
    (target / "cfg.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def renamed(config: dict[str, Any], model_name: str) -> dict[str, Any]:
    """An SAE's config in which the model, where one is named, has this name."""
    if (config.get("metadata") or {}).get("model_name"):
        config["metadata"]["model_name"] = model_name
    return config


def base_model(spec: dict[str, Any]) -> str:
    """The model's name on the hub, or the name of its folder."""
    if spec["model"].startswith("package:"):
        return packages.packaged(spec["model"], installed=False).origin
    return spec["model"] if hub.is_id(spec["model"]) else Path(spec["model"]).name


def write_adapter(run: Run, pairs: peft_format.Pairs, folder: Path) -> None:
    """Write the PEFT adapter."""
    config = {"dropout": 0.0, **run.header["config"]}  # `joint` has none
    fields = {name: config[name] for name in ("rank", "alpha", "dropout")}
    fields["base_model"] = base_model(run.header["spec"])
    peft_format.save(folder, pairs, run.header["model"]["type"], **fields)


def write_sidecar(run: Run, folder: Path, places: list[str]) -> None:
    """Write what belongs together and where it comes from; `places` are the SAEs' folders."""
    header = run.header
    rule = ("site", "spliced", "scored", "prepend_bos", "seq_len", "center_writing_weights")
    inside = places[0] if len(places) == 1 else places or None
    fields = {
        "model": header["spec"]["model"],
        "weights": header["weights"],
        "sae": {**header["sae"], "folder": inside},
        **{name: header["spec"].get(name) for name in rule},
        "method": header["method"],
        "config": header["config"],
        "run": run.name,
        "commit": header.get("commit"),
        "versions": header.get("versions"),
    }
    (folder / SIDECAR).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def card(run: Run, adapter: bool, closed: str) -> str:
    """The model card: what the export is, how to use it, CE before and after."""
    from huggingface_hub import ModelCardData

    header, spec, sae = run.header, run.header["spec"], run.header["sae"]
    front = ModelCardData(
        library_name="peft" if adapter else "sae_lens",
        base_model=base_model(spec),
        tags=["sparse-autoencoder", "splicebench", header["method"]],
    )
    what = "A LoRA adapter around an SAE" if adapter else "A sparse autoencoder"
    use = (
        f"The SAE replaces `{spec['site']}` at positions `{spec['spliced']}`"
        f"{', with a BOS put first' if spec['prepend_bos'] else ''}. "
        f"{'Without it in place the adapter makes little sense. ' if adapter else ''}"
        f"SAE: `{sae['source']}`, sha256 `{sae['sha256'][:16]}`. All of it is in `{SIDECAR}`."
    )
    if spec["model"].startswith("package:"):
        use += f" The weights were those of `{spec['model']}`, which are quantised."
    if spec.get("center_writing_weights"):
        use += " What the blocks write was centred (`center_writing_weights`)."
    return f"""---
{front.to_yaml()}
---

# {what} in {base_model(spec)}, trained by `{header["method"]}`

{use}

```python
{loading(spec, adapter)}
```

{losses(run, closed)}

Made by splicebench, run `{run.name}`: `{header.get("command")}`.
"""


def loading(spec: dict[str, Any], adapter: bool) -> str:
    """Python that loads the export; DIR is its folder."""
    if not adapter:
        return 'from sae_lens import SAE\n\nsae = SAE.load_from_disk("DIR")'
    return f"""from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{base_model(spec)}")
model = PeftModel.from_pretrained(model, "DIR")"""


def losses(run: Run, closed: str) -> str:
    """The card's table: CE before and after."""
    if run.header["weights"] == "random":
        return "The model's weights are random: no loss means anything."
    curves = (run.header["ce_full_clean"], run.header["ce_full_spliced"], end_of(run)["ce_full"])
    means = [sum(values) / len(values) for values in curves]
    return f"""| model | CE, nats per token |
|---|---|
| clean | {means[0]:.4f} |
| with the SAE, before | {means[1]:.4f} |
| with the SAE, after `{run.header["method"]}` | {means[2]:.4f} |

Means over the held-out part of `{run.header["spec"]["text"]}`; {closed}."""
