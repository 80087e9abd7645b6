"""A finished run in Python again: its problem, its adapted model, and the bridge as either."""

import dataclasses
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module, ModuleList

from bench.config import method_files
from bench.config.spec import MADE_HERE, Spec, ends_of
from bench.errors import Rejected, Usage, unknown
from bench.export import artefacts
from bench.io.record import Run
from bench.loading import documents, models, sae_sources, saes, text
from bench.problem.batches import Batches
from bench.problem.blocks import named_weights
from bench.problem.hooks import Hook, HookPoints
from bench.problem.objectives import flat, splice
from bench.problem.problem import Adapted, Problem

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MODELS = ("clean", "spliced", "adapted", "without-sae")
"""What a run's bridge can be: the clean model; with the frozen SAEs that the run began with; as the
run ended; as the run ended, without the SAEs."""


def load(run: str | Path) -> "TransformerBridge":
    """The `TransformerBridge` of a finished run, adapted: what `bench.load(RUN)` gives.

    `run` is the run's record or the folder beside it. A pass over whole windows of token ids
    [batch, seq] (no key-value cache) is that of the adapted model, with the run's positions.
    The SAE's own hook points are the bridge's, by SAELens' names behind the point it writes:
    `blocks.15.hook_resid_post.hook_sae_acts_post` has the latents [batch, seq, d_sae], those of
    positions that are not spliced included. `bridge.reset_hooks()` makes it the clean model again,
    unless the method trained the model's own weights (`full`).

    Raises `Usage` where the run or its SAE is missing, `Rejected` where the model or the SAE has
    changed since the run.
    """
    record = artefacts.finished(run)
    problem, adapted = _restored(record, artefacts.trained_saes(record))
    _exchange(problem, adapted)
    _attach(problem, adapted.saes, adapted.hooks)
    for site, sae in zip(problem.site_names, adapted.saes, strict=True):
        for name, point in sae.hook_dict.items():
            point.name = f"{ends_of(site)[1]}.{name}"
            problem.bridge._hook_registry[point.name] = point  # where SAELens puts its own
    return problem.bridge


def restore(run: str | Path) -> tuple[Problem, Adapted]:
    """(the `Problem` that a finished run had, without its windows; the `Adapted` it ended with).

    The bridge has no hooks and the clean model's weights. `run` and the errors are those of
    `load`; the frozen SAEs that the run began with must be there even if it trained its own.
    """
    return _restored(artefacts.finished(run), [])


def there_are(problem: Problem, adapted: Adapted) -> tuple[str, ...]:
    """Those of `MODELS` that differ; a run that trained SAEs alone is clean without them."""
    beside = adapted.hooks or adapted.blocks
    trained = beside or adapted.saes is not problem.saes
    return MODELS[: 4 if beside else 3 if trained else 2]


@contextmanager
def placed(problem: Problem, adapted: Adapted, which: str) -> Iterator["TransformerBridge"]:
    """The problem's bridge as one of `MODELS`, for the passes inside the block."""
    if which not in MODELS:
        raise unknown("model", which, MODELS)
    changed = which in ("adapted", "without-sae")
    own = {"spliced": problem.saes, "adapted": adapted.saes}.get(which, [])
    try:
        if changed:
            _exchange(problem, adapted)
        _attach(problem, own, adapted.hooks if changed else [])
        yield problem.bridge
    finally:
        problem.bridge.reset_hooks()
        if changed:
            _exchange(problem, adapted)


def spec_of(run: Run) -> Spec:
    """The `Spec` of a run's record."""
    known = {field.name for field in dataclasses.fields(Spec)}
    return Spec(**{name: value for name, value in run.header["spec"].items() if name in known})


def validation(run: Run, problem: Problem) -> text.Windows:
    """The validation windows of a run, or what it had in their place, on the problem's device.

    Raises `Rejected` where the text has changed since the run.
    """
    spec = spec_of(run)
    tokenizer = models.load_tokenizer(models.locate(spec.model, spec.weights))
    parts = text.load(spec, tokenizer, len(problem.bridge.unembed.weight))
    if documents.source_sha256(spec) != run.header.get("text_sha256"):
        raise Rejected(f"{run.path}: the text '{spec.text}' is not the one that it ran with")
    return text.moved(parts, spec.device).held_out[spec.held_out]


