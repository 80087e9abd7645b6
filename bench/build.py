"""Spec -> problem, held-out windows and SAE, with everything that can be cached cached."""

import dataclasses
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import cache, evaluate, models, saes, text
from bench.harness import Harness
from bench.hooks import HookPoints
from bench.problem import Adapted, Problem
from bench.progress import say
from bench.provenance import clock, provenance, versions
from bench.record import SCHEMA, digest, run_name


@dataclass(frozen=True)
class Bench:
    """One spec, ready to run methods on."""

    spec: object
    harness: Harness
    sae: dict
    """The record's `sae`: source, sha256, the record of its training, share of that training."""
    sae_cost: dict | None
    sae_record: object
    """The path of the record of the SAE's training, where there is one."""
    measured: dict
    """CE of the clean and the spliced model, on the curve set and by validation document."""

    def name(self, entry, seed):
        """The name of the run of this method and seed."""
        spec = asdict(self.spec)
        return run_name(entry.name, entry.settings, spec, seed, self.sae["sha256"])

    def header(self, entry, seed):
        """The record's first line."""
        return {
            "schema": SCHEMA,
            "method": entry.name,
            "label": entry.label,
            "config": entry.settings,
            "source": entry.source,
            "spec": asdict(self.spec),
            "seed": seed,
            "sae": self.sae,
            "sae_cost": self.sae_cost,
            **self.measured,
            **provenance(self.spec.device),
        }


@dataclass(frozen=True)
class Loaded:
    """The model and the text of a spec, before any SAE."""

    spec: object
    bridge: object
    text: text.Text
    d_in: int
    """Width of the site."""
    key: str
    """What model and text depend on, hashed: names the caches."""

    def problem(self, saes):
        """A `Problem` with these SAEs."""
        spec = self.spec
        return Problem(
            self.bridge,
            saes,
            [spec.site],
            self.text.train.tokens.to(spec.device),
            spliced=spec.spliced,
            scored=spec.scored,
            batch_size=spec.batch_size,
        )


def load(spec, folder):
    """Model and text of a spec -> `Loaded`; `folder` is the model's."""
    say(f"loading {spec.model} and the text '{spec.text}'")
    bridge = models.load(folder, spec.device, spec.dtype)
    parts = text.load(spec, models.load_tokenizer(folder))
    points = HookPoints(bridge)
    points[spec.site]
    fields = {k: v for k, v in asdict(spec).items() if not k.startswith(("name", "sae", "steps"))}
    held_out = {"curve": parts.curve.documents, "validation": parts.validation.documents}
    known = [fields, held_out, models.fingerprint(folder), versions()]
    return Loaded(spec, bridge, parts, points.widths[spec.site], digest(known)[:16])


def bench(loaded, mse):
    """`Loaded` and the entry of the method that trains SAEs -> `Bench`."""
    spec, folder = loaded.spec, sae_folder(loaded, mse)
    source = spec.sae if spec.sae in ("own", "fresh") else str(spec.sae)
    return _bench_with(loaded, folder, source)


def _bench_with(loaded, folder, source):
    problem = loaded.problem(saes.load(folder, loaded.d_in, loaded.spec.device))
    sha256 = saes.sha256(folder)
    stem = str(cache.root() / "held-out" / loaded.key)
    curve_file, validation_file = Path(f"{stem}-curve.safetensors"), Path(f"{stem}.safetensors")
    curve = evaluate.clean_side(problem, loaded.text.curve, curve_file, with_kl=True)
    whole = loaded.text.validation
    validation = evaluate.clean_side(problem, whole, validation_file, with_kl=False)
    spliced = cache.json_file(
        Path(f"{stem}-spliced-{sha256[:16]}.json"), lambda: _spliced(problem, curve, validation)
    )
    measured = {
        "ce_clean": evaluate.mean(curve.ce_clean),
        "ce_spliced": evaluate.mean(spliced["curve"]),
        "ce_full_clean": validation.ce_clean,
        "ce_full_spliced": spliced["validation"],
        "documents": list(dict.fromkeys(validation.documents)),
        "split": loaded.text.split,
        "l0_full": spliced["l0"],
        "fvu_full": spliced["fvu"],
    }
    trained = saes.cost_of(folder) or {}
    sae = {
        "source": source,
        "sha256": sha256,
        "run": trained.get("run"),
        "share": trained.get("share"),
    }
    record = folder.parent.with_suffix(".jsonl") if trained else None
    harness = Harness(problem, curve, validation, clock(loaded.spec.device))
    return Bench(loaded.spec, harness, sae, trained.get("cost"), record, measured)


def _spliced(problem, curve, validation):
    bare = Adapted(saes=problem.saes)
    score = evaluate.measure(problem, validation, bare)
    return {
        "curve": evaluate.measure(problem, curve, bare).ce,
        "validation": score.ce,
        "l0": evaluate.mean(score.l0),
        "fvu": evaluate.mean(score.fvu),
    }


def sae_folder(loaded, mse):
    """The folder of the spec's SAE; an own one is trained on first use, a fresh one made."""
    spec = loaded.spec
    if spec.sae not in ("own", "fresh"):
        return Path(spec.sae).expanduser()
    made = {k: v for k, v in asdict(spec).items() if k.startswith("sae_")}
    fresh = cache.root() / "saes" / f"fresh-{digest([loaded.key, made])[:16]}" / "sae-000"
    if not fresh.exists():
        with cache.new_folder(fresh) as temporary:
            saes.save_fresh(spec, loaded.d_in, temporary)
    if spec.sae == "fresh":
        return fresh
    own = cache.root() / "saes" / digest([loaded.key, made, mse.settings, mse.source])[:16]
    if not own.exists():
        with cache.new_folder(own) as temporary:
            _train(loaded, fresh, mse, temporary)
    (record,) = own.glob("*.jsonl")
    return own / record.stem / "sae-100"


def _train(loaded, fresh, mse, folder):
    """Train the spec's own SAE with the method `mse`, inside the harness like any other run."""
    spec = dataclasses.replace(
        loaded.spec,
        sae="fresh",
        steps=max(1, loaded.spec.sae_tokens // (loaded.spec.seq_len * loaded.spec.batch_size)),
    )
    say(f"training the SAE on {spec.sae_tokens:,} tokens (once; then it is cached)")
    fresh_bench = _bench_with(dataclasses.replace(loaded, spec=spec), fresh, "fresh")
    header = fresh_bench.header(mse, spec.sae_seed)
    path = folder / f"{fresh_bench.name(mse, spec.sae_seed)}.jsonl"
    end = fresh_bench.harness.run(mse.module, mse.config, header, spec.steps, path)
    if end != "finished":
        raise RuntimeError(f"the training of the SAE ended as '{end}'")
