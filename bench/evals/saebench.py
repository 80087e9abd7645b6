"""The numbers of SAEBench's `core` evaluation for a finished run, in a file of that shape.

Names and shape are SAEBench 0.6's. `without_sae` is the clean model, `with_sae` the one that the
run ended with, `with_ablation` the clean one with the site set to 0; KL is KL(clean || other).
The windows are the run's validation windows, with its spliced and scored positions.
The formulas are those of SAELens 6. SAEBench 0.6 takes the variance of `explained_variance` around
another mean, and divides `mse` by the tokens of a batch once more.
"""

import json
import math
import uuid
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from bench.config.spec import Spec
from bench.errors import Usage
from bench.evals.measures import Variant, hold_out
from bench.export import artefacts, export, reload
from bench.harness.evaluate import finals_of, parts
from bench.harness.provenance import provenance
from bench.io import clock
from bench.io.console import say
from bench.io.files import new_text
from bench.loading.text import Windows
from bench.problem import losses
from bench.problem.objectives import unchanged, zero
from bench.problem.problem import Adapted, Problem

if TYPE_CHECKING:
    from sae_lens import SAE

COLUMNS = 512
"""Latents whose cosines to all others are formed at once."""
Groups = dict[str, dict[str, float | None]]
"""SAEBench's groups of metrics: {group: {name: number}}."""


def core(source: str | Path, to: str | Path) -> dict[str, Any]:
    """Write the evaluation of a finished run to `to`; `source` is its record or its folder.

    Raises `Usage` where the run has several SAEs or a model of random weights.
    """
    run = artefacts.finished(source)
    spec = reload.spec_of(run)
    if len(spec.sites) > 1:
        raise Usage(f"{run.path}: SAEBench evaluates one SAE, the run has {len(spec.sites)}")
    if ":" in spec.site:
        raise Usage(f"{run.path}: SAEBench evaluates no transcoder, such as that at {spec.site}")
    if spec.weights == "random":
        raise Usage(f"{run.path}: the model's weights are random, no loss means anything")
    origin = provenance(spec)
    problem, adapted = reload.restore(run.path)
    windows = reload.validation(run, problem)
    address = spec.sae.split(":")
    released = address[0] == "saelens" and len(address) == 3 and not artefacts.trained_saes(run)
    model = export.base_model({"model": spec.model})
    evaluation = {
        "eval_type_id": "core",
        "eval_config": config(spec, windows.tokens, model),
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": int(1000 * clock.read().wall),
        "eval_result_metrics": metrics(problem, adapted, windows),
        "eval_result_details": [],
        "sae_bench_commit_hash": f"splicebench {origin['commit'] or ''}".strip(),
        "sae_lens_id": address[2] if released else None,
        "sae_lens_release_id": address[1] if released else None,
        "sae_lens_version": version("sae-lens"),
        "sae_cfg_dict": export.renamed(adapted.saes[0].cfg.to_dict(), model),
        "eval_result_unstructured": {
            "run": run.name,
            "method": run.header["method"],
            "config": run.header["config"],
            **{name: getattr(spec, name) for name in ("site", "spliced", "scored", "text")},
            **origin,
        },
    }
    new_text(Path(to), json.dumps(evaluation, indent=1, default=str) + "\n")
    say(f"written: {to}")
    return evaluation


