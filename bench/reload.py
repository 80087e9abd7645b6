"""A finished run in Python again: the bridge with the SAE and the adapters in place."""

import dataclasses

import torch

from bench import export, hooks, method, models, sae_sources, saes
from bench.blocks import named_weights
from bench.errors import Rejected, Usage
from bench.problem import Problem, splice
from bench.seen import reconstruction
from bench.spec import MADE_HERE, Spec


def load(run):
    """The `TransformerBridge` of a finished run, adapted: what `bench.load(RUN)` gives.

    `run` is the run's record or the folder beside it. A pass over whole windows of token ids
    [batch, seq] (no key-value cache) is then that of the adapted model, positions as the run had
    them; `bridge.reset_hooks()` makes it the clean model again, unless the method trained the
    model's own weights (`full`). Raises `Usage` where the run or its SAE is not there, `Rejected`
    where model or SAE are not those that it ran with.
    """
    run = export.finished(run)
    problem = _problem(run)
    adapted = _adapted(run, problem)
    _attach(problem, adapted)
    return problem.bridge


def _problem(run):
    known = {field.name for field in dataclasses.fields(Spec)}
    spec = Spec(**{name: value for name, value in run.header["spec"].items() if name in known})
    folder = models.locate(spec.model, spec.weights)
    told = run.header.get("model", {}).get("sha256")
    if told and told != models.fingerprint(folder):
        raise Rejected(f"{run.path}: the model '{spec.model}' is not the one that it ran with")
    tokenizer = models.load_tokenizer(folder)
    special = models.special_ids(tokenizer)
    bridge = models.load(folder, spec, tokenizer)
    own = export.trained_saes(run) or export.lent_saes(run)
    if not own and spec.sae in MADE_HERE:
        raise Usage(f"{run.path}: its SAE is not in the cache any more; run its command again")
    points = hooks.HookPoints(bridge)
    folders = own or [sae_sources.locate(sae) for sae in spec.saes]
    if not own and saes.sha256_of(folders) != run.header["sae"]["sha256"]:
        raise Rejected(f"{run.path}: the SAE '{spec.sae}' is not the one that it ran with")
    return Problem(
        bridge,
        saes.load_all(folders, [points.widths[site] for site in spec.sites], spec.device),
        spec.sites,
        torch.zeros(1, 1, dtype=torch.long, device=spec.device),
        spliced=spec.spliced,
        scored=spec.scored,
        special=special,
    )


def _adapted(run, problem):
    """What the run's method yields first, with what it had trained at the end."""
    from safetensors.torch import load_file

    given = {k: tuple(v) if isinstance(v, list) else v for k, v in run.header["config"].items()}
    module = method.entry(run.header["method"]).module
    start = {"init": ""} if "init" in given else {}  # what it ended with is in its own folder
    adapted = next(module.train(problem, [], module.Config(**{**given, **start})))
    path = run.path.with_suffix("") / "state.safetensors"
    state = load_file(path) if path.is_file() else {}
    for name, part in adapted.state.items():
        if isinstance(part, torch.nn.Module):
            prefix = f"{name}."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            part.load_state_dict(own)
            part.eval().requires_grad_(False)
    if export.trained_saes(run):  # the problem's own by now, what was trained folded in
        adapted.saes = problem.saes
    for number, block in adapted.blocks.items():  # weights that were trained, for good
        own = named_weights(problem.bridge.blocks[number])
        for name, trained in named_weights(block).items():
            own[name].data.copy_(trained)
    return adapted


def _attach(problem, adapted):
    """Put SAEs and adapters onto the hook points for good."""
    seen = {}

    def remember(value, hook):
        seen["tokens"] = value

    def spliced(sae):
        def replace(value, hook):
            rows = problem.rows(seen["tokens"], problem.spliced)
            return splice(lambda tokens: reconstruction(sae, tokens), rows)(value, hook)

        return replace

    problem.points["embed.hook_in"].add_hook(remember)
    splices = [(n, spliced(sae)) for n, sae in zip(problem.site_names, adapted.saes, strict=True)]
    for name, function in [*splices, *adapted.hooks]:
        problem.points[name].add_hook(function)
