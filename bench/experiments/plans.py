"""The papers' experiments as data: the runs of each, at the scale of a laptop and of the papers.

`full` has the models, SAEs and budgets of Chen, Engels and Tegmark (2501.19406). Each SAE sits at
the block it was trained on; their code for several SAEs is one block off. `laptop` asks the same
questions of SmolLM2-135M, each experiment within 40 minutes on two cores. The scales of a GPU have
`timing`, `rivals` and the experiments that build on their runs, at 10 million tokens and more.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from bench.config.method import own_label
from bench.config.spec import own_training
from bench.config.specs import SPECS
from bench.errors import Usage, unknown
from bench.experiments import frontier
from bench.experiments.job import Job, seeded
from bench.experiments.scales import SCALES, Changes, Scale

RANKS = (1, 4, 16, 64, 256)
RIVALS = ("joint", "linear", "affine", "ridge", "full", "mse")
"""Every method but `lora`, `e2e` and `none`."""


def _lora(scale: Scale, **changes: object) -> str:
    """The label of `lora` at this scale; it names only settings that are not the defaults."""
    usual = {"rank": 16, "alpha": 16, "layers": "after"}
    settings = {name: changes.get(name, getattr(scale, name)) for name in usual}
    unusual = [f"{name}={value}" for name, value in settings.items() if value != usual[name]]
    return ":".join(["lora", *unusual, *filter(None, [scale.lora])])


def timing(scale: Scale) -> Iterator[Job]:
    """mse with its checkpoints, e2e from scratch, lora and e2e from each checkpoint (Fig. 1)."""
    for seed in scale.seeds:
        spec = seeded(scale.spec, seed)
        training = own_training(spec)
        mse, of_sae = own_label(spec), spec.sae_seed
        yield Job("mse", mse, training, seed, run_seed=of_sae, trains_own=spec)
        yield Job("e2e", scale.scratch, training, seed, run_seed=of_sae)
        for share in scale.shares:
            part, at = replace(spec, sae_share=share), {"share": share}
            yield Job("lora", _lora(scale), part, seed, at)
            yield Job("e2e-finetune", scale.finetune, part, seed, at)


def rivals(scale: Scale) -> Iterator[Job]:
    """Every method from the same checkpoints, with the same tokens, on the same clock."""
    named = {name: scale.rivals.get(name, name) for name in RIVALS}
    labels = {"lora": _lora(scale), "e2e": scale.finetune, **named}
    for seed in scale.seeds:
        for share in (share for share in scale.shares if share in (0.1, 0.5, 1.0)):
            spec = replace(seeded(scale.spec, seed), sae_share=share)
            for role, label in labels.items():
                yield Job(role, label, spec, seed, {"share": share})


def rank(scale: Scale) -> Iterator[Job]:
    """Gap closed by rank: alpha fixed, as in the paper, and alpha that grows with the rank."""
    for number in RANKS:
        for kind, alpha in (("fixed", scale.alpha), ("scaled", number)):
            label = _lora(scale, rank=number, alpha=alpha, layers="after")
            yield Job("lora", label, seeded(scale.swept, 0), 0, {"rank": number, "alpha": kind})


def one_layer(scale: Scale) -> Iterator[Job]:
    """One adapted layer at a time, against all layers after the SAE."""
    for layer in (*scale.one_layer, "after"):
        label = _lora(scale, layers=layer)
        yield Job("lora", label, seeded(scale.swept, 0), 0, {"layer": layer})


def _sweep(scale: Scale, variable: str, changes: dict[int, Changes]) -> Iterator[Job]:
    for value, change in changes.items():
        spec = seeded(replace(scale.swept, **change), 0)
        for number in scale.ranks:
            at = {variable: value, "rank": number}
            yield Job("lora", _lora(scale, rank=number, layers="after"), spec, 0, at)


def sparsity(scale: Scale) -> Iterator[Job]:
    """Gap closed by L0 and rank."""
    yield from _sweep(scale, "k", scale.sparsity)


def width(scale: Scale) -> Iterator[Job]:
    """Gap closed by the SAE's width and rank."""
    yield from _sweep(scale, "width", scale.width)


def layer(scale: Scale) -> Iterator[Job]:
    """Gap closed by the SAE's layer and rank."""
    yield from _sweep(scale, "layer", scale.depth)


