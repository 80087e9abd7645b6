"""A run's model for lm-eval: log-likelihoods of texts, from passes over whole windows.

A window passes through the bridge as a run's windows did: no key-value cache, a BOS first where
the run put one, the SAE at the positions of the run's rule. Windows of one length go together, so
that none is padded. lm-eval's `HFLM` does not fit: it ties the model's embeddings again, which
breaks a model with centred weights, and forms the logits of whole windows.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bench.errors import Rejected, Usage
from bench.harness.evaluate import at_once
from bench.io import console
from bench.problem.problem import Problem

GENERATES = "generates text, and the passes here are over whole windows: expected multiple choice"


Window = tuple[int, ...]
"""The token ids that go through the model together."""
Request = tuple[Any, list[int], list[int]]
"""lm-eval's (texts, ids of the context, ids of the continuation)."""
Answer = tuple[float, bool]
"""(log-likelihood of a continuation, whether it is the greedy one)."""


class WindowLM(TemplateLM):
    """The bridge of a `Problem`, with the hooks on it, as an lm-eval model.

    `tokenizer` is the model's; with `prepend_bos` every window starts with its BOS. `truncated`
    counts the windows that lost their beginning because they did not fit the model.
    """

    def __init__(
        self, problem: Problem, tokenizer: PreTrainedTokenizerBase, prepend_bos: bool = False
    ) -> None:
        super().__init__()
        self.problem, self.tokenizer, self.truncated = problem, tokenizer, 0
        self.max_length = problem.bridge.cfg.n_ctx
        self._device = problem.head.weight.device
        self._first = [tokenizer.bos_token_id] if prepend_bos else []
        if self.prefix_token_id is None:
            raise Rejected("the model's tokenizer has neither a BOS nor an EOS token")

    @property
    def eot_token_id(self) -> int | None:
        """The id of the EOS token."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int | None:
        """The token that stands for an empty context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: object = None, **_: object) -> list[int]:
        """Token ids of a text, nothing put first."""
        return self.tokenizer(string, add_special_tokens=False)["input_ids"]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """The log-likelihood of each text as a whole, in windows as long as possible."""
        room, texts = self.max_length - len(self._first), []
        for (text,) in (request.args for request in requests):
            ids = self.tok_encode(text)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, room, context_len=1)
            texts.append([(None, *make_disjoint_window(window)) for window in windows])
        answers = iter(self._loglikelihood_tokens([part for parts in texts for part in parts]))
        return [sum(next(answers)[0] for _ in parts) for parts in texts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Refused."""
        raise Usage(f"a task {GENERATES}")

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = True
    ) -> list[Answer]:
        """An answer for each request; a window that several share is passed once."""
        windows: dict[Window, list[tuple[int, list[int]]]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            window = self._window(context, continuation)
            windows.setdefault(window, []).append((number, continuation))
        answers = [(0.0, True)] * len(requests)  # as it stays for an empty continuation
        for batch in console.bar(batches(windows, self._device), desc="windows"):
            finals = self._finals(torch.tensor(batch, device=self._device))
            pieces = [
                (number, ids, final[len(final) - len(ids) :])
                for window, final in zip(batch, finals, strict=True)
                for number, ids in windows[window]
            ]
            numbers, continuations, states = zip(*pieces, strict=True)
            scores = self._answers(continuations, states)
            for number, answer in zip(numbers, scores, strict=True):
                answers[number] = answer
        return answers

    def _window(self, context: list[int], continuation: list[int]) -> Window:
        """The ids that go through the model: all but the last, cut from the left if too many."""
        if len(continuation) > self.max_length:
            raise Rejected(
                f"a continuation of {len(continuation)} tokens, the model's context is "
                f"{self.max_length}"
            )
        n = len(self._first)
        own = context[n:] if context[:n] == self._first else context
        ids, room = (own + continuation)[:-1], self.max_length - n
        self.truncated += len(ids) > room
        return tuple(self._first + ids[max(0, len(ids) - room) :])

    @torch.no_grad()
    def _finals(self, tokens: Int[Tensor, "windows seq"]) -> Float[Tensor, "windows seq d_model"]:
        """Final hidden states, without the logits of whole windows."""
        finals = []
        catch = ("ln_final.hook_out", lambda value, hook: finals.append(value))
        with self.problem.points.attached([catch]):
            self.problem.bridge(tokens, use_cache=False, logits_to_keep=1)
        return finals[0]

    @torch.no_grad()
    def _answers(
        self, continuations: Sequence[list[int]], states: Sequence[Float[Tensor, "tokens d_model"]]
    ) -> list[Answer]:
        """The answer of each continuation from its final states; logits a chunk at a time."""
        finals, lengths = torch.cat(states), [len(ids) for ids in continuations]
        targets = torch.tensor([i for ids in continuations for i in ids], device=self._device)
        likelihoods, greedy = [], []
        for rows in self.problem.head.chunks(len(finals)):
            log_p = torch.log_softmax(self.problem.head.logits(finals[rows]), -1)
            likelihoods.append(log_p.gather(-1, targets[rows, None]).squeeze(-1).double())
            greedy.append(log_p.argmax(-1) == targets[rows])
        parts = (torch.cat(values).split(lengths) for values in (likelihoods, greedy))
        return [(one.sum().item(), bool(same.all())) for one, same in zip(*parts, strict=True)]


def batches(windows: Iterable[Window], device: torch.device) -> list[list[Window]]:
    """Windows in lists of one length each, the longest first: what fails fails soon."""
    return [
        alike[at : at + size]
        for length, same in groupby(sorted(windows, key=len, reverse=True), key=len)
        for alike, size in [(list(same), at_once(device, length))]
        for at in range(0, len(alike), size)
    ]
