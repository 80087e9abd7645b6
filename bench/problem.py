"""The problem every method is given: a frozen LM, frozen SAEs at their sites, and the passes.

The fast path is the only path. A clean pass forms no logits; the adapted model restarts at the
first block that something touches; losses look at final hidden states only.

Positions: `all`, or `not-first`, which leaves the first position of a window out: it is an
attention sink whatever its token, with a norm far above that of the others.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import torch

from bench.errors import Rejected
from bench.hooks import HookPoints, end_block, start_block
from bench.losses import Head
from bench.seen import Seen, flat, kl_to_clean, reconstruction


@dataclass
class Adapted:
    """A whole adapted model, as a value: nothing is patched into the LM."""

    saes: torch.nn.ModuleList
    """The SAEs in site order."""
    hooks: list = field(default_factory=list)
    """(hook point, function) pairs around them; `function(value, hook=point)`."""
    state: dict = field(default_factory=dict)
    """All that the next step depends on, by name: whatever has a `state_dict`."""


@dataclass
class Clean:
    """What one pass of the clean LM leaves behind, without gradient."""

    tokens: torch.Tensor  # [batch, seq]
    start: int
    """The block the adapted model restarts at."""
    entry: torch.Tensor  # [batch, seq, d_model]
    """The clean residual at that restart."""
    sites: list
    """The clean activation at each site: [batch, seq, d_site]."""
    reached: tuple
    """How far the pass has come: the next block and its input."""
    final: torch.Tensor | None = None  # [batch, seq, d_model]
    """The hidden state after the final norm, once it was asked for."""


def copy_of(saes):
    """An own, trainable copy of the SAEs: a method never trains what it was lent.

    Raises `Rejected` for SAEs with a threshold: in their inference form it gets no gradient.
    """
    for sae in saes:
        if hasattr(sae, "threshold"):
            raise Rejected(f"the threshold of a {sae.cfg.architecture()} SAE cannot be trained yet")
    return deepcopy(saes).requires_grad_(True)


class Problem:
    """A frozen LM with SAEs at `site_names`, and the training windows.

    `bridge` is a frozen `TransformerBridge`; `saes` a ModuleList of SAELens SAEs; `train` the
    training windows [windows, seq] of token ids. `micro_batch` is the number of windows that
    go through the model at once.
    """

    def __init__(
        self,
        bridge,
        saes,
        site_names,
        train,
        *,
        spliced="not-first",
        scored="not-first",
        batch_size=4,
        micro_batch=None,
    ):
        self.bridge = bridge
        self.saes = saes.requires_grad_(False).eval()
        self.site_names = tuple(site_names)
        self.train = train
        self.spliced, self.scored = spliced, scored
        self.batch_size = batch_size
        self.micro_batch = micro_batch or batch_size
        self.points = HookPoints(bridge)
        self.head = Head.of(bridge)
        self.n_blocks = len(bridge.blocks)
        self.last_loss = None
        """The loss of the last training pass, a detached scalar; the harness watches it."""
        for name in self.site_names:
            self.points[name]
        self.site_start = min(start_block(name, self.n_blocks) for name in self.site_names)
        self._sites_end = max(end_block(name, self.n_blocks) for name in self.site_names)
        self._block_arguments = {}

    def backward(self, tokens, adapted, loss=kl_to_clean):
        """The one place where a training pass happens: clean, splice, student, loss, backward.

        `tokens` [batch, seq] go through in micro-batches; `loss(seen)` is a scalar of what the
        pass sees (`Seen`), a mean over its tokens. Gradients are left in whatever `adapted`
        trains. Returns the batch's loss, detached.
        """
        total = 0.0
        for part in tokens.split(self.micro_batch):
            share = len(part) / len(tokens)
            value = loss(Seen(self, part, adapted)) * share
            value.backward()
            total = total + value.detach()
        self.last_loss = total
        return total

    def clean(self, tokens, adapted):
        """One full clean pass -> `Clean`, ready for `final(clean, adapted)`."""
        return self.finish(self.sites(tokens, self.start_of(adapted)))

    @torch.no_grad()
    def sites(self, tokens, start=None):
        """The clean pass as far as the last site -> `Clean` without its final state."""
        start = self.site_start if start is None else start
        end = max(self._sites_end, start)
        caught = {}
        catch = [(name, _catch(caught, name)) for name in self.site_names]
        arguments = self._arguments(tokens)
        self.points.assert_none_attached()
        with self.points.attached(catch):
            residual = entry = self.bridge(tokens, stop_at_layer=0)
            for index in range(end):
                residual = self._block(index, residual, arguments)
                if index + 1 == start:
                    entry = residual
        sites = [caught[name] for name in self.site_names]
        return Clean(tokens, start, entry, sites, reached=(end, residual))

    @torch.no_grad()
    def entry(self, tokens, start):
        """The clean residual at the input of block `start`, and nothing more."""
        arguments = self._arguments(tokens)
        self.points.assert_none_attached()
        residual = self.bridge(tokens, stop_at_layer=0)
        for index in range(start):
            residual = self._block(index, residual, arguments)
        return residual

    @torch.no_grad()
    def finish(self, clean):
        """Run what is left of a clean pass; fills `clean.final` and returns `clean`."""
        if clean.final is None:
            self.points.assert_none_attached()
            clean.final = self._run_from(*clean.reached, self._arguments(clean.tokens))
        return clean

    def final(self, clean, adapted, reconstruct=None):
        """The adapted model's final hidden state: [batch, seq, d_model].

        Restarts at the clean residual that `adapted` leaves as it is. `reconstruct`, a function
        for each site, takes the place of the SAEs (evaluation measures through it).
        """
        reconstruct = reconstruct or [partial(reconstruction, sae) for sae in adapted.saes]
        rows = self.rows(clean.tokens, self.spliced)
        splices = [splice(function, rows) for function in reconstruct]
        pairs = [*zip(self.site_names, splices, strict=True), *adapted.hooks]
        arguments = self._arguments(clean.tokens)
        residual = clean.entry
        with self.points.attached(pairs):
            if clean.start > 0:
                # The output of the block before is where a site's own hook may sit.
                residual = self.bridge.blocks[clean.start - 1].hook_out(residual)
            return self._run_from(clean.start, residual, arguments)

    def start_of(self, adapted):
        """The block that the adapted model must restart at."""
        names = [name for name, _ in adapted.hooks]
        return min([self.site_start, *(start_block(name, self.n_blocks) for name in names)])

    def rows(self, tokens, positions):
        """Indices into the flattened [batch * seq] of the positions that a rule takes."""
        index = torch.arange(tokens.numel(), device=tokens.device)
        return index[index % tokens.shape[1] > 0] if positions == "not-first" else index

    def _run_from(self, start, residual, arguments):
        for index in range(start, self.n_blocks):
            residual = self._block(index, residual, arguments)
        return self.bridge.ln_final(residual)

    def _block(self, index, residual, arguments):
        out = self.bridge.blocks[index](residual, **arguments[index])
        return out[0] if isinstance(out, tuple) else out

    def _arguments(self, tokens):
        """Each block's keyword arguments for windows of this shape, caught once and replayed.

        Masks and rotary embeddings depend on the shape alone, since no window is padded.
        """
        if tokens.shape not in self._block_arguments:
            self._block_arguments[tokens.shape] = self._catch_arguments(tokens)
        return self._block_arguments[tokens.shape]

    @torch.no_grad()
    def _catch_arguments(self, tokens):
        caught = {}
        handles = [
            block.register_forward_pre_hook(_catch_keywords(caught, index), with_kwargs=True)
            for index, block in enumerate(self.bridge.blocks)
        ]
        try:
            self.bridge(tokens, use_cache=False, logits_to_keep=1)
        finally:
            for handle in handles:
                handle.remove()
        return caught


def splice(reconstruct, rows):
    """A hook that puts what `reconstruct` makes of the activation at flat positions `rows`."""

    def replace(value, hook):
        tokens = flat(value)
        put = reconstruct(tokens[rows]).to(value.dtype)
        return tokens.index_copy(0, rows, put).view_as(value)

    return replace


def _catch(caught, name):
    def keep(value, hook):
        caught[name] = value

    return keep


def _catch_keywords(caught, index):
    def keep(block, positional, keywords):
        caught[index] = {k: v for k, v in keywords.items() if k != "hidden_states"}

    return keep
