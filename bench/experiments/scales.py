"""The scales of the experiments: a laptop's, the papers' and a GPU's.

The papers' has their models, SAEs and budgets. A GPU's are for the two models that come in
packages; each has a rehearsal that a CPU can run.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.config.spec import Spec
from bench.config.specs import SPECS
from bench.errors import Rejected
from bench.experiments.frontier import MEASURES, Frontier, rates

Changes = dict[str, Any]
"""Field of a spec -> its value."""


@dataclass(frozen=True)
class Scale:
    """The settings of the experiments, apart from their variables."""

    name: str
    spec: Spec
    """Setting of all but the sweeps."""
    swept: Spec
    """Setting of the sweeps."""
    seeds: tuple[int, ...]
    shares: tuple[float, ...]
    """Shares of the SAE's training that adaptation starts from."""
    lora: str
    """Settings of `lora`, rank and alpha aside."""
    layers: str
    """The layers that `timing`, and the experiments compared with it, adapt."""
    rank: int
    """Rank of `lora` where it is not varied."""
    alpha: int
    """Alpha where it is fixed."""
    scratch: str
    """`e2e` from a random SAE."""
    finetune: str
    """`e2e` from a trained SAE."""
    ranks: tuple[int, ...]
    """Ranks of the sweeps."""
    sparsity: dict[int, Changes]
    """L0 or k -> changes of the spec."""
    width: dict[int, Changes]
    """Latents -> changes of the spec."""
    depth: dict[int, Changes]
    """Block -> changes of the spec."""
    size: dict[str, Spec | None]
    """Model -> its spec, or None for the sweeps' own."""
    one_layer: tuple[int, ...]
    """Blocks that are adapted alone."""
    multi: dict[int, Spec]
    """Number of SAEs -> their spec."""
    frontiers: dict[str, Frontier] = field(default_factory=dict)
    """Experiment of the frontier -> its setting."""
    rivals: dict[str, str] = field(default_factory=dict)
    """Method -> its settings in `rivals`, where they are not its defaults."""
    has: tuple[str, ...] = ()
    """The experiments that it has, where it has not all of them."""


SHORT: Changes = {"sae_tokens": 65_536, "curve_docs": 8, "curve_tokens": 1_024, "val_tokens": 8_192}
"""The budgets that keep each experiment of a laptop within 40 minutes."""
SMOL = replace(Spec(), **SHORT)
GEMMA3 = replace(SPECS["gemma-3-270m"], **SHORT)

LAPTOP = Scale(
    name="laptop",
    spec=SMOL,
    swept=SMOL,
    seeds=(0, 1, 2),
    shares=(0.1, 0.5, 1.0),
    lora="",
    layers="after",
    rank=16,
    alpha=16,
    scratch="e2e:lr=1.6e-2:decay=0.2",
    finetune="e2e",
    ranks=(1, 16, 64),
    sparsity={k: {"sae_k": k} for k in (8, 16, 32, 64, 128)},
    width={2**n * 576: {"sae_width": 2**n} for n in (1, 2, 3, 4)},
    depth={n: {"site": f"blocks.{n}.hook_resid_post"} for n in (5, 10, 15, 20, 25)},
    size={"SmolLM2-135M": None, "Gemma-3-270M": GEMMA3},
    one_layer=(16, 19, 22, 25, 29),
    multi={
        len(blocks): replace(SMOL, site="+".join(f"blocks.{n}.hook_resid_post" for n in blocks))
        for blocks in ((15,), (10, 20), (5, 15, 25), (5, 10, 15, 20, 25))
    },
)

GEMMA2 = replace(SPECS["gemma-2-2b-topk"], sae_tokens=2_000_000_000, sae_lr=1.89e-4)
"""The paper's own SAE of Gemma-2-2B."""


def _scope(layer: int, width: str, l0: int, size: str = "2b") -> Changes:
    """An SAE of Gemma Scope on the residual after a block, and the block."""
    part = f"layer_{layer}/width_{width}/average_l0_{l0}"
    sae = f"saelens:gemma-scope-{size}-pt-res:{part}"
    return {"sae": sae, "site": f"blocks.{layer}.hook_resid_post"}


def _larger_gemma(size: str, layer: int, l0: int) -> Spec:
    model = f"google/gemma-2-{size}"
    scope = _scope(layer, "131k", l0, size)
    return replace(SPECS["gemma-2-2b"], name=f"gemma-2-{size}", model=model, **scope)


