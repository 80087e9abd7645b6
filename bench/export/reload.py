"""A finished run in Python again: its problem, its adapted model, and the bridge as either."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.config import method
from bench.config.spec import MADE_HERE, Spec
from bench.errors import Rejected, Usage, unknown
from bench.export import artefacts
from bench.io.record import Run
from bench.loading import documents, models, sae_sources, saes, text
from bench.problem import hooks
from bench.problem.blocks import named_weights
from bench.problem.objectives import reconstruction, splice
from bench.problem.problem import Adapted, Problem

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MODELS = ("clean", "spliced", "adapted", "without-sae")
"""What a run's bridge can be: nothing on it; the SAEs that the run was lent; what it ended with;
that without the SAEs."""


def load(run: str | Path) -> "TransformerBridge":
    """The `TransformerBridge` of a finished run, adapted: what `bench.load(RUN)` gives.

    `run` is the run's record or the folder beside it. A pass over whole windows of token ids
    [batch, seq] (no key-value cache) is then that of the adapted model, positions as the run had
    them; `bridge.reset_hooks()` makes it the clean model again, unless the method trained the
    model's own weights (`full`). Raises `Usage` where the run or its SAE is not there, `Rejected`
    where model or SAE are not those that it ran with.
    """
    run = artefacts.finished(run)
    problem, adapted = _restored(run, artefacts.trained_saes(run))
    _exchange(problem, adapted)
    _attach(problem, adapted.saes, adapted.hooks)
    return problem.bridge


def restore(run: str | Path) -> tuple[Problem, Adapted]:
    """(the `Problem` that a finished run had, without its windows; the `Adapted` it ended with).

    Nothing is on the bridge and its weights are the clean model's. `run` and what is raised are
    as in `load`; the SAEs that the run was lent must be there too where it trained its own.
    """
    return _restored(artefacts.finished(run))


def there_are(problem: Problem, adapted: Adapted) -> tuple[str, ...]:
    """Those of `MODELS` that differ: only what takes part besides the SAEs can do without them."""
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
    """The `Spec` of a record, as read."""
    known = {field.name for field in dataclasses.fields(Spec)}
    return Spec(**{name: value for name, value in run.header["spec"].items() if name in known})


def validation(run: Run, problem: Problem) -> text.Windows:
    """The validation windows of a record, as read (`text.Windows`), on the problem's device.

    Raises `Rejected` where the text is not the one that it ran with.
    """
    spec = spec_of(run)
    tokenizer = models.load_tokenizer(models.locate(spec.model, spec.weights))
    whole = text.load(spec, tokenizer, len(problem.bridge.unembed.weight))
    if documents.source_sha256(spec) != run.header.get("text_sha256"):
        raise Rejected(f"{run.path}: the text '{spec.text}' is not the one that it ran with")
    return text.moved(whole, spec.device).validation


def _restored(run, folders=()):
    """Problem and adapted model of a record, as read, with the lent SAEs or those in `folders`."""
    spec = spec_of(run)
    folder = models.locate(spec.model, spec.weights)
    sha256 = run.header.get("model", {}).get("sha256")
    if sha256 and sha256 != models.fingerprint(folder):
        raise Rejected(f"{run.path}: the model '{spec.model}' is not the one that it ran with")
    problem = _problem(spec, folder, folders or _lent(run, spec))
    return problem, _adapted(run, problem, spec)


def _lent(run, spec):
    """The folders of the SAEs that a run was lent; from the hub once more, if they were."""
    lent = artefacts.lent_saes(run)
    if lent:
        return lent
    if spec.sae in MADE_HERE:
        raise Usage(f"{run.path}: its SAE is not in the cache any more; run its command again")
    folders = [sae_sources.locate(sae) for sae in spec.saes]
    if saes.sha256_of(folders) != run.header["sae"]["sha256"]:
        raise Rejected(f"{run.path}: the SAE '{spec.sae}' is not the one that it ran with")
    return folders


def _problem(spec, folder, folders):
    """The problem of a spec with the model in `folder`, the SAEs in `folders` and no windows."""
    tokenizer = models.load_tokenizer(folder)
    bridge = models.load(folder, spec, tokenizer)
    return Problem(
        bridge,
        _loaded(folders, hooks.HookPoints(bridge), spec),
        spec.sites,
        torch.zeros(1, 1, dtype=torch.long, device=spec.device),
        spliced=spec.spliced,
        scored=spec.scored,
        special=models.special_ids(tokenizer),
    )


def _loaded(folders, points, spec):
    return saes.load_all(folders, [points.widths[site] for site in spec.sites], spec.device)


def _adapted(run, problem, spec):
    """What the run's method yields first, with what it had trained at the end."""
    from safetensors.torch import load_file

    config = {k: tuple(v) if isinstance(v, list) else v for k, v in run.header["config"].items()}
    if "init" in config:
        config["init"] = ""  # what it ended with is in its own folder
    module = method.entry(run.header["method"]).module
    adapted = next(module.train(problem, [], module.Config(**config)))
    path = run.path.with_suffix("") / "state.safetensors"
    state = load_file(path) if path.is_file() else {}
    for name, part in adapted.state.items():
        if isinstance(part, torch.nn.Module):
            prefix = f"{name}."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            part.load_state_dict(own)
            part.eval().requires_grad_(False)
    trained = artefacts.trained_saes(run)
    if trained:  # plain SAEs, a correction of their output folded in
        adapted.saes = _loaded(trained, problem.points, spec).requires_grad_(False).eval()
    return adapted


def _exchange(problem, adapted):
    """Weights of trained blocks into the bridge, those that were there into the copies."""
    for number, block in adapted.blocks.items():
        own = named_weights(problem.bridge.blocks[number])
        for name, trained in named_weights(block).items():
            own[name].data, trained.data = trained.data, own[name].data


def _attach(problem, own, adapters):
    """Put SAEs and adapters onto the hook points for good."""
    seen = {}

    def splicing(sae):
        def replace(value, hook):
            rows = problem.rows(seen["tokens"], problem.spliced)
            return splice(partial(reconstruction, sae), rows)(value, hook)

        return replace

    remember = ("embed.hook_in", lambda value, hook: seen.update(tokens=value))
    sites = problem.site_names[: len(own)]
    splices = zip(sites, map(splicing, own), strict=True)
    for name, function in [remember, *splices, *adapters]:
        problem.points[name].add_hook(function)
