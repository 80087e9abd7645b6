"""The numbers of SAEBench's `core` evaluation for a finished run, in a file of that shape.

Names and shape are SAEBench 0.6's. `without_sae` is the clean model, `with_sae` the one that the
run ended with, `with_ablation` the clean one with the site set to 0; KL is KL(clean || other).
The windows are the run's validation windows, spliced and scored where the run spliced and scored.
Formulas are those of SAELens 6; SAEBench 0.6 takes the variance of `explained_variance` around
another mean, and divides `mse` by the tokens of a batch once more.
"""

import json
import math
import uuid
from importlib.metadata import version
from pathlib import Path

import torch

from bench.errors import Usage
from bench.evals.measures import Variant, hold_out, without
from bench.export import export, reload
from bench.harness.evaluate import finals_of, parts
from bench.harness.provenance import provenance
from bench.io import clock
from bench.io.console import say
from bench.io.files import new_text
from bench.problem import losses
from bench.problem.problem import Adapted

COLUMNS = 512
"""Latents whose cosines to all others are formed at once."""


def core(run, to):
    """Write the evaluation of a finished run (its record, or the folder beside it) to `to`."""
    run = export.finished(run)
    spec, origin = reload.spec_of(run), provenance(reload.spec_of(run))
    metrics, sae, tokens = _measured(run, spec)
    of_release = spec.sae.split(":") if spec.sae.startswith("saelens:") else ()
    known = len(of_release) == 3 and not export.trained_saes(run)
    evaluation = {
        "eval_type_id": "core",
        "eval_config": config(spec, tokens),
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": int(1000 * clock.read().wall),
        "eval_result_metrics": metrics,
        "eval_result_details": [],
        "sae_bench_commit_hash": f"splicebench {origin['commit'] or ''}".strip(),
        "sae_lens_id": of_release[2] if known else None,
        "sae_lens_release_id": of_release[1] if known else None,
        "sae_lens_version": version("sae-lens"),
        "sae_cfg_dict": described(sae, spec),
        "eval_result_unstructured": {
            "run": run.name,
            "method": run.header["method"],
            "config": run.header["config"],
            **{name: getattr(spec, name) for name in ("site", "spliced", "scored", "text")},
            **origin,
        },
    }
    text = json.dumps(evaluation, indent=1, default=str) + "\n"
    new_text(Path(to), text)
    say(f"written: {to}")
    return evaluation


def core_metrics(run):
    """`eval_result_metrics` of a finished run: {group: {name: number}}."""
    run = export.finished(run)
    return _measured(run, reload.spec_of(run))[0]


def described(sae, spec):
    """The SAE's config, with the model by its public name."""
    told = sae.cfg.to_dict()
    if (told.get("metadata") or {}).get("model_name"):
        told["metadata"]["model_name"] = export.base_model({"model": spec.model})
    return told


def config(spec, tokens):
    """What was evaluated, in the fields of SAEBench's `CoreEvalConfig`."""
    slices = parts(tokens)
    computed = ("kl", "ce_loss", "l2_norms", "sparsity_metrics", "variance_metrics")
    return {
        "model_name": export.base_model({"model": spec.model}),
        "llm_dtype": spec.dtype,
        "batch_size_prompts": len(tokens[slices[0]]),
        "n_eval_reconstruction_batches": len(slices),
        "n_eval_sparsity_variance_batches": len(slices),
        "dataset": spec.text,
        "context_size": spec.seq_len,
        **{f"compute_{name}": True for name in computed},
        "compute_featurewise_density_statistics": False,
        "compute_featurewise_weight_based_metrics": False,
        "exclude_special_tokens_from_reconstruction": spec.spliced == "not-special",
        "verbose": False,
    }


def _measured(run, spec):
    """(the metrics of a record, as read; the SAE that they are of; the windows)."""
    if len(spec.sites) > 1:
        raise Usage(f"{run.path}: SAEBench evaluates one SAE, the run has {len(spec.sites)}")
    if spec.weights == "random":
        raise Usage(f"{run.path}: the model's weights are random, no loss means anything")
    problem, adapted = reload.restore(run.path)
    windows = reload.validation(run, problem)
    return measured(problem, adapted, windows), adapted.saes[0], windows.tokens


