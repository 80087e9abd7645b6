"""What the clean model makes of a window, kept on disk for text that is read more than once.

Two files a window: the clean residual that the spliced model restarts at, and what the KL needs of
the clean model (`Teacher`). Each is made at its first use, on the clock of the run that uses it.
A step that finds both runs no clean pass, and two products with the unembedding instead of
three. Named by the window's tokens and made one window at a time, so that the numbers do not
depend on which run was there first.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.io.files import new_file
from bench.problem import losses
from bench.problem.losses import Teacher

if TYPE_CHECKING:
    from bench.problem.problem import Problem


class CleanCache:
    """The files in `folder`, whose name stands for the model, the site and the scored positions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.filled = 0
        """Tokens whose teacher was made and stored here, so far."""

    def entry(
        self, problem: "Problem", tokens: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch seq d_model"]:
        """The clean residual at `problem.site_start`."""
        return self._get("entry", tokens, partial(self._make_entry, problem))["entry"]

    def teacher(self, problem: "Problem", tokens: Int[Tensor, "batch seq"]) -> Teacher:
        """The `Teacher` of the scored positions of all windows."""
        return Teacher(**self._get("teacher", tokens, partial(self._make_teacher, problem)))

    def _make_entry(self, problem: "Problem", window: Int[Tensor, "1 seq"]) -> dict[str, Tensor]:
        return {"entry": problem.entry(window, problem.site_start)}

    def _make_teacher(self, problem: "Problem", window: Int[Tensor, "1 seq"]) -> dict[str, Tensor]:
        clean = problem.sites(window, known=self.entry(problem, window))
        final = problem.finish(clean).final.flatten(0, 1)
        teacher = losses.teacher_of(final[problem.rows(window, problem.scored)], problem.head)
        self.filled += window.numel()
        return teacher._asdict()

    def _get(self, what: str, tokens: Tensor, make: Callable) -> dict[str, Tensor]:
        """Each window's tensors, from its file or made and filed, put together in order."""
        windows = [self._window(what, window, make) for window in tokens.split(1)]
        return {name: torch.cat([each[name] for each in windows]) for name in windows[0]}

    @torch.no_grad()
    def _window(self, what: str, window: Tensor, make: Callable) -> dict[str, Tensor]:
        from safetensors.torch import load_file, save_file

        digest = hashlib.sha256(window.cpu().numpy().tobytes()).hexdigest()[:24]
        path = self.folder / digest[:2] / f"{digest}.{what}.safetensors"
        if not path.exists():
            arrays = {name: value.contiguous() for name, value in make(window).items()}
            new_file(path, lambda temporary: save_file(arrays, temporary))
        return load_file(path, device=str(window.device))
