"""What one GPU is asked in a quarter of an hour. `make gpu-once` packs this: see docs/gpu.md.

python -m results.gpu.once run OUT SECONDS    # what is left of the plan, into OUT/results.tar.gz
python -m results.gpu.once inputs             # model and text into the cache, on the CPU alone
python -m results.gpu.once rates              # tokens a second, and from them the budget
python -m results.gpu.once words              # the forks of an SAE, for `bench compare`
python -m results.gpu.once choose             # the better step size of lora and e2e, for `timing`
python -m results.gpu.once settle             # a seed that is not whole leaves the manifest

All are called in the checkout. With REHEARSE=1 in the environment all is done on a CPU, at a toy
size. What a piece does not need of its seconds the next one has.
"""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from bench.config.method import MethodRequest
from bench.config.specs import flags_of
from bench.errors import Fault
from bench.experiments.scales import SCALES, sizes_file, written
from bench.experiments.sweep import lowest, write_tiny
from bench.io.files import new_json
from bench.io.record import read_folder

REHEARSE = bool(os.environ.get("REHEARSE"))
SCALE = "rehearsal-once" if REHEARSE else "gpu-once"
RECORDS = Path("runs/rehearsal/once" if REHEARSE else "results/gpu-once")
SIZES = Path("runs/rehearsal" if REHEARSE else "results/gpu") / sizes_file(SCALE).name
BUDGET = SIZES.with_name("once.json")
SPEED = SIZES.with_name("speed")
LOGS = Path("runs/once")
STATE = LOGS / "state.json"
TINY = Path("runs/rehearsal/tiny-shape")
GRACE, CLOSING, SHORTEST = 10, 5, 4
"""Seconds: from SIGTERM to SIGKILL; to write the results; below which nothing is started."""
DONE, LATE, CUT = "done", "late", "broken off, goes on in the next call"

FORKS = {
    "lora": ["lora:lr=1e-3", "lora:lr=4e-4"],
    "e2e": ["e2e:lr=2.5e-4", "e2e:lr=1e-4"],
    "kl+mse": ["e2e:loss=kl+mse:lr=2.5e-4", "e2e:loss=kl+mse:lr=1e-4"],
    "mse": ["mse:lr=2.5e-4", "mse:lr=1e-4"],
}
"""Role -> the labels that go on from a whole SAE; `timing` begins with the first ones."""
OPTIONS = [
    ([0, 1], [0.1, 1.0], 1, 1),
    ([0, 1], [1.0], 1, 1),
    ([0, 1], [1.0], 1, 1 / 2),
    ([0], [1.0], 1, 1),
    ([0], [1.0], 1, 1 / 2),
    ([0], [1.0], 1, 1 / 4),
    ([0], [1.0], 1 / 2, 1 / 4),
    ([0], [1.0], 1 / 4, 1 / 8),
]
"""Seeds, shares of the SAE that `timing` starts from, parts of the full tokens from scratch and of
a fork's. The first one that fits is taken."""


class Piece(NamedTuple):
    """A part of the plan."""

    name: str
    seconds: int
    command: str
    """For the shell."""
    fine: tuple[int, ...] = (0,)
    """Exit codes with which it is done."""


def plan() -> list[Piece]:
    """The pieces in their order."""
    python = shlex.quote(sys.executable)
    once, timing = f"{python} -m results.gpu.once", f"{python} -m bench experiment timing"
    timing = f"{timing} --scale {SCALE} --out {RECORDS}"
    tests = "-n 2 -k 'not smollm2 or float32'" if REHEARSE else "-n 6"
    tests = f"{python} -m pytest tests/test_device.py --dist worksteal -ra {tests}"
    forks = f"words=$({once} words) && exec {python} -m bench compare $words"
    slower = 6 if REHEARSE else 1
    pieces = [
        Piece("truth", 60, f"{once} inputs & {tests}; code=$?; wait; exit $code"),
        Piece("rates", 40, f"exec {once} rates"),
        Piece("seed-0", 150, f"exec {timing}"),
        Piece("forks", 130, forks, (0, 5)),
        Piece("choose", 10, f"{once} choose && exec {timing}"),
        Piece("seed-1", 110, f"exec {timing}"),
        *(race(python, *one) for one in RACES),
    ]
    return [piece._replace(seconds=slower * piece.seconds) for piece in pieces]


