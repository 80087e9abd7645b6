"""`python -m bench compare`: every method on the same problem, a record each, then the table."""

import shutil
from pathlib import Path

from bench import hub, method, models, sae_sources, streams, text
from bench.errors import Rejected, RunFailed, Unavailable, Usage
from bench.progress import say
from bench.provenance import versions
from bench.record import read
from bench.spec import check_site


def compare(spec, labels, sets=(), seeds=(0,), out="runs", fresh=False, force=False):
    """Run the methods on `spec`, once per seed; skip what is done; print the table and figure.

    Everything that can be wrong with the command is found before anything is loaded. Raises
    `Rejected` for an SAE that does not belong here, unless `force` is set, and `RunFailed` when a
    run diverged or raised: the other runs are there all the same.
    """
    out = Path(out)
    method.check_names(labels, sets)
    if "none" not in labels:
        labels = ["none", *labels]
    check_inputs(spec, out)
    entries = [method.entry(label, sets) for label in labels]
    mse = method.entry(f"mse:lr={spec.sae_lr}")
    folder, _ = check_model(spec, entries)
    names, failed = run_all(spec, folder, entries, mse, seeds, out, fresh, force)
    report(out, names)
    if failed:
        raise RunFailed(f"{len(failed)} of the runs did not finish: {', '.join(failed)}")


def check_inputs(spec, out=None):
    """Raise what is wrong with the sources of the spec or the folder to write to."""
    models.check_source(spec.model, spec.weights)
    for sae in spec.saes:
        sae_sources.check_source(sae)
    text.check_source(spec)
    if out:
        check_writable(out)


def check_model(spec, entries):
    """(folder, config) of the model, once spec and methods are seen to fit it."""
    quiet_libraries(online=asks_the_hub(spec))
    models.check_device(spec.device)
    folder = fetch(spec)
    config = models.read_config(folder)
    models.check_family(config)
    if spec.center_writing_weights:
        models.check_centering(config)
    n_blocks = models.n_blocks(config)
    check_site(spec, n_blocks)
    models.check_context(config, spec.seq_len)
    for entry in entries:
        method.check_fits(entry, spec.sites, n_blocks)
    return folder, config


def fetch(spec):
    """Bring what only the network has into the caches -> the model's folder."""
    folder = models.locate(spec.model, spec.weights)
    for sae in filter(sae_sources.from_hub, spec.saes):
        sae_sources.locate(sae)
    if spec.text in streams.STREAMS:
        streams.file(spec.text, spec.stream_tokens)
    return folder


def asks_the_hub(spec):
    """Whether a source of the spec is one that only the network has."""
    model = hub.is_id(spec.model) and spec.weights == "pretrained"
    saes = any(map(sae_sources.from_hub, spec.saes))
    return model or saes or spec.text in streams.STREAMS


def run_all(spec, folder, entries, mse, seeds, out, fresh, force):
    """Every (seed, method) in turn -> (names of the runs, what failed as `name (status)`)."""
    from bench import build
    from bench.loaded import load

    loaded = load(spec, folder)
    n_most = len(seeds) * (len(entries) - 1)
    trains_sae = spec.sae == "own" and not build.own_folder(loaded, mse).exists()
    if trains_sae:
        say(expectation(loaded, n_most, trains_sae))
    bench = build.bench(loaded, mse)
    keep_sae_record(bench, out)
    say(describe(bench))
    check_sae(bench, force)
    runs = {
        bench.name(entry, seed): (entry, seed)
        for seed in seeds
        for entry in entries
        if entry.name != "none" or seed == seeds[0]  # nothing in it depends on a seed
    }
    todo = {name: run for name, run in runs.items() if fresh or not done(out, name, run[0])}
    if todo and not trains_sae:
        n_trained = sum(entry.name != "none" for entry, _ in todo.values())
        say(expectation(loaded, n_trained, trains_sae))
    failed = []
    for number, (name, (entry, seed)) in enumerate(todo.items(), start=1):
        path, status, reason = run_one(bench, entry, seed, out)
        say(f"[{number}/{len(todo)}] {entry.label} seed {seed}: {status}, {path}")
        if status != "finished":
            say(f"    {reason}")
            failed.append(f"{name} ({status})")
    if len(todo) < len(runs):
        say(f"{len(runs) - len(todo)} of {len(runs)} runs were already done (--fresh runs again)")
    return set(runs), failed