def _llama_scope(jump: int) -> Spec:
    """Llama-3.1-8B with an SAE of Llama Scope after every `jump`th block, from the `jump`th on."""
    blocks = range(jump, 32, jump)
    return replace(
        SPECS["llama-3.2-1b"],
        name="llama-3.1-8b",
        model="meta-llama/Llama-3.1-8B",
        sae="+".join(f"saelens:llama_scope_lxr_32x:l{block}r_32x" for block in blocks),
        site="+".join(f"blocks.{block}.hook_resid_post" for block in blocks),
        spliced="not-special",
        steps=30_000,
    )


FULL = Scale(
    name="full",
    spec=GEMMA2,
    swept=replace(SPECS["gemma-2-2b"], **_scope(12, "16k", 82)),
    seeds=(0,),  # as the paper
    shares=tuple(tenth / 10 for tenth in range(1, 11)),
    lora="lr=5e-5:dropout=0.1",
    layers="all",
    rank=64,
    alpha=32,
    scratch="e2e:lr=1.89e-4:decay=1.0",
    finetune="e2e:lr=5e-5",
    ranks=(1, 4, 16, 64, 256),
    sparsity={l0: _scope(12, "16k", l0) for l0 in (22, 41, 82, 176, 445)},
    width={
        latents * 1_024: _scope(12, f"{latents}k", l0)
        for latents, l0 in ((16, 82), (32, 76), (65, 72), (131, 67), (262, 67), (524, 65))
    },
    depth={
        block: _scope(block, "16k", l0)
        for block, l0 in ((6, 70), (9, 73), (12, 82), (15, 78), (18, 74))
    },
    size={
        "Gemma-2-2B": replace(SPECS["gemma-2-2b"], **_scope(12, "131k", 67)),
        "Gemma-2-9B": _larger_gemma("9b", 20, 62),
        "Gemma-2-27B": _larger_gemma("27b", 22, 82),
    },
    one_layer=tuple(range(13, 26)),
    multi={len(range(jump, 32, jump)): _llama_scope(jump) for jump in (16, 12, 8, 6, 4, 3, 2)},
)

MIXED: Changes = {
    "text": "sotu+corpora/novels95",
    "sae_set": "decay=0:warmup=0.01",
    "curve_docs": 16,
    "curve_tokens": 2_048,
    "val_docs": 46,  # a quarter of the novels
    "val_tokens": 23_552,
}
"""Half speeches, half novels; the SAE is trained at a step size that does not fall."""
STEPS = {
    "mse": 818,
    "lora": 207,
    "e2e": 211,
    "e2e-mse": 205,
    "joint": 203,
    "affine": 236,
    "sae-lora": 223,
    "sae-lora-2": 212,
    "lora-keep": 122,
    "mse-weighted": 818,
    "ridge": 960,
    "e2e-scratch": 845,
}
"""Arm -> steps of 512 tokens that took 450 s on two quiet cores; `e2e-scratch` -> 1,800 s. Those of
`mse` are as after 1,000 steps, when SAELens' auxiliary loss costs 0.055 s more."""


def _frontier() -> Scale:
    results = Path(__file__).resolve().parents[2] / "results"
    smol = replace(Spec(), **MIXED, sae_tokens=1_728_512, sae_lr=1e-3)
    tuned = rates(smol, results / "frontier-tuning", results / "frontier-tuning-scratch")
    tripled = {arm: 3 * steps for arm, steps in STEPS.items()}
    long = replace(smol, sae_tokens=3 * smol.sae_tokens * 3 // 4)  # as far as its one fork
    frontiers = {
        "frontier": Frontier(smol, STEPS, tuned, seeds=(0, 1, 2, 3, 4), others=(0, 1, 2)),
        "frontier-long": Frontier(long, tripled, tuned, seeds=(0, 1), trunk=0.75),
    }
    has = (*frontiers, *(f"frontier-{measure}" for measure in MEASURES))
    return replace(LAPTOP, name="frontier", spec=smol, swept=smol, has=has, frontiers=frontiers)


def _rehearsed_frontier() -> Scale:
    """The same plan at a toy size, without the tuning."""
    changes = {**REHEARSED, "sae_set": MIXED["sae_set"]}
    spec = replace(Spec(), **changes)
    steps = dict.fromkeys(STEPS, 4)
    usual = {arm: "shrink=10" if arm == "ridge" else "clip=1" for arm in STEPS}
    setting = Frontier(spec, steps, usual, seeds=(0,))
    frontiers = {"frontier": replace(setting, others=(0,)), "frontier-long": setting}
    return replace(_frontier(), name="rehearsal-frontier", spec=spec, frontiers=frontiers)


SIZES = {
    "sae": "lr=1e-3",
    "scratch": "lr=2e-3:decay=0.2",
    "lora": "lr=1e-3",
    "e2e": "lr=2.5e-4",
    "joint": "lr=1e-3:sae_lr=2.5e-4",
    "full": "lr=2.5e-5",
    "mse": "lr=2.5e-4",
}
"""Step sizes for a GPU's batches until a sweep there has chosen others: guesses."""


def chosen(name: str) -> dict[str, str]:
    """The step sizes of the scale `name`: those that its sweep chose and `make gpu` wrote down.

    Raises `Rejected` for a damaged file.
    """
    return SIZES | written(sizes_file(name))


def sizes_file(name: str) -> Path:
    """Where the sweeps of the scale `name` write the step sizes that were best."""
    here = "runs/rehearsal" if name.startswith("rehearsal") else "results/gpu"
    return Path(__file__).resolve().parents[2] / here / f"sizes-{name}.json"


def written(path: Path) -> dict[str, str]:
    """The step sizes in a file, {} where there is none. Raises `Rejected` for a damaged one."""
    if not path.exists():
        return {}
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))
        float(sizes.get("sae", SIZES["sae"]).removeprefix("lr="))
        "".join(sizes.values())
    except (ValueError, AttributeError, TypeError):
        raise Rejected(
            f"{path}: damaged: expected a JSON object of settings such as {json.dumps(SIZES)}; "
            "remove it to go on with these"
        ) from None
    return sizes