SHAPE = "--weights random --text random --sae fresh"
CUDA = "--device cuda --dtype bfloat16 --plain-dtype bfloat16 --pairs 5 --seq-len 1024"
FLAGS = {
    "smollm2": f"{CUDA} --sae fresh --batch-size 8",
    "gemma-2-2b": f"{CUDA} --spec gemma-2-2b-topk {SHAPE} --batch-size 1",
    "llama-3.2-1b": f"{CUDA} --spec llama-3.2-1b {SHAPE} --batch-size 1",
}
RACES = [("smollm2", "lora:rank=64", 40), ("smollm2", "e2e", 40)]
RACES += [("gemma-2-2b", "lora:rank=64", 50), ("gemma-2-2b", "e2e", 50)]
RACES += [("llama-3.2-1b", "lora:rank=64", 40), ("smollm2", "lora:rank=64", 60, "blocks")]
if REHEARSE:
    LITTLE = "--pairs 1 --seq-len 64 --batch-size 1"
    MODEL = f"--model {TINY} --site blocks.1.hook_resid_post"
    FLAGS = {"smollm2": f"{LITTLE} --sae fresh", "tiny-shape": f"{LITTLE} {MODEL} {SHAPE}"}
    RACES = [("smollm2", "lora:rank=64", 40), ("tiny-shape", "e2e", 40)]
    OPTIONS = OPTIONS[1:]
    FORKS = {"lora": FORKS["lora"], "e2e": FORKS["e2e"][:1], "mse": FORKS["mse"][:1]}


def race(python: str, model: str, label: str, seconds: int, compiled: str = "") -> Piece:
    """`bench speed` at one batch and at the best ones; its file is named as `make gpu` names it.

    It ends with 5 where the losses differ, which its file says. `compiled` is the value of
    SPLICEBENCH_COMPILE, and part of the name.
    """
    name = f"{model}-best-batch-{label.partition(':')[0]}" + (compiled and f"-compiled-{compiled}")
    words = f"speed {FLAGS[model]} --best-batch --methods {label} --out runs/speed/{name}"
    move = f"mkdir -p {SPEED} && mv runs/speed/{name}/speed-*.json {SPEED}/{name}.json"
    setting = f"SPLICEBENCH_COMPILE={compiled} " if compiled else ""
    command = f"{setting}{python} -m bench {words}; code=$?; {move}; exit $code"
    return Piece(name, seconds, command, (0, 5))


def run(out: Path, seconds: float, pieces: list[Piece]) -> int:
    """Work on the pieces that are left -> 0: all are done, 5: some are not, 75: call again.

    A piece that its own seconds broke off is gone on with at the end, if there are some left.
    """
    began, state = time.monotonic(), read_json(STATE) or {"how": {}, "spent": 0.0}
    dues = list(accumulate(piece.seconds for piece in pieces))
    first, again = zip(dues, pieces, strict=True), ((dues[-1], piece) for piece in pieces)
    for wanted, rounds in (("", first), (LATE, again)):
        for due, piece in rounds:
            if state["how"].get(piece.name, "") != wanted:
                continue
            left = seconds - CLOSING - GRACE - (time.monotonic() - began)
            limit = min(due - state["spent"], left)
            if left < SHORTEST:
                return 75
            how, took = call(piece, limit) if limit >= SHORTEST else (LATE, 0.0)
            if how == LATE and limit == left:
                how = wanted  # this call's end, not its own: the next call goes on
            state["how"][piece.name] = how
            state["spent"] += took
            new_json(STATE, state)
            pack(out)
            print(f"{piece.name}: {how or CUT}, {took:.0f} s of {piece.seconds}", flush=True)
    return 0 if all(state["how"].get(piece.name) == DONE for piece in pieces) else 5


def call(piece: Piece, limit: float) -> tuple[str, float]:
    """Run the command for so many seconds at most, with a log -> (how it ended, seconds)."""
    LOGS.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (LOGS / f"{piece.name}.log").open("a") as log:
        settings = {"stdout": log, "stderr": log, "process_group": 0}
        process = subprocess.Popen(["sh", "-c", piece.command], **settings)
        try:
            late = not ended(process, limit)
        finally:
            process.terminate()  # a run then writes its checkpoint
            ended(process, GRACE)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it may have left behind
        code = process.wait()
    how = LATE if late else DONE if code in piece.fine else f"failed ({code})"
    return how, time.monotonic() - began


