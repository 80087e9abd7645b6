"""The SAEs of a spec: own ones are trained by a run like any other, random ones are drawn."""

import shutil
from dataclasses import replace
from pathlib import Path

from bench.config.method import Entry
from bench.config.request import EVERY, RunSettings
from bench.config.spec import own_training
from bench.distributed import group
from bench.errors import RunFailed, Usage
from bench.harness.signals import Stopped
from bench.io import locks, ranks
from bench.io.console import say
from bench.io.files import cache_root, new_folder, synchronize
from bench.io.record import digest
from bench.loading import sae_sources, saes
from bench.runs import setup
from bench.runs.done import status
from bench.runs.loaded import Loaded


def folders(loaded: Loaded, mse: Entry, every: float = EVERY) -> list[Path]:
    """The folders of the spec's SAEs; own ones are trained on first use, fresh ones made.

    `mse` is the method that trains them, with a checkpoint `every` so many seconds. Of several
    processes the first makes what is missing.
    """
    return group.first_then_others(lambda: _folders(loaded, mse, every))


def _folders(loaded: Loaded, mse: Entry, every: float) -> list[Path]:
    spec = loaded.spec
    if spec.sae == "fresh":
        return fresh_folders(loaded)
    if spec.sae != "own":
        return [sae_sources.locate(sae) for sae in spec.saes]
    if spec.sae_decoder == "shuffled":
        trained = replace(loaded, spec=replace(spec, sae_decoder="trained"))
        return [shuffled(folder) for folder in _folders(trained, mse, every)]
    own = own_folder(loaded, mse)
    if not own.exists():
        # Under torchrun nobody could break that wait off.
        wait = ranks.world() == 1
        with locks.held(own.parent, own.name, "the training of the SAE", wait):
            if not own.exists():  # another process may have trained it meanwhile
                _train(loaded, mse, own, every)
    (record,) = own.glob("*.jsonl")
    return saes.checkpoint(own / record.stem, spec.sae_share)


def fresh_folders(loaded: Loaded) -> list[Path]:
    """The folders of the spec's random SAEs, made on first use."""
    spec = loaded.spec
    return [fresh_folder(loaded, index) for index in range(len(spec.sites))]


def fresh_folder(loaded: Loaded, index: int) -> Path:
    """The folder of the random SAE of site number `index`."""
    spec, (width,) = loaded.spec, loaded.widths[index]
    if spec.sae_k > spec.sae_width * width:
        latents = f"{spec.sae_width} x {width} latents"
        raise Usage(f"--sae-k {spec.sae_k}: the SAE has only {latents}")
    made = [loaded.key, loaded.recipe, spec.sites[index]]
    folder = cache_root() / "saes" / f"fresh-{digest(made)[:16]}"
    if not folder.exists():
        with new_folder(folder) as temporary:
            saes.save_fresh(spec, index, width, temporary)
    return folder


def shuffled(trained: Path) -> Path:
    """The folder of the same SAE with the rows of its decoder exchanged, made on first use."""
    folder = cache_root() / "saes" / f"shuffled-{saes.sha256(trained)[:16]}"
    if not folder.exists():
        with new_folder(folder) as temporary:
            leave = shutil.ignore_patterns(saes.STATE)
            shutil.copytree(trained, temporary, ignore=leave, dirs_exist_ok=True)
            saes.shuffle(temporary)
    return folder


def own_folder(loaded: Loaded, mse: Entry) -> Path:
    """Where the spec's own SAE lies, with the record of its training, once it is trained."""
    made = [loaded.key, loaded.recipe, mse.settings, mse.source]
    return cache_root() / "saes" / digest(made)[:16]


def _train(loaded: Loaded, mse: Entry, folder: Path, every: float) -> None:
    """Train the spec's own SAE with the method `mse`, inside the harness like any other run.

    It becomes `folder` when it is done. Until then it lies beside that and can be resumed.
    """
    spec = own_training(loaded.spec)
    have = loaded.text.train.numel()
    times = f", its {have:,} training tokens {spec.sae_tokens / have:.1f} times"
    again = times if spec.sae_tokens > have else ""
    say(f"training the SAE on {spec.sae_tokens:,} tokens{again} (once; then it is cached)")
    bench = setup.bench(replace(loaded, spec=spec), fresh_folders(loaded))
    header = bench.header(mse, spec.sae_seed)
    name = bench.name(mse, spec.sae_seed)
    begun = folder.with_name(f"{folder.name}.{name}.begun")
    path = begun / f"{name}.jsonl"
    if status(path, header) != "finished":  # killed, perhaps, when all but the next line was done
        settings = RunSettings(mse.module, mse.config, header, spec.steps, path, every)
        outcome = bench.harness.run(settings)
        if outcome.end == "interrupted":
            raise Stopped
        if outcome.end != "finished":
            raise RunFailed(f"the training of the SAE ended as '{outcome.end}' ({outcome.why})")
    begun.rename(folder)
    synchronize(folder.parent)
