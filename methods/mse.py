"""Train the SAE on reconstruction alone, with SAELens' own TopK training class and loss.

No block after the site is run and no gradient enters the LM: this is how SAEs are usually
trained, and how the suite trains its own.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.errors import require_positive
from bench.problem import Adapted, Batches, Problem, Seen, descend, falling, to_training

CHECKPOINTS = 10
"""The harness keeps the SAE, with its cost, at this many even shares of the run."""


@dataclass(frozen=True)
class Config:
    """Fields of `--set mse.FIELD=VALUE`."""

    lr: float = 6e-4
    """Adam's step size at the start."""
    decay: float = 0.2
    """Share of the run, at its end, over which the step size falls linearly to 0."""
    clip: float = 1.0
    """Largest gradient norm."""
    dead_after: int = 1000
    """Steps without firing after which a latent counts as dead (SAELens' auxiliary loss)."""

    def __post_init__(self) -> None:
        require_positive(self, "lr", "clip")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be in [0, 1], got {self.decay}")


def train(problem: Problem, batches: Batches, config: Config) -> Iterator[Adapted]:
    """Yield the adapted model before training and after every step."""
    saes = torch.nn.ModuleList(map(to_training, problem.saes))
    adam = torch.optim.Adam(saes.parameters(), lr=config.lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, falling(len(batches), config.decay))
    idle = Idle(saes)
    state = {"saes": saes, "adam": adam, "schedule": schedule, "idle": idle}
    adapted = Adapted(saes=saes, state=state)

    def loss(seen: Seen) -> Float[Tensor, ""]:
        idle.passes += 1
        trained = zip(saes, seen.sites, idle.steps(), strict=True)
        return sum(sae_loss(*each, int(idle.passes), config) for each in trained)

    yield from descend(problem, batches, adapted, adam, config.clip, loss, schedule.step)


class Idle(torch.nn.Module):
    """For every latent of every SAE, the number of steps since it last fired."""

    def __init__(self, saes: Iterable[torch.nn.Module]) -> None:
        super().__init__()
        self.register_buffer("passes", torch.tensor(0))
        for index, sae in enumerate(saes):
            self.register_buffer(str(index), torch.zeros_like(sae.b_enc, dtype=torch.long))

    def steps(self) -> list[Int[Tensor, " d_sae"]]:
        """One tensor for each SAE."""
        return list(self.buffers())[1:]


def sae_loss(
    sae: torch.nn.Module,
    activations: Float[Tensor, "tokens d_in"],
    idle_steps: Int[Tensor, " d_sae"],
    passes: int,
    config: Config,
) -> Float[Tensor, ""]:
    """SAELens' loss (squared error summed over dimensions, mean over tokens, auxiliary TopK).

    An SAE that was never trained has a decoder bias of 0. It first gets the mean of the first
    batch as that bias, much as the paper's own SAEs start from their first batch. `passes` is the
    number of this pass: nothing is asked of an accelerator before an answer is possible.
    """
    from sae_lens.saes.sae import TrainStepInput

    if passes == 1 and not sae.b_dec.any():
        sae.b_dec.data.copy_(activations.mean(0))
    if passes <= config.dead_after:  # nothing can be dead, and SAELens would wait to count it
        latents = sae.encode_with_hidden_pre(activations)[0]
        loss = sae.mse_loss_fn(sae.decode(latents), activations).sum(-1).mean()
        idle_steps.add_(1).masked_fill_((latents > 0).any(0), 0)
        return loss
    step = TrainStepInput(
        sae_in=activations,
        coefficients={},
        dead_neuron_mask=idle_steps > config.dead_after,
        n_training_steps=0,
        is_logging_step=False,
    )
    output = sae.training_forward_pass(step)
    fired = (output.feature_acts > 0).any(0)
    idle_steps.add_(1).masked_fill_(fired, 0)
    return output.loss
