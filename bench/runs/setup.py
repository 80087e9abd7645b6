"""Model, text and SAE -> harness and header, with everything that can be cached cached."""

import dataclasses
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.config.request import EVERY, RunSettings
from bench.config.spec import own_training
from bench.distributed import group
from bench.errors import RunFailed, Usage
from bench.harness import evaluate
from bench.harness.harness import Harness
from bench.harness.provenance import clock, provenance
from bench.harness.signals import Stopped
from bench.io import cache, locks
from bench.io.console import say
from bench.io.files import new_folder, synchronize
from bench.io.record import digest, run_name
from bench.io.schema import SCHEMA
from bench.loading import sae_metadata, sae_sources, saes
from bench.loading.documents import source_sha256
from bench.problem.problem import Adapted
from bench.runs.code_hash import code
from bench.runs.done import ended, relevant


@dataclass(frozen=True)
class Bench:
    """One spec, ready to run methods on."""

    spec: object
    harness: Harness
    model: dict
    """The record's `model`: family and hash."""
    sae: dict
    """The record's `sae`: source, sha256, the record of its training, share of that training."""
    sae_cost: dict | None
    sae_record: object
    """The path of the record of the SAE's training, where there is one."""
    measured: dict
    """CE of the clean and the spliced model, on the curve set and by validation document."""
    doubts: tuple
    """Why the SAE may not belong here, a line each."""

    def name(self, entry, seed):
        """The name of the run of this method and seed."""
        spec = asdict(self.spec)
        return run_name(entry.name, entry.settings, spec, seed, self.sae["sha256"])

    def header(self, entry, seed, sets=()):
        """The record's first line."""
        return {
            "schema": SCHEMA,
            "method": entry.name,
            "label": entry.label,
            "sets": relevant(sets, entry.name),
            "config": entry.settings,
            "source": entry.source,
            "spec": asdict(self.spec),
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


def bench(loaded, mse, every=EVERY):
    """`Loaded` and the entry of the method that trains SAEs -> `Bench`.

    Where an own SAE has to be trained first, there is a checkpoint `every` so many seconds.
    """
    folders = group.first_then_others(lambda: sae_folders(loaded, mse, every))
    return _bench_with(loaded, folders, loaded.spec.sae)


def _bench_with(loaded, folders, source):
    """The `Bench` of the SAEs in `folders`; whatever is cached of them is not measured again."""
    spec = loaded.spec
    problem = loaded.problem(saes.load_all(folders, loaded.widths, spec.device))
    sha256 = saes.sha256_of(folders)
    stem = str(cache.root() / "held-out" / loaded.key)
    curve_file, validation_file = Path(f"{stem}-curve.safetensors"), Path(f"{stem}.safetensors")
    curve = evaluate.clean_side(problem, loaded.text.curve, curve_file, with_kl=True)
    whole = loaded.text.validation
    validation = evaluate.clean_side(problem, whole, validation_file, with_kl=False)
    spliced_file = Path(f"{stem}-spliced-{sha256[:16]}.json")
    there = group.all_of(spliced_file.exists())
    known = cache.json_file(spliced_file, lambda: _spliced(problem, curve, validation), there)
    spliced = {part: evaluate.Score(**known[part]) for part in ("curve", "validation")}
    measured = {
        "ce_clean": evaluate.mean(curve.ce_clean),
        "ce_spliced": evaluate.mean(spliced["curve"].ce),
        "ce_ablated": evaluate.mean(known["ablated"]),
        "ce_full_clean": validation.ce_clean,
        "ce_full_spliced": spliced["validation"].ce,
        "documents": list(dict.fromkeys(validation.documents)),
        "split": loaded.text.split,
        "text_read": loaded.text.read,
        "train_tokens": loaded.text.train.tokens.numel(),
        "l0_full": evaluate.mean(spliced["validation"].l0),
        "fvu_full": evaluate.mean(spliced["validation"].fvu),
        **evaluate.by_site(spliced["validation"], "_full"),
    }
    trained, fresh = training_of(folders), source == "fresh"
    sae = {
        "source": source,
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
    told = [saes.metadata(folder) for folder in folders]
    doubts = () if fresh else doubts_of(spec, told, measured, loaded.model["type"])
    return Bench(spec, harness, loaded.model, sae, cost, record, measured, doubts)


def training_of(folders):
    """What is known of the training of these SAEs: `run`, `share`, `cost`; {} where nothing is.

    SAEs of one run have cost what the run has; of several runs, what these have together.
    """
    known = [saes.cost_of(folder) or {} for folder in folders]
    if len({(one.get("run"), one.get("share")) for one in known}) == 1:
        return known[0]
    costs = [one.get("cost") for one in known]
    clocks = {(c.get("machine"), c.get("device"), c.get("threads")) for c in costs if c}
    if None in costs or len(clocks) > 1:
        return {}
    numbers = [k for k, v in costs[0].items() if k != "threads" and isinstance(v, int | float)]
    return {"cost": costs[0] | {k: sum(cost[k] for cost in costs) for k in numbers}}


def _within_cache(folder):
    """Where the SAE lies in the cache, so that it can be found again; None for a user's own."""
    top = cache.root().resolve()
    return str(folder.resolve().relative_to(top)) if folder.resolve().is_relative_to(top) else None


def doubts_of(spec, told, measured, family=""):
    """What `check` finds wrong without running anything more; random weights lose nothing.

    `told` is what each SAE says of itself, in order of the sites.
    """
    pairs = zip(told, spec.sites, strict=True)
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


def _spliced(problem, curve, validation):
    """The scores of the bare spliced model, and the CE of the ablated one, as JSON values."""
    bare, parts = Adapted(saes=problem.saes), {"curve": curve, "validation": validation}
    scores = {name: asdict(evaluate.measure(problem, part, bare)) for name, part in parts.items()}
    return {**scores, "ablated": evaluate.ablated(problem, curve)}


def sae_folders(loaded, mse, every=EVERY):
    """The folders of the spec's SAEs; own ones are trained on first use, fresh ones made."""
    spec = loaded.spec
    if spec.sae == "fresh":
        return fresh_folders(loaded)
    if spec.sae != "own":
        return [sae_sources.locate(sae) for sae in spec.saes]
    own = own_folder(loaded, mse)
    if not own.exists():
        with locks.held(own.parent, own.name, "the training of the SAE"):
            if not own.exists():  # another process may just have ended
                _train(loaded, mse, own, every)
    (record,) = own.glob("*.jsonl")
    return saes.checkpoint(own / record.stem, spec.sae_share)


def fresh_folders(loaded):
    """The folders of the spec's random SAEs, made on first use."""
    spec = loaded.spec
    return [fresh_folder(loaded, index) for index in range(len(spec.sites))]


def fresh_folder(loaded, index):
    """The folder of the random SAE of site number `index`."""
    spec, width = loaded.spec, loaded.widths[index]
    if spec.sae_k > spec.sae_width * width:
        latents = f"{spec.sae_width} x {width} latents"
        raise Usage(f"--sae-k {spec.sae_k}: the SAE has only {latents}")
    made = [loaded.key, loaded.recipe, spec.sites[index]]
    folder = cache.root() / "saes" / f"fresh-{digest(made)[:16]}"
    if not folder.exists():
        with new_folder(folder) as temporary:
            saes.save_fresh(spec, index, width, temporary)
    return folder


def own_folder(loaded, mse):
    """Where the spec's own SAE lies, with the record of its training, once it is trained."""
    made = [loaded.key, loaded.recipe, mse.settings, mse.source]
    return cache.root() / "saes" / digest(made)[:16]


def _train(loaded, mse, folder, every):
    """Train the spec's own SAE with the method `mse`, inside the harness like any other run.

    It becomes `folder` when it is done; until then it lies beside it and can be gone on with.
    """
    spec = own_training(loaded.spec)
    have = loaded.text.train.tokens.numel()
    times = f", its {have:,} training tokens {spec.sae_tokens / have:.1f} times"
    again = times if spec.sae_tokens > have else ""
    say(f"training the SAE on {spec.sae_tokens:,} tokens{again} (once; then it is cached)")
    bare = dataclasses.replace(loaded, spec=spec)
    fresh_bench = _bench_with(bare, fresh_folders(loaded), "fresh")
    header = fresh_bench.header(mse, spec.sae_seed)
    name = fresh_bench.name(mse, spec.sae_seed)
    begun = folder.with_name(f"{folder.name}.{name}.begun")
    path = begun / f"{name}.jsonl"
    if ended(path) != "finished":  # killed, perhaps, when all but the next line was done
        settings = RunSettings(mse.module, mse.config, header, spec.steps, path, every)
        outcome = fresh_bench.harness.run(settings)
        if outcome.end == "interrupted":
            raise Stopped
        if outcome.end != "finished":
            raise RunFailed(f"the training of the SAE ended as '{outcome.end}' ({outcome.why})")
    begun.rename(folder)
    synchronize(folder.parent)
