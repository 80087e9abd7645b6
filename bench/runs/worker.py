"""What is done in a process of its own: the preparation of runs, and each run.

The libraries that take seconds to import are imported here, so that a process that is forked
from one that has imported this finds them.
"""

import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import sae_lens  # noqa: F401
from transformer_lens.model_bridge import TransformerBridge  # noqa: F401

from bench.config import method
from bench.config.method import Entry, MethodRequest
from bench.config.request import Outcome, Request, RunSettings
from bench.distributed import group
from bench.errors import Rejected, RunFailed
from bench.io import locks, ranks
from bench.io.console import in_words, say
from bench.io.files import new_file, set_aside
from bench.loading import models
from bench.runs import done, estimate, own_sae, setup, tuned
from bench.runs.loaded import Loaded, load
from bench.runs.preflight import check_model
from bench.runs.setup import Bench


def prepare(
    request: Request, wanted: list[tuple[MethodRequest, int]]
) -> tuple[Path, list[tuple[str, str | None]]]:
    """Fetch and load everything once, train the SAE if need be, say what is about to be run.

    `wanted` are (method, seed) pairs -> the model's folder, and for each the name of its run and
    its status, if it is done. Raises `Rejected` for an SAE that does not belong, `Usage` where
    what a run was made of has changed since.
    """
    spec = request.spec
    folder, _ = check_model(spec, dict.fromkeys(asked for asked, _ in wanted))
    if request.tuned:
        tuned.check_model(request.tuned, spec, models.fingerprint(folder))
    loaded = load(spec, folder, shard=request.shard_model)
    mse = method.of_own_saes(spec)
    if trains_sae := has_to_train(loaded, mse):
        say(expectation(loaded, [asked for asked, _ in wanted], trains_sae))
    bench = setup.bench(loaded, own_sae.folders(loaded, mse, request.every))
    if group.is_first():
        keep_sae_record(bench, request.out)
    say(describe(bench))
    check_sae(bench, request.force)
    runs = []
    for asked, seed in wanted:
        entry = method.load(asked)
        name = bench.name(entry, seed)
        path = request.out / f"{name}.jsonl"
        if request.fresh and group.is_first():
            set_aside(path)
        header = bench.header(entry, seed)
        status = done.status(path, header) if group.is_first() else None
        runs.append((name, group.from_first(status)))
    todo = [asked for (asked, _), (_, status) in zip(wanted, runs, strict=True) if not status]
    if todo and not trains_sae:
        say(expectation(loaded, todo, trains_sae))
    return folder, runs


def has_to_train(loaded: Loaded, mse: Entry) -> bool:
    """Whether the spec's own SAE is not there yet."""
    return loaded.spec.sae == "own" and not own_sae.own_folder(loaded, mse).exists()


def run(request: Request, asked: MethodRequest, seed: int) -> tuple[Path, Outcome]:
    """One run -> (its record's path, its `Outcome`)."""
    assert request.model_folder, "`prepare` comes before"
    # Of several processes each builds the problem by itself, unless it takes all to pass the LM.
    with nullcontext() if request.shard_model else group.alone():
        loaded = load(request.spec, request.model_folder, tell=False, shard=request.shard_model)
        mse = method.of_own_saes(request.spec)
        if ranks.rank() and has_to_train(loaded, mse):
            raise Rejected("the SAE of the first process is not in this one's cache: share one")
        bench = setup.bench(loaded, own_sae.folders(loaded, mse, request.every))
    if request.micro_batch:
        bench.harness.micro_batch = request.micro_batch
    return run_on(bench, request, asked, seed)


def run_on(bench: Bench, request: Request, asked: MethodRequest, seed: int) -> tuple[Path, Outcome]:
    """One run on a loaded problem -> (its record's path, its `Outcome`)."""
    entry = method.load(asked)
    name = bench.name(entry, seed)
    path = request.out / f"{name}.jsonl"
    header = bench.header(entry, seed)
    steps, every = asked.spec_of(request.spec).steps, request.every
    # All comparisons in a folder share their `none`, which takes no time: that is waited for.
    lock = locks.held(request.out, name, f"{asked.label} seed {seed}", wait=entry.name == "none")
    with lock if group.is_first() else nullcontext():
        group.check_same(name, "run (model, text, SAE)")
        # Another call may have done it meanwhile.
        status = group.from_first(done.status(path, header) if group.is_first() else None)
        if status:
            code = RunFailed.code if status == "diverged" else 0
            return path, Outcome(status, "as before (--fresh runs it again)", code)
        settings = RunSettings(entry.module, entry.config, header, steps, path, every)
        return path, bench.harness.run(settings)


def check_sae(bench: Bench, force: bool) -> None:
    """Raise `Rejected`, unless forced, where the SAE cannot belong at this site."""
    if not bench.doubts:
        return
    if not force:
        raise Rejected(f"{'; '.join(bench.doubts)} (see `check`; --force goes on all the same)")
    say("forced: " + "; ".join(bench.doubts))


def expectation(loaded: Loaded, methods: Iterable[MethodRequest], trains_sae: bool) -> str:
    """One line on the runs ahead, and roughly how long they take here."""
    spec = loaded.spec
    steps = [asked.spec_of(spec).steps for asked in methods if asked.name != "none"]
    took = in_words(estimate.seconds(loaded, steps, trains_sae))
    first = "the SAE's training, then " if trains_sae else ""
    runs = "run" if len(steps) == 1 else "runs"
    each = " to ".join(f"{n:,}" for n in sorted({min(steps, default=0), max(steps, default=0)}))
    tokens = spec.batch_size * spec.seq_len
    return f"{first}up to {len(steps)} {runs} of {each} steps of {tokens:,} tokens: {took}"


def describe(bench: Bench) -> str:
    """The SAE, its quality and the gap, in two lines."""
    spec, measured, sae = bench.spec, bench.measured, bench.sae
    gap = measured["ce_spliced"] - measured["ce_clean"]
    cost = bench.sae_cost
    trained = f", trained on {cost['tokens']:,} tokens in {cost['seconds']:.0f} s" if cost else ""
    losses = (
        f"CE clean {measured['ce_clean']:.4f}, spliced {measured['ce_spliced']:.4f}, "
        f"gap {gap:.4f} nats on the curve set"
    )
    if spec.weights == "random":
        losses = "random weights: no CE means anything"
    return (
        f"SAE {sae['source']} at {spec.site}{trained}: "
        f"L0 {measured['l0_full']:.1f}, FVU {measured['fvu_full']:.3f}\n{losses}"
    )


def keep_sae_record(bench: Bench, out: Path) -> None:
    """Copy the record of the SAE's training beside the runs that use it."""
    source = bench.sae_record
    if not source or not source.exists():
        return
    target = out / source.name
    if not target.exists() or target.read_bytes() != source.read_bytes():
        new_file(target, lambda temporary: shutil.copyfile(source, temporary))