def size(scale: Scale) -> Iterator[Job]:
    """Gap closed by the model's size and rank."""
    for model, spec in scale.size.items():
        for number in scale.ranks:
            label = _lora(scale, rank=number, layers="after")
            # The step size of `lora` on Gemma-3-270M was tuned there.
            label += ":lr=1e-3" if spec and spec.name == "gemma-3-270m" else ""
            at = {"model": model, "rank": number}
            yield Job("lora", label, seeded(spec or scale.swept, 0), 0, at)


def multi_sae(scale: Scale) -> Iterator[Job]:
    """CE with several SAEs at once, bare and adapted."""
    for number, spec in scale.multi.items():
        adapters = _lora(scale, layers="all" if scale.name == "full" else "after")
        for role, label in (("none", "none"), ("lora", adapters), ("e2e", scale.finetune)):
            yield Job(role, label, seeded(spec, 0), 0, {"saes": number})


def additivity(scale: Scale) -> Iterator[Job]:
    """lora after e2e and the reverse, each against more of the same."""
    for seed in scale.seeds:
        spec = seeded(scale.spec, seed)
        labels = {"lora": _lora(scale), "e2e": scale.finetune}
        firsts = {kind: Job(kind, labels[kind], spec, seed, {"stage": 1}) for kind in labels}
        yield from firsts.values()
        for first in firsts.values():
            for then, label in labels.items():
                at, role = {"stage": 2}, f"{first.role}+{then}"
                other = seed + 100  # other batches than those of the first stage
                yield Job(role, label, spec, seed, at, run_seed=other, after=first)


def _measured(scale: Scale, measure: str, kinds: Iterable[str]) -> Iterator[Job]:
    labels = {"lora": _lora(scale), "e2e": scale.finetune}
    for seed in scale.seeds:
        for kind in kinds:
            run = Job(kind, labels[kind], seeded(scale.spec, seed), seed)
            at = {"share": 1.0}
            yield Job(kind, labels[kind], run.spec, seed, at, after=run, measure=measure)


def token_loss(scale: Scale) -> Iterator[Job]:
    """The change of each token's loss: clean, spliced, adapted."""
    yield from _measured(scale, "token-loss", ("lora", "e2e"))


def distance(scale: Scale) -> Iterator[Job]:
    """How far the residual is from the clean model's, block by block."""
    yield from _measured(scale, "distance", ("lora", "e2e"))


def no_sae(scale: Scale) -> Iterator[Job]:
    """The adapted model's CE when the SAE is taken out again."""
    yield from _measured(scale, "no-sae", ("lora",))


def timing_llama(scale: Scale) -> Iterator[Job]:
    """`timing` on Llama-3.2-1B."""
    spec = replace(SPECS["llama-3.2-1b"], sae_tokens=4_000_000_000, sae_lr=2.0e-4)
    yield from timing(replace(scale, spec=spec))


EXPERIMENTS: dict[str, Callable[[Scale], Iterator[Job]]] = {
    plan.__name__.replace("_", "-"): plan
    for plan in (
        timing,
        rivals,
        sparsity,
        width,
        layer,
        rank,
        size,
        one_layer,
        multi_sae,
        additivity,
        token_loss,
        distance,
        no_sae,
        timing_llama,
        *frontier.PLANS,
    )
}
"""Name on the command line -> its jobs at a `Scale`."""


OF_FRONTIER = [plan.__name__.replace("_", "-") for plan in frontier.PLANS]
"""Experiments of the scales that have a frontier."""
FULL_ONLY = ("timing-llama",)
"""Experiments that a laptop has no model for."""


def expanded(names: Iterable[str], scale: str) -> list[str]:
    """The names without repeats, `all` as those that this scale has."""
    every = [name for name in EXPERIMENTS if scale not in SCALES or _has(SCALES[scale](), name)]
    repeated = [one for name in names for one in (every if name == "all" else [name])]
    return list(dict.fromkeys(repeated))


def _has(scale: Scale, name: str) -> bool:
    if name in OF_FRONTIER and not scale.frontiers:
        return False
    return name in scale.has if scale.has else scale.name == "full" or name not in FULL_ONLY


def jobs(name: str, scale: str) -> list[Job]:
    """The jobs of an experiment in the order of their runs; `scale` is a name."""
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, [*EXPERIMENTS, "all"])
    if scale not in SCALES:
        raise unknown("--scale", scale, SCALES)
    settings = SCALES[scale]()
    if not _has(settings, name):
        having = " or ".join(one for one, make in SCALES.items() if _has(make(), name))
        raise Usage(f"experiment '{name}': not at the scale {scale}, only with --scale {having}")
    return [replace(job, experiment=name) for job in EXPERIMENTS[name](settings)]