@torch.no_grad()
def measured(problem, adapted, windows):
    """The metrics on these windows."""
    held_out, bare = hold_out(problem, windows), Adapted(saes=problem.saes)
    reading = Reading(adapted.saes[0])
    clean = finals_of(problem, held_out, bare, without(problem))
    teacher = losses.teacher_of(clean, problem.head)
    models = {
        "without_sae": Variant(bare, without(problem)),
        "with_sae": Variant(adapted, [reading]),
        "with_ablation": Variant(bare, [torch.zeros_like], "all"),
    }
    ce, kl = {}, {}
    for name, variant in models.items():
        entropies, kls = variant.losses(problem, held_out, teacher)
        ce[name], kl[name] = entropies.double().mean().item(), kls.double().mean().item()
    groups = {
        "model_behavior_preservation": {
            "kl_div_score": _share(kl["with_ablation"] - kl["with_sae"], kl["with_ablation"]),
            **{f"kl_div_{name}": kl[name] for name in ("with_ablation", "with_sae")},
        },
        "model_performance_preservation": {
            "ce_loss_score": _share(
                ce["with_ablation"] - ce["with_sae"], ce["with_ablation"] - ce["without_sae"]
            ),
            **{f"ce_loss_{name}": value for name, value in ce.items()},
        },
        **reading.groups(),
        "token_stats": {
            "total_tokens_eval_reconstruction": len(clean),
            "total_tokens_eval_sparsity_variance": reading.n,
        },
    }
    return {group: _finite(values) for group, values in groups.items()}


class Reading:
    """An SAE's reconstruction, summed up as activations pass through."""

    def __init__(self, sae):
        self.sae, self.n, self.mean, self.fired = sae, 0, 0.0, 0
        self.sums = {}
        """What is averaged over tokens, by name."""

    def __call__(self, activations):
        latents = self.sae.encode(activations)
        made = self.sae.decode(latents)
        x, y = activations.double(), made.double()
        size, errors = x.norm(dim=-1), (x - y).square().sum(-1)
        spread = (x - x.mean(0)).square().sum(-1)
        by_token = {
            "norm_in": size,
            "norm_out": y.norm(dim=-1),
            "ratio": y.norm(dim=-1) / size.where(size >= 1e-4, 1.0),
            "square_in": size.square(),
            "square_out": y.square().sum(-1),
            "product": (x * y).sum(-1),
            "error": errors,
            "legacy": 1 - errors / spread,
            "cosine": torch.cosine_similarity(x, y, dim=-1),
            "l0": latents.count_nonzero(-1),
            "l1": latents.double().abs().sum(-1),
        }
        for name, values in by_token.items():
            self.sums[name] = self.sums.get(name, 0.0) + values.sum().item()
        self.n += len(x)
        self.mean = self.mean + x.sum(0)
        self.fired = self.fired + latents.count_nonzero(0)
        return made

    def groups(self):
        """The groups of metrics that are the SAE's own."""
        mean = {name: total / self.n for name, total in self.sums.items()}
        variance = mean["square_in"] - (self.mean / self.n).square().sum().item()
        return {
            "reconstruction_quality": {
                "explained_variance": 1 - mean["error"] / variance,
                "explained_variance_legacy": mean["legacy"],
                "mse": mean["error"],
                "cossim": mean["cosine"],
            },
            "shrinkage": {
                "l2_norm_in": mean["norm_in"],
                "l2_norm_out": mean["norm_out"],
                "l2_ratio": mean["ratio"],
                "relative_reconstruction_bias": mean["square_out"] / mean["product"],
            },
            "sparsity": {"l0": mean["l0"], "l1": mean["l1"]},
            "misc_metrics": self._latents(),
        }

    def _latents(self):
        """How often latents fire, and how alike their directions are."""
        often = self.fired.double() / self.n
        total = often.sum().item()
        found = {}
        for percent in (1, 10):
            above = often[often > percent / 100]
            found[f"freq_over_{percent}_percent"] = len(above) / len(often)
            share = above.sum().item() / total if total else 0.0
            found[f"normalized_freq_over_{percent}_percent"] = share
        return {
            **found,
            "average_max_encoder_cosine_sim": largest_cosines(self.sae.W_enc.T).mean().item(),
            "average_max_decoder_cosine_sim": largest_cosines(self.sae.W_dec).mean().item(),
            "frac_alive": (often > 0).double().mean().item(),
        }


def largest_cosines(directions):
    """Each row's largest cosine to another row: [latents, d] -> [latents]."""
    unit = torch.nn.functional.normalize(directions.float(), dim=-1)
    found = []
    for first in range(0, len(unit), COLUMNS):
        cosines = unit[first : first + COLUMNS] @ unit.T
        rows = torch.arange(len(cosines), device=unit.device)
        cosines[rows, first + rows] = -torch.inf
        found.append(cosines.amax(-1))
    return torch.cat(found)


def _share(part, whole):
    return part / whole if whole else math.nan


def _finite(values):
    """null in the place of a number that is none, such as a share of nothing."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