def _restored(run: Run, folders: list[Path]) -> tuple[Problem, Adapted]:
    """Problem and adapted model of a run, with the SAEs in `folders` or its frozen ones."""
    spec = spec_of(run)
    folder = models.locate(spec.model, spec.weights)
    sha256 = run.header.get("model", {}).get("sha256")
    if sha256 and sha256 != models.fingerprint(folder):
        raise Rejected(f"{run.path}: the model '{spec.model}' is not the one that it ran with")
    problem = _problem(spec, folder, folders or _lent(run, spec))
    return problem, _adapted(run, problem, spec)


def _lent(run: Run, spec: Spec) -> list[Path]:
    """The folders of a run's frozen SAEs; those of the hub are fetched once more."""
    lent = artefacts.lent_saes(run)
    if lent:
        return lent
    if spec.sae in MADE_HERE:
        raise Usage(f"{run.path}: its SAE is not in the cache any more; run its command again")
    folders = [sae_sources.locate(sae) for sae in spec.saes]
    if saes.sha256_of(folders) != run.header["sae"]["sha256"]:
        raise Rejected(f"{run.path}: the SAE '{spec.sae}' is not the one that it ran with")
    return folders


def _problem(spec: Spec, folder: Path, folders: list[Path]) -> Problem:
    """The problem of a spec with the model in `folder`, the SAEs in `folders` and no windows."""
    tokenizer = models.load_tokenizer(folder)
    bridge = models.load(folder, spec, tokenizer)
    return Problem(
        bridge,
        _loaded(folders, HookPoints(bridge), spec),
        spec.sites,
        torch.zeros(1, 1, dtype=torch.long, device=spec.device),
        spliced=spec.spliced,
        scored=spec.scored,
        special=models.special_ids(tokenizer),
    )


def _loaded(folders: list[Path], points: HookPoints, spec: Spec) -> ModuleList:
    return saes.load_all(folders, list(map(points.widths_at, spec.sites)), spec.device)


def _adapted(run: Run, problem: Problem, spec: Spec) -> Adapted:
    """The first `Adapted` that the run's method yields, with the weights from the run's end."""
    from safetensors.torch import load_file

    config = {k: tuple(v) if isinstance(v, list) else v for k, v in run.header["config"].items()}
    if "init" in config:
        config["init"] = ""  # its folder has the weights that it ended with
    if "adam" in config:
        config["adam"] = "new"  # nothing is trained any more
    module = method_files.imported(run.header["method"])
    adapted = next(module.train(problem, Batches(problem.train), module.Config(**config)))
    path = run.path.with_suffix("") / "state.safetensors"
    state = load_file(path) if path.is_file() else {}
    for name, part in adapted.state.items():
        if isinstance(part, Module):
            prefix = f"{name}."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            part.load_state_dict(own)
            part.eval().requires_grad_(False)
    trained = artefacts.trained_saes(run)
    if trained:  # plain SAEs, a correction of their output folded in
        adapted.saes = _loaded(trained, problem.points, spec).requires_grad_(False).eval()
    return adapted


def _exchange(problem: Problem, adapted: Adapted) -> None:
    """Swap the weights of trained blocks with those of the bridge."""
    for number, block in adapted.blocks.items():
        own = named_weights(problem.bridge.blocks[number])
        for name, trained in named_weights(block).items():
            own[name].data, trained.data = trained.data, own[name].data


def _attach(problem: Problem, own: Collection[Module], adapters: list[tuple[str, Hook]]) -> None:
    """Put SAEs and adapters onto the hook points for good."""
    seen: dict[str, Tensor] = {}

    def splicing(site: str, sae: Module) -> tuple[Hook, Hook]:
        def make(value: Tensor, hook: Module) -> None:
            # The SAE sees every position, so that its hook points have [batch, seq, ...].
            seen[site] = flat(sae(value.flatten(2).to(sae.W_dec.dtype)))

        def replace(value: Tensor, hook: Module) -> Tensor:
            rows = problem.rows(seen["tokens"], problem.spliced)
            [(_, put)] = splice(ends_of(site)[1], lambda *_: seen.pop(site)[rows], rows)
            return put(value, hook)

        return make, replace

    remember = ("embed.hook_in", lambda value, hook: seen.update(tokens=value))
    splices: list[tuple[str, Hook]] = []
    reads: list[tuple[str, Hook]] = []
    for site, sae in zip(problem.site_names, own, strict=bool(own)):
        (at, to), (make, replace) = ends_of(site), splicing(site, sae)
        (splices if at == to else reads).append((at, make))
        splices.append((to, replace))
    for name, function in [remember, *splices, *adapters, *reads]:
        problem.points[name].add_hook(function)
