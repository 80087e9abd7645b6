"""The plain side of a race; only its own process imports this."""

from collections.abc import Callable
from typing import Any

import numpy
import torch

from bench import devices
from bench.speed.reference import Reference
from bench.speed.sides import Contestant, measured, rate


class Plain(Contestant):
    """The same steps by `bench.speed.reference`, which imports nothing of this suite."""

    def __init__(
        self, folder: str, sae_folder: str, layer: int, settings: dict[str, Any], like: str
    ) -> None:
        """`like` is the number format of our LM, by which TF32 is set for both sides."""
        super().__init__(torch.device(settings["device"]), settings["dtype"])
        devices.set_precision(self.device.type, like)
        self.reference = Reference(folder, sae_folder, layer, **settings)
        with torch.no_grad():  # every page of the weights
            self.reference.model(torch.zeros(1, 2, dtype=torch.long, device=self.device))

    def start(self, weights: dict[str, numpy.ndarray]) -> None:
        """Make adapters and optimizer; the adapters start at `weights`, by PEFT's names."""
        self._watch_memory()
        named = {name: torch.from_numpy(array) for name, array in weights.items()}
        self.reference.prepare(named)

    def step(self, tokens: numpy.ndarray) -> dict[str, float]:
        """One step on these tokens [batch, seq] -> its loss, seconds and peak bytes."""
        tokens = torch.from_numpy(tokens).to(self.device)
        loss, measures = measured(self.device, self.reference.step, tokens)
        return {"loss": loss, **measures}

    def probe(self, batch: int, seq_len: int) -> dict[str, Any] | None:
        """Steps on so many windows of random tokens -> `rate` of them."""

        def steps(n_steps: int) -> Callable[[], float]:
            vocabulary = self.reference.model.config.vocab_size
            tokens = torch.randint(vocabulary, (batch, seq_len)).to(self.device)
            return lambda: self.reference.step(tokens)

        rates = rate(steps, self.device, batch * seq_len)
        return rates and {"batch": batch, **rates}
