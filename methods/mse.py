"""Train the SAE on reconstruction alone, with SAELens' own TopK training class and loss.

No block after the site is run and no gradient enters the LM: this is how SAEs are usually
trained, and how the suite trains its own. A training whose step size does not fall leaves its
Adam beside each SAE that is kept, so that another run goes on as if there had been no break.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.problem import (
    Adapted,
    Batches,
    Descent,
    Problem,
    Seen,
    center,
    descend,
    freeze,
    to_training,
    weights_of,
)

CHECKPOINTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 1.0)
"""The harness keeps the SAE, with its cost, at these shares of the run."""


@dataclass(frozen=True)
class Config(Descent):
    """Fields of `--set mse.FIELD=VALUE`."""

    lr: float = 6e-4
    decay: float = 0.2
    dead_after: int = 1000
    """Steps without firing after which a latent counts as dead (SAELens' auxiliary loss)."""
    weighted: bool = False
    """Whether a token's error counts by 1/|x|^2, so that those of huge norm do not decide."""
    freeze: tuple[str, ...] = ()
    """Parameters of the SAE that stay as they are, such as `W_dec`."""
    adam: Literal["new", "kept"] = "new"
    """Whether Adam goes on from what the SAE's own training has kept of it."""


def train(problem: Problem, batches: Batches, config: Config) -> Iterator[Adapted]:
    """Yield the adapted model before training and after every step."""
    saes = torch.nn.ModuleList(map(to_training, problem.saes))
    freeze(saes, config.freeze)
    idle = Idle(saes)
    adapted = Adapted(saes=saes, state={"saes": saes, "idle": idle})
    kept = problem.kept_state() if config.adam == "kept" else {}
    if kept:  # with the weights as they were trained: a saved SAE has unit rows in its decoder
        saes.load_state_dict(kept["saes"])
        idle.load_state_dict(kept["idle"])
    if not config.decay:
        adapted.keep = ("saes", "adam", "idle")

    def loss(seen: Seen) -> Float[Tensor, ""]:
        idle.passes += 1
        trained = zip(saes, seen.sites, idle.steps(), strict=True)
        return sum(sae_loss(*each, int(idle.passes), config) for each in trained)

    yield from descend(problem, batches, adapted, config, loss, moments=kept.get("adam"))


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

    An SAE that was never trained first gets the mean of the first batch as its decoder bias.
    `passes` is the number of this pass: nothing is asked of an accelerator before an answer is
    possible.
    """
    from sae_lens.saes.sae import TrainStepInput

    if passes == 1:
        center(sae, activations)
    auxiliary: Tensor | float = 0.0
    if passes <= config.dead_after:  # nothing can be dead, and SAELens would wait to count it
        latents = sae.encode_with_hidden_pre(activations)[0]
        made = sae.decode(latents)
    else:
        step = TrainStepInput(
            sae_in=activations,
            coefficients={},
            dead_neuron_mask=idle_steps > config.dead_after,
            n_training_steps=0,
            is_logging_step=False,
        )
        output = sae.training_forward_pass(step)
        latents, made = output.feature_acts, output.sae_out
        auxiliary = sum(part for name, part in output.losses.items() if name != "mse_loss")
    idle_steps.add_(1).masked_fill_((latents > 0).any(0), 0)
    errors = sae.mse_loss_fn(made, activations)
    if config.weighted:
        errors = errors * weights_of(activations)
    return errors.sum(-1).mean() + auxiliary