def ended(process: subprocess.Popen, seconds: float) -> bool:
    """Whether it has ended within so many seconds."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def pack(out: Path) -> None:
    """Everything but weights, into OUT/results.tar.gz: the whole, or as it was before."""
    files = [BUDGET, SIZES, *SPEED.glob("*.json"), *LOGS.glob("*")]
    files += [path for path in RECORDS.glob("*") if path.is_file() and path.name[0] != "."]
    temporary = out / "results.new"
    with tarfile.open(temporary, "w:gz") as archive:
        for path in filter(Path.exists, files):
            archive.add(path)
    temporary.rename(out / "results.tar.gz")


def inputs() -> None:
    """Convert the model and tokenize the text, which the GPU would wait for."""
    from bench.runs.preflight import check_model

    spec = replace(SCALES[SCALE]().spec, device="cpu", dtype="float32")
    folder, _ = check_model(spec)
    from bench.runs.loaded import load

    load(spec, folder)


def rates() -> None:
    """Time steps of `mse`, `lora` and `e2e` by micro-batch, and write down the budget."""
    from bench.runs.preflight import check_model

    BUDGET.unlink(missing_ok=True)  # without it the scale is the full one
    spec = replace(SCALES[SCALE]().spec, sae="fresh")
    asked = {name: MethodRequest(FORKS[name][0]) for name in ("mse", "lora", "e2e")}
    folder, _ = check_model(spec, asked.values())
    from bench.speed.ours import Ours

    tried: dict[str, list[Any]] = {}
    for name, method in asked.items():
        began = time.monotonic()
        ours = Ours(spec, str(folder), method, 1)
        loading = time.monotonic() - began  # of the last one counts: all it needs is there by then
        batches = {1, 4, spec.batch_size} if spec.batch_size > 4 else {1, spec.batch_size}
        tried[name] = [ours.probe(batch) for batch in sorted(batches)]
    fastest = {
        name: max(rate["tokens_per_second"] or 0 for rate in of if rate) or 1
        for name, of in tried.items()
    }
    budget = fitted(fastest, 1.5 * loading, science())
    for name, of in tried.items():
        each = [f"{r['tokens_per_second']:,.0f} at {r['micro_batch']}" for r in of if r]
        print(f"{name}: tokens a second, by windows at once: {', '.join(each)}")
    print(f"{budget['in words']}: about {budget['needs']:.0f} of {science()} s")
    # One seed is made whole before the second one begins.
    new_json(BUDGET, {"rates": tried, **budget, "scale": {**budget["scale"], "seeds": [0]}})


def science() -> int:
    """The seconds of the pieces that `rates` plans."""
    return sum(p.seconds for p in plan() if p.name in ("seed-0", "forks", "choose", "seed-1"))


def fitted(fastest: dict[str, float], loading: float, seconds: float) -> dict[str, Any]:
    """Tokens a second of each method, seconds of loading a run -> the first of `OPTIONS` that fits.

    It is a dict: what the scale reads (`scale`), `seeds`, the seconds that it `needs`, `in words`.
    """
    spec = SCALES[SCALE]().spec
    size = spec.seq_len * spec.batch_size
    for seeds, shares, part, fork in OPTIONS:
        steps = max(1, round(spec.steps * fork))
        tokens = max(1, round(spec.sae_tokens / size * part)) * size
        looks = (spec.val_tokens + spec.curve_tokens * (3 + math.log2(steps))) / fastest["e2e"]
        scratch = tokens / fastest["mse"] + tokens / fastest["e2e"]
        stems = {"mse": 2, "lora": 2, "e2e": 4}
        runs = {name: n / fastest[name] * steps * size for name, n in stems.items()}
        more = 2 * (len(shares) * len(seeds) - 1)  # of lora and e2e
        adapted = sum(runs.values()) + more * (runs["lora"] / 4 + runs["e2e"] / 8)
        count = 2 * len(seeds) + sum(stems.values()) + more
        needs = len(seeds) * scratch + adapted + count * (loading + looks) + 4 * loading
        if needs <= seconds:
            break
    words = f"{len(seeds)} seeds, {tokens:,} tokens from scratch, {steps * size:,} a fork"
    scale = {"steps": steps, "sae_tokens": tokens, "shares": shares}
    return {"scale": scale, "seeds": seeds, "needs": needs, "in words": words}


def words() -> str:
    """The arguments of `bench compare` for the forks of the first seed."""
    spec = replace(SCALES[SCALE]().spec, sae="own", sae_seed=1_000)
    labels = ",".join(label for tried in FORKS.values() for label in tried)
    return shlex.join([*flags_of(spec, {}), "--methods", labels, "--out", str(RECORDS)])


def choose() -> None:
    """Write down the better step sizes of the first seed's forks, and open the other seeds."""
    runs = {r.header["label"]: r for r in read_folder(RECORDS) if r.header["seed"] == 0}
    sizes = written(SIZES)
    for role in ("lora", "e2e"):
        done = [runs[label] for label in FORKS[role] if label in runs]
        if done := [run for run in done if run.status == "finished"]:
            sizes[role] = lowest(role, done)
    new_json(SIZES, sizes)
    budget = read_json(BUDGET) or {"scale": {}, "seeds": [0]}
    new_json(BUDGET, budget | {"scale": {**budget["scale"], "seeds": budget["seeds"]}})


def settle() -> None:
    """Take a seed out of the manifest that has not all its runs: a claim rests on whole ones."""
    path = RECORDS / "timing.json"
    if manifest := read_json(path):
        lacking = {run["seed"] for run in manifest["runs"] if not run["record"]}
        manifest["runs"] = [run for run in manifest["runs"] if run["seed"] not in lacking]
        if manifest["runs"]:
            new_json(path, manifest)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def main(arguments: list[str]) -> int:
    """Run the command in the arguments -> exit code."""
    try:
        match arguments:
            case ["run", out, seconds]:
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
                if REHEARSE:
                    write_tiny(TINY)
                return run(Path(out), float(seconds), plan())
            case ["inputs"]:
                inputs()
            case ["rates"]:
                rates()
            case ["words"]:
                print(words())
            case ["choose"]:
                choose()
            case ["settle"]:
                settle()
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except Fault as fault:
        print(f"once: {fault}", file=sys.stderr)
        return fault.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