def run_one(bench, entry, seed, out):
    """One run -> (its record's path, how it ended, why); an older record is moved aside."""
    path = out / f"{bench.name(entry, seed)}.jsonl"
    set_aside(path)
    header = bench.header(entry, seed)
    status = bench.harness.run(entry.module, entry.config, header, bench.spec.steps, path)
    return path, status, "" if status == "finished" else read(path).end.get("reason", "")


def check_sae(bench, force):
    """Raise `Rejected`, unless forced, where the SAE cannot belong at this site."""
    if not bench.doubts:
        return
    if not force:
        raise Rejected(f"{'; '.join(bench.doubts)} (see `check`; --force goes on all the same)")
    say("forced: " + "; ".join(bench.doubts))


def expectation(loaded, n_runs, trains_sae):
    """What is about to be run and how long that takes here, roughly."""
    from bench import estimate

    spec = loaded.spec
    took = estimate.seconds(loaded, n_runs, trains_sae)
    first = "the SAE's training, then " if trains_sae else ""
    tokens, runs = spec.batch_size * spec.seq_len, "run" if n_runs == 1 else "runs"
    return (
        f"{first}up to {n_runs} {runs} of {spec.steps} steps of {tokens:,} tokens: "
        f"{estimate.in_words(took)}"
    )


def describe(bench):
    """What is being measured, in two lines."""
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


def done(out, name, entry):
    """Whether this run is finished; `Usage` where what it depends on has changed since."""
    path = out / f"{name}.jsonl"
    if not path.exists():
        return False
    try:
        run = read(path)
    except Rejected as error:
        say(f"{error}; it is set aside")
        return False
    if run.status != "finished":
        return False
    check_unchanged(run, entry)
    return True


def check_unchanged(run, entry):
    """Raise `Usage` where a finished run was made by another method's file or torch."""
    changed = []
    if run.header.get("source") != entry.source:
        changed.append(f"methods/{entry.name}.py")
    if run.header.get("versions", {}).get("torch") != versions()["torch"]:
        changed.append("torch")
    if changed:
        raise Usage(f"{run.path}: done with another {' and '.join(changed)}; --fresh runs it again")


def set_aside(path):
    """Rename an old record and its folder out of the way; nothing is deleted."""
    if not path.exists():
        return
    number = 1
    while (path.parent / f"{path.name}.{number}").exists():
        number += 1
    path.rename(path.parent / f"{path.name}.{number}")
    folder = path.parent / path.stem
    if folder.exists():
        folder.rename(path.parent / f"{path.stem}.{number}")


def keep_sae_record(bench, out):
    """Copy the record of the SAE's training beside the runs that use it."""
    source, target = bench.sae_record, out / bench.sae_record.name if bench.sae_record else None
    if source and source.exists() and not (target.exists() and target.samefile(source)):
        shutil.copyfile(source, target)


def check_writable(out):
    """Make the folder and write to it, or raise `Unavailable`: before anything is loaded."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write-probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise Unavailable(f"cannot write --out {out}: {error.strerror or error}") from None


def report(out, names):
    """Draw the figure of these records in `out` and print the table."""
    from analysis.report import report as analyse

    table, paths = analyse(out, names=names)
    say(f"\n{table}\n")
    say("written: " + ", ".join(map(str, paths)))


def quiet_libraries(online=False):
    """No warnings or progress bars from the libraries under this: ours are the ones to read.

    Unless `online`, none of them may ask the hub.
    """
    import logging
    import os
    import warnings

    if not online:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger().setLevel(logging.ERROR)
