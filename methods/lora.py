"""Low-rank adapters on the model around the frozen SAE (Chen, Engels, Tegmark 2501.19406).

y = W x + (alpha / rank) * B A x for each target, written over hook points: one hook reads the
linear map's input, one adds to its output. No weight is touched and no module replaced.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bench.errors import unknown
from bench.loading import peft_format
from bench.problem import (
    LOSSES,
    Adapted,
    Batches,
    Descent,
    Hook,
    Problem,
    block_after,
    descend,
    kl_with_and_without,
)

LINEARS = {
    "q": "attn.q",
    "k": "attn.k",
    "v": "attn.v",
    "o": "attn.o",
    "gate": "mlp.gate",
    "up": "mlp.in",
    "down": "mlp.out",
}
"""Target -> the linear map inside `blocks.L.`, as TransformerLens names it."""


@dataclass(frozen=True)
class Config(Descent):
    """Fields of `--set lora.FIELD=VALUE`."""

    lr: float = 2.5e-3
    rank: int = 16
    """Rank of each adapter."""
    alpha: float = 16.0
    """Scale of the update: it is multiplied by alpha / rank."""
    keep: float = 0.0
    """Weight of a second KL, of the adapted model without the SAE: LoRA's harm to the model."""
    dropout: float = 0.0
    """Share of each adapter's input that is dropped in training."""
    targets: tuple[str, ...] = tuple(LINEARS)
    """Linear maps to adapt; those that a family lacks (GPT-2 has no gate) are left out."""
    init: str = ""
    """Folder of a PEFT adapter to start from; without one A is random and B zero."""
    init_sha256: str = ""
    """Filled in: the hash of that adapter, so that another one is another run."""
    layers: str = "after"
    """`after` the SAE, `all`, `next` (the next block only), or a list such as `16,17`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep < 0:
            raise ValueError(f"keep must be at least 0, got {self.keep}")
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if not self.targets:
            raise ValueError(f"targets is empty, expected some of {', '.join(LINEARS)}")
        for target in self.targets:
            if target not in LINEARS:
                raise unknown("target of lora", target, LINEARS)
        if self.init:
            object.__setattr__(self, "init_sha256", peft_format.sha256(self.init))
        if self.layers not in ("after", "all", "next"):
            try:
                parse_layers(self.layers)
            except ValueError:
                raise unknown(
                    "layers of lora", self.layers, ("after", "all", "next", "16,17")
                ) from None


class LowRank(torch.nn.Module):
    """(alpha / rank) * B A x, with A as PEFT starts it and B = 0."""

    def __init__(self, d_in: int, d_out: int, config: Config, device: str | torch.device) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.empty(config.rank, d_in, device=device))
        self.b = torch.nn.Parameter(torch.zeros(d_out, config.rank, device=device))
        torch.nn.init.kaiming_uniform_(self.a, a=5**0.5)
        self.scale = config.alpha / config.rank
        self.dropout = torch.nn.Dropout(config.dropout)

    @torch.no_grad()
    def set(
        self, a: Float[Tensor, "rank d_in"] | None, b: Float[Tensor, "d_out rank"], linear: str
    ) -> None:
        """Start from A and B of an adapter of this linear map."""
        if a is None or a.shape != self.a.shape or b.shape != self.b.shape:
            raise ValueError(f"the adapter to start from does not fit {linear}")
        self.a.copy_(a)
        self.b.copy_(b)

    def forward(self, x: Float[Tensor, "*tokens d_in"]) -> Float[Tensor, "*tokens d_out"]:
        linear = torch.nn.functional.linear
        # Scaled between A and B, where the tensor is at its smallest.
        return linear(linear(self.dropout(x).to(self.a.dtype), self.a) * self.scale, self.b)

    def hooks(self, linear: str) -> list[tuple[str, Hook]]:
        """The pair of (hook point, function) that adapts the linear map of this name."""
        held: list[Tensor] = []

        def read(value: Tensor, hook: torch.nn.Module) -> None:
            held[:] = [value.flatten(2)]  # heads flattened: [batch, seq, d_in]

        def add(value: Tensor, hook: torch.nn.Module) -> Tensor:
            return value + self(held.pop()).to(value.dtype).view_as(value)

        return [(f"{linear}.hook_in", read), (f"{linear}.hook_out", add)]


def train(problem: Problem, batches: Batches, config: Config) -> Iterator[Adapted]:
    """Yield the adapted model before training and after every step."""
    adapters, hooks = build(problem, config)
    adapted = Adapted(saes=problem.saes, hooks=hooks, state={"adapters": adapters})
    loss = kl_with_and_without(config.keep) if config.keep else LOSSES["kl"]
    yield from descend(problem, batches, adapted, config, loss)


def build(problem: Problem, config: Config) -> tuple[torch.nn.ModuleDict, list[tuple[str, Hook]]]:
    """The adapters as a ModuleDict, in order of blocks and targets, and their hooks."""
    adapters, hooks = torch.nn.ModuleDict(), []
    given = peft_format.load(config.init) if config.init else None
    widths = problem.points.widths
    for block in chosen_layers(config.layers, problem.site_names, problem.n_blocks):
        for target in config.targets:
            linear = f"blocks.{block}.{LINEARS[target]}"
            if f"{linear}.hook_in" not in problem.points:  # not of this family
                continue
            d_in, d_out = widths[f"{linear}.hook_in"], widths[f"{linear}.hook_out"]
            adapter = LowRank(d_in, d_out, config, problem.head.weight.device)
            adapters[peft_format.module_name(linear)] = adapter
            hooks += adapter.hooks(linear)
            if given is not None:
                adapter.set(*given.pop(linear, (None, None)), linear)
    if not hooks:
        raise ValueError(f"targets {', '.join(config.targets)} matched no linear map of the model")
    return adapters, hooks


def check(config: Config, site_names: Sequence[str], n_blocks: int) -> None:
    """Raise ValueError if the model has no such layer, or an adapter to start from another shape.

    Called before the model is loaded.
    """
    layers = chosen_layers(config.layers, site_names, n_blocks)
    if config.init:
        check_start(config, layers)


def check_start(config: Config, layers: list[int]) -> None:
    """Raise ValueError if the adapter to start from is not of the shape that is asked for."""
    found: float | str
    rank, alpha, blocks, targets = shape_of(config.init)
    for field, found in (("rank", rank), ("alpha", alpha)):
        if found != getattr(config, field):
            raise ValueError(f"{config.init} has {field} {found:g}: --set lora.{field}={found:g}")
    if blocks != layers:
        found = "+".join(map(str, blocks))
        raise ValueError(f"{config.init} adapts other layers: --set lora.layers={found}")
    lacking = {"gate"} if peft_format.read_config(config.init).get("fan_in_fan_out") else set()
    if set(targets) != set(config.targets) - lacking:  # GPT-2 has no gate
        found = "+".join(targets)
        raise ValueError(f"{config.init} adapts other maps: --set lora.targets={found}")


def shape_of(folder: str) -> tuple[int, float, list[int], tuple[str, ...]]:
    """(rank, alpha, blocks, targets) of a PEFT adapter; ValueError if its layers are not alike."""
    given = peft_format.read_config(folder)
    names = [name.split(".", 2) for name in peft_format.load(folder)]
    blocks = sorted({int(block) for _, block, _ in names})
    linears = {linear for *_, linear in names}
    if len(names) != len(blocks) * len(linears):
        raise ValueError(f"{folder} does not adapt the same maps in each of its layers")
    targets = tuple(target for target, linear in LINEARS.items() if linear in linears)
    return given["r"], given["lora_alpha"], blocks, targets


def frozen(problem: Problem, folder: str) -> list[tuple[str, Hook]]:
    """The hooks of a PEFT adapter that takes part as it is and is not trained."""
    rank, alpha, blocks, targets = shape_of(folder)
    layers = ",".join(map(str, blocks))
    config = Config(rank=rank, alpha=alpha, targets=targets, init=str(folder), layers=layers)
    adapters, hooks = build(problem, config)
    adapters.requires_grad_(False)
    return hooks


def chosen_layers(layers: str, site_names: Sequence[str], n_blocks: int) -> list[int]:
    """Block numbers that `layers` means for SAEs at these sites."""
    after = min(map(block_after, site_names))
    if layers == "all":
        return list(range(n_blocks))
    if layers in ("after", "next"):
        if after == n_blocks:
            raise ValueError(
                f"layers={layers}: no block comes after {site_names[0]}; try layers=all"
            )
        return list(range(after, n_blocks)) if layers == "after" else [after]
    numbers = parse_layers(layers)
    for number in numbers:
        if not 0 <= number < n_blocks:
            raise ValueError(f"layer {number}: the model has layers 0 to {n_blocks - 1}")
    return numbers


def parse_layers(layers: str) -> list[int]:
    """`16,17` or `16+17` -> [16, 17]; ValueError if it is neither."""
    return sorted({int(number) for number in layers.replace("+", ",").split(",")})