def config(spec: Spec, tokens: Tensor, model: str) -> dict[str, Any]:
    """The setting of the evaluation, in the fields of SAEBench's `CoreEvalConfig`."""
    slices = parts(tokens)
    computed = ("kl", "ce_loss", "l2_norms", "sparsity_metrics", "variance_metrics")
    return {
        "model_name": model,
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


@torch.no_grad()
def metrics(problem: Problem, adapted: Adapted, windows: Windows) -> Groups:
    """The metrics on these windows; None for a value that is no number, such as a share of 0."""
    held_out, bare = hold_out(problem, windows), Adapted(saes=problem.saes)
    reading = Reading(adapted.saes[0])
    clean = finals_of(problem, held_out, bare, [unchanged])
    teacher = losses.teacher_of(clean, problem.head)
    models = {
        "without_sae": Variant(bare, [unchanged]),
        "with_sae": Variant(adapted, [reading]),
        "with_ablation": Variant(bare, [zero], "all"),
    }
    ce, kl = {}, {}
    for name, variant in models.items():
        entropies, kls = variant.losses(problem, held_out, teacher)
        assert kls is not None  # there is a teacher
        ce[name], kl[name] = entropies.double().mean().item(), kls.double().mean().item()
    recovered = ce["with_ablation"] - ce["with_sae"]
    groups = {
        "model_behavior_preservation": {
            "kl_div_score": _share(kl["with_ablation"] - kl["with_sae"], kl["with_ablation"]),
            **{f"kl_div_{name}": kl[name] for name in ("with_ablation", "with_sae")},
        },
        "model_performance_preservation": {
            "ce_loss_score": _share(recovered, ce["with_ablation"] - ce["without_sae"]),
            **{f"ce_loss_{name}": value for name, value in ce.items()},
        },
        **reading.groups(),
        "token_stats": {
            "total_tokens_eval_reconstruction": len(clean),
            "total_tokens_eval_sparsity_variance": reading.n,
        },
    }
    return {
        group: {name: value if math.isfinite(value) else None for name, value in values.items()}
        for group, values in groups.items()
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


class Reading:
    """An SAE's reconstruction, summed up as activations pass through."""

    def __init__(self, sae: "SAE") -> None:
        self.sae, self.n, self.sum, self.fired = sae, 0, torch.tensor(0.0), torch.tensor(0)
        self.sums: Counter[str] = Counter()
        """Sums over tokens, by name."""

    def __call__(self, read: Float[Tensor, "tokens d_site"], given: Tensor) -> Tensor:
        latents = self.sae.encode(read)
        output = self.sae.decode(latents)
        x, y = given.double(), output.double()
        size, errors = x.norm(dim=-1), (x - y).square().sum(-1)
        by_token = {
            "norm_in": size,
            "norm_out": y.norm(dim=-1),
            "ratio": y.norm(dim=-1) / size.where(size >= 1e-4, 1.0),
            "square_in": size.square(),
            "square_out": y.square().sum(-1),
            "product": (x * y).sum(-1),
            "error": errors,
            "legacy": 1 - errors / (x - x.mean(0)).square().sum(-1),
            "cosine": torch.cosine_similarity(x, y, dim=-1),
            "l0": latents.count_nonzero(-1),
            "l1": latents.double().abs().sum(-1),
        }
        self.sums.update({name: values.sum().item() for name, values in by_token.items()})
        self.n += len(x)
        self.sum = self.sum + x.sum(0)
        self.fired = self.fired + latents.count_nonzero(0)
        return output

    def groups(self) -> Groups:
        """The groups of metrics that are the SAE's own."""
        mean = {name: total / self.n for name, total in self.sums.items()}
        variance = mean["square_in"] - (self.sum / self.n).square().sum().item()
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

    def _latents(self) -> dict[str, float | None]:
        """How often latents fire, and how alike their directions are."""
        often = self.fired.double() / self.n
        total = often.sum().item() or math.inf
        above = {f"{percent}_percent": often[often > percent / 100] for percent in (1, 10)}
        shares = {name: values.sum().item() / total for name, values in above.items()}
        return {
            **{f"freq_over_{name}": len(values) / len(often) for name, values in above.items()},
            **{f"normalized_freq_over_{name}": share for name, share in shares.items()},
            "average_max_encoder_cosine_sim": largest_cosines(self.sae.W_enc.T).mean().item(),
            "average_max_decoder_cosine_sim": largest_cosines(self.sae.W_dec).mean().item(),
            "frac_alive": (often > 0).double().mean().item(),
        }


def largest_cosines(directions: Float[Tensor, "latents d"]) -> Float[Tensor, " latents"]:
    """Each row's largest cosine to another row."""
    unit = torch.nn.functional.normalize(directions.float(), dim=-1)
    largest = []
    for first, rows in enumerate(unit.split(COLUMNS)):
        cosines = rows @ unit.T
        cosines.diagonal(first * COLUMNS).fill_(-torch.inf)
        largest.append(cosines.amax(-1))
    return torch.cat(largest)
