"""The sweeps of `make gpu`: the settings that are tried at a scale, and the best of them.

python -m bench.experiments.sweep words SCALE sae|methods     # what follows `bench compare`
python -m bench.experiments.sweep choose SCALE sae|methods    # the best: sizes-SCALE.json
python -m bench.experiments.sweep tiny FOLDER                 # a model's config, at a toy size
"""

import sys
from pathlib import Path

from bench.config.shapes import SHAPES
from bench.config.specs import flags_of
from bench.errors import Fault, RunFailed
from bench.experiments.scales import SCALES, SIZES, Changes, chosen, sizes_file, written
from bench.io.files import new_json
from bench.io.record import Run, read_folder

SAE_GRID = {
    "sae": ["mse:lr=5e-4", "mse:lr=1e-3", "mse:lr=2e-3", "mse:lr=4e-3"],
    "scratch": [f"e2e:lr={lr}:decay=0.2" for lr in ("5e-4", "1e-3", "2e-3", "4e-3")],
}
"""Role in a scale -> the settings that are tried around a random SAE."""
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
"""The same around an own SAE, trained at the step size that was best."""


class Sweep:
    """One sweep of a scale: around random SAEs (`sae`) or an own one (`methods`)."""

    def __init__(self, scale: str, kind: str) -> None:
        self.scale, self.file = scale, sizes_file(scale)
        self.out = self.file.with_name(f"sweep-{kind}-{scale}")
        sae_lr = SIZES["sae"] if kind == "sae" else chosen(scale)["sae"]
        self.changes: Changes = {"sae_lr": sae_lr.removeprefix("lr=")}
        self.changes |= {"sae": "fresh", "steps": 320} if kind == "sae" else {"steps": 160}
        self.grid = SAE_GRID if kind == "sae" else GRID
        if scale.startswith("rehearsal"):
            few = self.grid.keys() & {"sae", "scratch", "lora", "affine"}
            self.grid = {role: tried[1:3] for role, tried in self.grid.items() if role in few}
            self.changes["steps"] //= 80

    def words(self) -> list[str]:
        """The arguments of `bench compare` for this sweep, in the checkout."""
        flags = flags_of(SCALES[self.scale]().spec, self.changes)
        labels = [label for tried in self.grid.values() for label in tried]
        out = self.out.relative_to(self.file.parents[2])  # a record may say so
        return [*flags, "--methods", ",".join(labels), "--out", str(out)]

    def choose(self) -> None:
        """Write down the best setting of each role that has none yet: one set by hand stays.

        Raises `RunFailed` where a run is missing that would have to be compared.
        """
        sizes = written(self.file)
        ended = ("finished", "diverged")
        runs = {run.header["label"]: run for run in read_folder(self.out) if run.status in ended}
        for role, tried in self.grid.items():
            if missing := [label for label in tried if label not in runs]:
                raise RunFailed(f"{self.out}: no run of {', '.join(missing)} has ended")
            sizes.setdefault(role, lowest(role, [runs[label] for label in tried]))
        new_json(self.file, sizes)


def lowest(role: str, runs: list[Run]) -> str:
    """The settings with the lowest CE on the curve set at the end; for the SAE, the least FVU."""
    field = "fvu" if role == "sae" else "ce"
    candidates = [run for run in runs if run.status == "finished"] or runs
    best = min(candidates, key=lambda run: run.rows[-1][field])
    return best.header["label"].partition(":")[2]


def write_tiny(folder: Path) -> None:
    """Write the config of Llama-3.2-1B, made tiny, into a folder."""
    small = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    small |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    small |= {"bos_token_id": 1, "eos_token_id": 2}
    new_json(folder / "config.json", SHAPES["meta-llama/Llama-3.2-1B"] | small)


def main(words: list[str]) -> int:
    """Run the command in `words` -> exit code."""
    try:
        match words:
            case ["words", scale, ("sae" | "methods") as kind]:
                print(*Sweep(scale, kind).words())
            case ["choose", scale, ("sae" | "methods") as kind]:
                Sweep(scale, kind).choose()
            case ["tiny", folder]:
                write_tiny(Path(folder))
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except Fault as fault:
        print(f"sweep: {fault}", file=sys.stderr)
        return fault.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
