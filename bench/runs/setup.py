"""Model, text and SAE -> harness and header, with everything that can be cached cached."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.config.method import Entry
from bench.config.spec import Spec
from bench.distributed import group
from bench.harness import evaluate
from bench.harness.provenance import clock, provenance
from bench.harness.run import Harness
from bench.io.files import cache_root, cached_json
from bench.io.record import run_name
from bench.io.schema import SCHEMA
from bench.loading import sae_metadata, saes
from bench.loading.documents import source_sha256
from bench.problem.problem import Adapted, Problem
from bench.runs.code_hash import code
from bench.runs.loaded import Loaded


@dataclass(frozen=True)
class Bench:
    """One spec, ready to run methods on."""

    spec: Spec
    harness: Harness
    model: dict[str, str]
    """The record's `model`: family and hash."""
    sae: dict[str, Any]
    """The record's `sae`: source, sha256, the record of its training, share of that training."""
    sae_cost: dict[str, Any] | None
    sae_record: Path | None
    """The path of the record of the SAE's training, where there is one."""
    measured: dict[str, Any]
    """CE of the clean and the spliced model, on the curve set and by validation document."""
    doubts: tuple[str, ...]
    """Why the SAE may not belong here, a line each."""

    def name(self, entry: Entry, seed: int) -> str:
        """The name of the run of this method and seed."""
        spec = asdict(entry.asked.spec_of(self.spec))
        return run_name(entry.name, entry.settings, spec, seed, self.sae["sha256"])

    def header(self, entry: Entry, seed: int) -> dict[str, object]:
        """The record's first line."""
        return {
            "schema": SCHEMA,
            "method": entry.name,
            "label": entry.label,
            "sets": list(entry.asked.sets),
            "config": entry.settings,
            "source": entry.source,
            "spec": asdict(entry.asked.spec_of(self.spec)),
            "seed": seed,
            "model": self.model,
            "text_sha256": source_sha256(self.spec),
            "code": code(entry.name),
            "sae": self.sae,
            "sae_cost": self.sae_cost,
            **self.measured,
            **({"forced": self.doubts} if self.doubts else {}),
            **provenance(self.spec),
        }


def bench(loaded: Loaded, folders: list[Path]) -> Bench:
    """The `Bench` of the SAEs in `folders`; whatever is cached of them is not measured again."""
    spec = loaded.spec
    problem = loaded.problem(saes.load_all(folders, loaded.widths, spec.device))
    problem.kept_state = partial(saes.kept_state, folders[0])
    sha256 = saes.sha256_of(folders)
    stem = str(cache_root() / "held-out" / loaded.key)
    curve_file = Path(f"{stem}-curve.safetensors")
    curve = evaluate.clean_side(problem, loaded.text.curve, curve_file)
    whole = loaded.text.held_out[spec.held_out]
    stem += "-tuning" if spec.held_out == "tuning" else ""
    validation = evaluate.clean_side(problem, whole, Path(f"{stem}.safetensors"))
    spliced_file = Path(f"{stem}-spliced-{sha256[:16]}.json")
    there = group.all_of(spliced_file.exists())
    known = cached_json(spliced_file, lambda: _spliced(problem, curve, validation), there)
    spliced = {part: evaluate.Score(**known[part]) for part in ("curve", "validation")}
    measured = {
        "ce_clean": evaluate.mean(curve.ce_clean),
        "ce_spliced": evaluate.mean(spliced["curve"].ce),
        "kl_spliced": evaluate.mean(spliced["curve"].kl),
        "ce_ablated": evaluate.mean(known["ablated"][0]),
        "kl_ablated": evaluate.mean(known["ablated"][1]),
        "ce_full_clean": validation.ce_clean,
        "ce_full_spliced": spliced["validation"].ce,
        "kl_full_spliced": spliced["validation"].kl,
        "documents": list(dict.fromkeys(validation.documents)),
        "split": loaded.text.split,
        "text_read": loaded.text.read,
        "train_tokens": loaded.text.train.numel(),
        **evaluate.of_saes(spliced["validation"]),
    }
    trained, fresh = training_of(folders), spec.sae == "fresh"
    sae = {
        "source": spec.sae,
        "kind": "+".join(dict.fromkeys(sae.cfg.architecture() for sae in problem.saes)),
        "sha256": sha256,
        "cached": [_within_cache(folder) for folder in folders],
        "run": trained.get("run"),
        "share": trained.get("share"),
    }
    record = folders[0].parent.with_suffix(".jsonl") if trained.get("run") else None
    seconds_of = clock(spec.device)
    cost = trained.get("cost")
    harness = Harness(
        problem, curve, validation, spliced["validation"], seconds_of, {} if fresh else cost
    )
    metadata = [saes.metadata(folder) for folder in folders]
    control = spec.sae_decoder != "trained"  # whose SAE is not to explain anything
    doubts = () if fresh or control else doubts_of(spec, metadata, measured, loaded.model["type"])
    return Bench(spec, harness, loaded.model, sae, cost, record, measured, doubts)


def training_of(folders: list[Path]) -> dict[str, Any]:
    """What is known of the training of these SAEs: `run`, `share`, `cost`; {} where nothing is.

    SAEs of one run have cost what the run has; of several runs, what these have together.
    """
    known = [saes.cost_of(folder) or {} for folder in folders]
    if len({(one.get("run"), one.get("share")) for one in known}) == 1:
        return known[0]
    costs = [one["cost"] for one in known if one.get("cost") is not None]
    clocks = {(c.get("machine"), c.get("device"), c.get("threads")) for c in costs if c}
    if len(costs) < len(known) or len(clocks) > 1:
        return {}
    numbers = [k for k, v in costs[0].items() if k != "threads" and isinstance(v, int | float)]
    return {"cost": costs[0] | {k: sum(cost[k] for cost in costs) for k in numbers}}


def _within_cache(folder: Path) -> str | None:
    """Where the SAE lies in the cache, so that it can be found again; None for a user's own."""
    top = cache_root().resolve()
    return str(folder.resolve().relative_to(top)) if folder.resolve().is_relative_to(top) else None


def doubts_of(
    spec: Spec, metadata: list[dict[str, Any]], measured: dict[str, Any], family: str = ""
) -> tuple[str, ...]:
    """What `check` finds wrong without running anything more; random weights lose nothing.

    `metadata` is what each SAE says of itself, in order of the sites.
    """
    pairs = zip(metadata, spec.sites, strict=True)
    doubts = [
        line for one, site in pairs for line in sae_metadata.disagreements(spec, one, family, site)
    ]
    clean, spliced, ablated = (measured[f"ce_{name}"] for name in ("clean", "spliced", "ablated"))
    if spec.weights != "random" and clean < ablated <= spliced:
        doubts.append(
            f"the SAE explains nothing: CE spliced {spliced:.4f}, with the site set to 0 "
            f"{ablated:.4f}"
        )
    return tuple(doubts)


def _spliced(
    problem: Problem, curve: evaluate.HeldOut, validation: evaluate.HeldOut
) -> dict[str, Any]:
    """The scores of the bare spliced model, and the CE of the ablated one, as JSON values."""
    bare, parts = Adapted(saes=problem.saes), {"curve": curve, "validation": validation}
    scores = {name: asdict(evaluate.measure(problem, part, bare)) for name, part in parts.items()}
    return {**scores, "ablated": evaluate.ablated(problem, curve)}