def _scaled(name: str, spec: Spec, **changes: Any) -> Scale:
    """The laptop's scale with another spec and the step sizes that were chosen for it."""
    sizes = chosen(name)
    spec = replace(spec, sae_lr=float(sizes.pop("sae").removeprefix("lr=")))
    return replace(
        LAPTOP,
        name=name,
        spec=spec,
        swept=spec,
        lora=sizes.pop("lora"),
        finetune=f"e2e:{sizes.pop('e2e')}",
        scratch=f"e2e:{sizes.pop('scratch')}",
        rivals={method: f"{method}:{settings}" for method, settings in sizes.items()},
        has=("timing", "rivals", "additivity", "token-loss", "distance", "no-sae"),
        **changes,
    )


ON_GPU: Changes = {
    "device": "cuda",
    "dtype": "bfloat16",
    "text": "corpora/novels95",
    "seq_len": 1_024,
    "batch_size": 16,
    "steps": 640,  # 10.5 million tokens, of the 12 or so that are not held out
    "sae_tokens": 20_971_520,
    "curve_docs": 8,
    "curve_tokens": 32_768,
    "val_docs": 16,
    "val_tokens": 262_144,
}
REHEARSED: Changes = {
    "seq_len": 64,
    "batch_size": 2,
    "steps": 3,
    "sae_tokens": 2_560,
    "curve_docs": 2,
    "curve_tokens": 128,
    "val_docs": 4,
    "val_tokens": 512,
}
"""The same plan on a CPU within minutes, so that faults show before a GPU is paid for."""
MODELS = {"smollm2": Spec(), "gemma3": SPECS["gemma-3-270m"]}


def _on_gpu(model: str) -> Scale:
    return _scaled(f"gpu-{model}", replace(MODELS[model], **ON_GPU))


def _rehearsal(model: str) -> Scale:
    spec = replace(MODELS[model], **REHEARSED)
    return _scaled(f"rehearsal-{model}", spec, seeds=(0,), shares=(0.5, 1.0))


def _once(name: str, changes: Changes) -> Scale:
    """SmolLM2 in a quarter of an hour of a GPU: the budget that was measured there, if it was."""
    path = sizes_file(name).with_name("once.json")
    budget = json.loads(path.read_text(encoding="utf-8"))["scale"] if path.exists() else {}
    seeds, shares = budget.pop("seeds", [0]), budget.pop("shares", [1.0])
    spec = replace(MODELS["smollm2"], **{**changes, **budget})
    scale = _scaled(name, spec, seeds=tuple(seeds), shares=tuple(shares))
    return replace(scale, has=("timing",))


# 10M tokens from scratch, below which no claim is made of an SAE, and 2M from there.
ONCE = {**ON_GPU, "steps": 128, "sae_tokens": 10_485_760}
SCALES: dict[str, Callable[[], Scale]] = {"laptop": lambda: LAPTOP, "full": lambda: FULL}
"""Value of `--scale` -> function that makes the `Scale` and reads the files of its step sizes."""
for _model in MODELS:
    SCALES[f"gpu-{_model}"] = partial(_on_gpu, _model)
    SCALES[f"rehearsal-{_model}"] = partial(_rehearsal, _model)
SCALES |= {"frontier": _frontier, "rehearsal-frontier": _rehearsed_frontier}
for _name, _changes in (("gpu-once", ONCE), ("rehearsal-once", REHEARSED)):
    SCALES[_name] = partial(_once, _name, _changes)
