"""A run's model as lm-eval asks one: log-likelihoods of text after text, from whole windows.

A window is passed through the bridge as a run's windows were: no key-value cache, a BOS first
where the run put one, the SAE at the positions of the run's rule. Windows of one length go
together, so that none is padded: padding would move the first position, or be spliced itself.
"""

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from bench.errors import Rejected, Usage
from bench.harness.evaluate import at_once
from bench.io import console

GENERATES = "generates text, and the passes here are over whole windows: expected multiple choice"


class WindowLM(TemplateLM):
    """The bridge of a `Problem`, with whatever is on it, as an lm-eval model.

    `tokenizer` is the model's; with `prepend_bos` every window starts with its BOS.
    """

    def __init__(self, problem, tokenizer, prepend_bos=False):
        super().__init__()
        self.problem, self.tokenizer = problem, tokenizer
        self._device = problem.head.weight.device
        self.max_length = problem.bridge.cfg.n_ctx
        self.truncated = 0
        """Windows so far that lost their beginning, because they did not fit the model."""
        ids = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None]
        if not ids:
            raise Rejected("the model's tokenizer has neither a BOS nor an EOS token")
        self._prefix = ids[0]
        self._first = [tokenizer.bos_token_id] if prepend_bos else []

    @property
    def eot_token_id(self):
        """The id of the EOS token."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self):
        """What an empty context becomes."""
        return self._prefix

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        """Token ids of a text, nothing put first."""
        return self.tokenizer(string, add_special_tokens=False)["input_ids"]

    def loglikelihood(self, requests, disable_tqdm=True):
        """(log-likelihood of the continuation, whether it is the greedy one) of each request."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests, disable_tqdm=True):
        """The log-likelihood of each text as a whole, in windows that are as long as can be."""
        asked, owner = [], []
        for number, (string,) in enumerate(request.args for request in requests):
            windows = get_rolling_token_windows(
                self.tok_encode(string),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - len(self._first),
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, windows):
                asked.append(((None, None), context, continuation))
                owner.append(number)
        totals = [0.0] * len(requests)
        for number, (total, _) in zip(owner, self._loglikelihood_tokens(asked), strict=True):
            totals[number] += total
        return totals

    def generate_until(self, requests, disable_tqdm=True):
        """Refused."""
        raise Usage(f"a task {GENERATES}")

    def _loglikelihood_tokens(self, requests, disable_tqdm=True):
        """`requests` are (texts, context, continuation); a window they share is passed once."""
        windows = {}
        for number, (_, context, continuation) in enumerate(requests):
            window = self._window(context, continuation)
            windows.setdefault(window, []).append((number, continuation))
        answers = [(0.0, True)] * len(requests)  # as it stays for an empty continuation
        for batch in console.bar(batches(windows, self._device), desc="windows"):
            finals = self._finals(torch.tensor(batch, device=self._device))
            asked = [
                (number, continuation, final[len(final) - len(continuation) :])
                for window, final in zip(batch, finals, strict=True)
                for number, continuation in windows[window]
            ]
            for number, answer in self._scored(asked):
                answers[number] = answer
        return answers

    def _window(self, context, continuation):
        """The ids that go through the model: all but the last, cut from the left if too many."""
        n = len(self._first)
        own = context[n:] if context[:n] == self._first else context
        ids, room = (own + continuation)[:-1], self.max_length - n
        if len(continuation) > self.max_length:
            raise Rejected(
                f"a continuation of {len(continuation)} tokens, the model's context is "
                f"{self.max_length}"
            )
        self.truncated += len(ids) > room
        return tuple(self._first + ids[max(0, len(ids) - room) :])

    @torch.no_grad()
    def _finals(self, tokens):
        """Final hidden states [windows, seq, d_model], without the logits of whole windows."""
        caught = []
        bridge = self.problem.bridge
        handle = bridge.ln_final.register_forward_hook(lambda *seen: caught.append(seen[-1]))
        try:
            bridge(tokens, use_cache=False, logits_to_keep=1)
        finally:
            handle.remove()
        return caught[0]

    @torch.no_grad()
    def _scored(self, asked):
        """(number, continuation, final states [tokens, d_model]) -> (number, answer) of each."""
        states = torch.cat([final for _, _, final in asked])
        targets = torch.tensor([i for _, ids, _ in asked for i in ids], device=states.device)
        likelihoods, greedy = [], []
        for rows in self.problem.head.chunks(len(states)):
            log_p = torch.log_softmax(self.problem.head.logits(states[rows]), -1)
            likelihoods.append(log_p.gather(-1, targets[rows, None]).squeeze(-1).double())
            greedy.append(log_p.argmax(-1) == targets[rows])
        lengths = [len(ids) for _, ids, _ in asked]
        parts = zip(
            torch.cat(likelihoods).split(lengths), torch.cat(greedy).split(lengths), strict=True
        )
        answers = [(one.sum().item(), bool(same.all())) for one, same in parts]
        return zip((number for number, _, _ in asked), answers, strict=True)


def batches(windows, device):
    """Windows (tuples of ids) in lists of one length each, longest first: what fails fails soon."""
    by_length = {}
    for window in windows:
        by_length.setdefault(len(window), []).append(window)
    return [
        alike[at : at + size]
        for length, alike in sorted(by_length.items(), reverse=True)
        for size in [at_once(device, length)]
        for at in range(0, len(alike), size)
    ]
