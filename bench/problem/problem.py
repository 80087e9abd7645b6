"""The problem every method is given: a frozen LM, frozen SAEs at their sites, and the passes.

The fast path is the only path. A clean pass forms no logits; the adapted model restarts at the
first block that something touches; losses look at final hidden states only.

Positions: `all`; `not-first`, which leaves out the first position of a window; or `not-special`,
which leaves out BOS, EOS and PAD wherever they are. The first position is an attention sink
whatever its token, with a norm far above that of the others.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module, ModuleList, ParameterDict
from torch.profiler import record_function
from torch.utils.weak import WeakTensorKeyDictionary

from bench.config.spec import ends_of
from bench.distributed import group, shares
from bench.errors import out_of_memory
from bench.problem.batches import Windows
from bench.problem.blocks import Blocks, Copies, Residual, Tokens
from bench.problem.clean_cache import CleanCache
from bench.problem.hooks import Hook, HookPoints, block_after, end_block, start_block
from bench.problem.losses import Head
from bench.problem.objectives import Reconstruct, Seen, by, kl_to_clean, splice
from bench.problem.oom import Before, MicroBatching
from bench.problem.sae import trainable


@dataclass
class Adapted:
    """A whole adapted model, as a value: nothing is patched into the LM."""

    saes: ModuleList
    """The SAEs in site order."""
    hooks: list[tuple[str, Hook]] = field(default_factory=list)
    """(hook point, function) pairs around them; `function(value, hook=point)`."""
    blocks: Copies = field(default_factory=dict)
    """Block number -> the copy that runs in its place (`Problem.copy_of_blocks`)."""
    state: dict[str, Any] = field(default_factory=dict)
    """All that the next step depends on, by name: whatever has a `state_dict`."""
    keep: tuple[str, ...] = ()
    """Parts of the state that are kept beside the SAEs, for a run that goes on from there."""


@dataclass
class Clean:
    """What one pass of the clean LM leaves behind, without gradient."""

    tokens: Tokens
    start: int
    """The block the adapted model restarts at."""
    entry: Residual
    """The clean residual at that restart."""
    sites: list[Float[Tensor, "batch seq *d_site"]]
    """The clean activation at each site, as its SAE reads it."""
    reached: tuple[int, Residual]
    """How far the pass has come: the next block and its input."""
    targets: list[Float[Tensor, "batch seq *d_site"]] = field(default_factory=list)
    """The clean activation that each SAE replaces: the same, but for a transcoder."""
    final: Residual | None = None
    """The hidden state after the final norm, once it was asked for."""


def trained_by(adapted: Adapted) -> list[torch.nn.Parameter]:
    """The parameters that a run trains: those of the modules in its state, in order."""
    modules = [part for part in adapted.state.values() if isinstance(part, Module)]
    return list(dict.fromkeys(p for module in modules for p in module.parameters()))


def copy_of(saes: Iterable[Module]) -> ModuleList:
    """An own, trainable copy of the SAEs: a method never trains what it was lent.

    A JumpReLU's threshold is trained too, in SAELens' training form; after a step of the
    optimizer, `clamp_thresholds` keeps it from falling below 0. That of a transcoder stays: SAELens
    has no such form of it.
    """
    own = ModuleList(map(trainable, saes)).requires_grad_(True)
    for sae in own:
        if hasattr(sae.cfg, "d_out") and hasattr(sae, "threshold"):
            sae.threshold.requires_grad_(False)
    return own


class Problem:
    """A frozen LM with SAEs at `site_names`, and the training windows.

    `bridge` is a frozen `TransformerBridge`; `saes` are SAELens'; `train` are token ids; `special`
    the ids that `not-special` leaves out (needed for that rule only). `micro_batch` windows go
    through the model at once; with a `clean_cache` none is passed through the clean model twice.
    """

    def __init__(
        self,
        bridge: Module,
        saes: ModuleList,
        site_names: Iterable[str],
        train: Windows,
        *,
        spliced: str = "not-first",
        scored: str = "not-first",
        special: Iterable[int] = (),
        batch_size: int = 4,
        micro_batch: int | None = None,
        clean_cache: CleanCache | None = None,
        kept_state: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.bridge = bridge
        self.saes = saes.requires_grad_(False).eval()
        self.site_names = tuple(site_names)
        self.train = train
        self.spliced, self.scored = spliced, scored
        self.special = torch.tensor(sorted(special), dtype=train.dtype).to(train.device)
        self._rows = WeakTensorKeyDictionary()
        self.batch_size = batch_size
        self.clean_cache = clean_cache
        self.kept_state = kept_state
        """() -> what the training of the SAEs has kept of its state (`Adapted.keep`), by part."""
        self.points = HookPoints(bridge)
        self.head = Head.of(bridge)
        self._blocks = Blocks(bridge)
        self.n_blocks = len(self._blocks)
        if clean_cache:
            self._blocks.prepare(train[:1])  # it takes windows one by one
        for site in self.site_names:
            self.points.widths_at(site)  # raises for a point that is not there
        self.site_start = min(start_block(name, self.n_blocks) for name in self.site_names)
        self._sites_end = max(end_block(name, self.n_blocks) for name in self.site_names)

        self._begin(MicroBatching(micro_batch or batch_size), lambda adapted: None)

    def _begin(self, micro: MicroBatching, after_pass: Callable[[Adapted], None]) -> None:
        self.micro = micro
        """How a batch is cut into passes."""
        self.after_pass = after_pass
        """Called after each training pass, for inspecting gradients."""
        self.last_loss: Tensor | None = None
        """The loss of the last training pass, a detached scalar; the harness watches it."""

    def of_run(
        self, micro: MicroBatching, after_pass: Callable[[Adapted], None] = lambda adapted: None
    ) -> "Problem":
        """The same problem with a state of its own: what one run changes no other run sees."""
        problem = copy(self)
        problem._begin(micro, after_pass)
        return problem

    def backward(
        self, tokens: Tokens, adapted: Adapted, loss: Callable[[Seen], Tensor] = kl_to_clean
    ) -> Float[Tensor, ""]:
        """The one place where a training pass happens: clean, splice, student, loss, backward.

        The windows go through in micro-batches; `loss(seen)` is a mean over the tokens that the
        pass sees (`Seen`). Gradients are left in whatever `adapted` trains. Returns the batch's
        loss, detached.

        Where several processes work together (`bench.distributed`) each passes its share of the
        windows; gradients and loss are those of the whole batch when this returns.

        Where memory runs out, the batch goes through again in micro-batches of half the size, and
        so does every one after it: the same step, in more passes. Raises `OutOfMemory` where a
        micro-batch is one window already.
        """
        shares.check_loss(loss)
        # Asked for only where there is something to add up: this is on the clock.
        parameters = trained_by(adapted) if group.world() > 1 else []
        before = shares.gradients_before(parameters)
        with shares.own_random_numbers(), group.telling_losses():
            value = self._pass_or_halve(tokens, adapted, loss)
        self.last_loss = shares.add_up(value, parameters, before)
        self.after_pass(adapted)
        return self.last_loss

    def _pass_or_halve(self, tokens: Tokens, adapted: Adapted, loss: Callable) -> Tensor:
        before, known = Before(adapted), len(self.micro.halvings)
        value = None
        while value is None:
            try:
                value = self._pass(tokens, adapted, loss)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
            if value is None:  # out here, where the error no longer holds what the pass had made
                before.restore()
                shares.check_may_halve()
                self.micro.halve(len(shares.share(tokens)), tokens.shape[1])
        for halving in self.micro.halvings[known:]:  # other parts draw other numbers
            changed = not getattr(loss, "mean_over_tokens", False) or before.has_drawn()
            halving["loss_changed"] = changed
        return value

    def _pass(self, tokens: Tokens, adapted: Adapted, loss: Callable) -> Tensor:
        total, n_scored = 0.0, len(self.rows(tokens, self.scored))
        parts = shares.share(tokens).split(self.micro.size)
        # How many rows there are must be waited for: here, while the accelerator has nothing to do.
        known = [(len(self.rows(p, self.scored)), len(self.rows(p, self.spliced))) for p in parts]
        for part, (scored, _) in zip(parts, known, strict=True):
            share = scored / n_scored
            if not share:  # nothing but special tokens
                continue
            value = loss(Seen(self, part, adapted)) * share
            with record_function("backward"):
                value.backward()
            total = total + value.detach()
        return total

    def look(self, tokens: Tokens, adapted: Adapted) -> list[Seen]:
        """What a training pass sees of each micro-batch (`Seen`), for a method without a loss."""
        shares.check_looks()
        return [Seen(self, part, adapted) for part in tokens.split(self.micro.size)]

    def copy_of_blocks(self) -> tuple[Copies, ParameterDict]:
        """Own, trainable copies of the blocks after the first site, and a module of their weights.

        The copies go to `Adapted.blocks`; the module, which holds each weight once, to the
        optimizer and `Adapted.state`.
        """
        shares.check_copies()
        first = min(map(block_after, self.site_names))
        return self._blocks.copies(range(first, self.n_blocks))

    def clean(self, tokens: Tokens, adapted: Adapted) -> Clean:
        """One full clean pass -> `Clean`, ready for `final(clean, adapted)`."""
        return self.finish(self.sites(tokens, self.start_of(adapted)))

    @torch.no_grad()
    def sites(
        self, tokens: Tokens, start: int | None = None, known: Residual | None = None
    ) -> Clean:
        """The clean pass as far as the last site -> `Clean` without its final state.

        `known` is the clean residual at `site_start`, where it is known from a pass before.
        """
        start = self.site_start if start is None else start
        end = max(self._sites_end, start)
        caught: dict[str, Tensor] = {}
        ends = [ends_of(site) for site in self.site_names]
        names = dict.fromkeys(name for both in ends for name in both)
        catch = [(name, _catch(caught, name)) for name in names]
        self._make_sure_it_is_clean(tokens)
        with self.points.attached(catch), record_function("clean"):
            if known is None:
                entry = self._blocks.run(0, start, self._blocks.embed(tokens), tokens)
                residual = self._blocks.run(start, end, entry, tokens)
            else:
                entry = self._blocks.arrive(self.site_start, known)
                residual = self._blocks.run(self.site_start, end, entry, tokens)
        if known is not None and start < self.site_start:
            entry = self.entry(tokens, start)
        sites, targets = ([caught[both[n]] for both in ends] for n in (0, 1))
        return Clean(tokens, start, entry, sites, (end, residual), targets)

    @torch.no_grad()
    def entry(self, tokens: Tokens, start: int) -> Residual:
        """The clean residual at the input of block `start`, and nothing more."""
        self._make_sure_it_is_clean(tokens)
        with record_function("clean"):
            return self._blocks.run(0, start, self._blocks.embed(tokens), tokens)

    @torch.no_grad()
    def finish(self, clean: Clean) -> Clean:
        """Run the rest of a clean pass; fills `clean.final` and returns `clean`."""
        if clean.final is None:
            self._make_sure_it_is_clean(clean.tokens)
            with record_function("clean"):
                block, residual = clean.reached
                clean.final = self._blocks.to_final(block, residual, clean.tokens)
        return clean

    def final(
        self,
        clean: Clean,
        adapted: Adapted,
        reconstruct: Sequence[Reconstruct] | None = None,
        positions: str | None = None,
    ) -> Residual:
        """The adapted model's final hidden state.

        Restarts at the clean residual that `adapted` leaves as it is. `reconstruct`, a function
        for each site, takes the place of the SAEs (evaluation measures through it), `positions`
        that of the problem's own rule.
        """
        reconstruct = reconstruct or [by(sae) for sae in adapted.saes]
        rows = self.rows(clean.tokens, positions or self.spliced)
        at_sites = zip(self.site_names, reconstruct, strict=True)
        splices = [splice(site, put, rows) for site, put in at_sites]
        # What reads comes last, and sees what the others have made of a value.
        reads = [read for _, *reading in splices for read in reading]
        pairs = [*(replace for replace, *_ in splices), *adapted.hooks, *reads]
        self._blocks.prepare(clean.tokens)
        with self.points.attached(pairs, adapted.blocks), record_function("student"):
            residual = self._blocks.arrive(clean.start, clean.entry)
            return self._blocks.to_final(clean.start, residual, clean.tokens, adapted.blocks)

    def start_of(self, adapted: Adapted) -> int:
        """The block that the adapted model must restart at."""
        names = [name for name, _ in adapted.hooks]
        return min([self.site_start, *(start_block(name, self.n_blocks) for name in names)])

    def _make_sure_it_is_clean(self, tokens: Tokens) -> None:
        self.points.assert_none_attached()
        self._blocks.prepare(tokens)

    def rows(self, tokens: Tokens, positions: str) -> Int[Tensor, " rows"]:
        """Indices into the flattened [batch * seq] of the positions that a rule takes.

        Found once for each tensor of tokens, as it is asked for several times in a step.
        """
        known = self._rows.setdefault(tokens, {})
        if positions not in known:
            known[positions] = self._find_rows(tokens, positions)
        return known[positions]

    def _find_rows(self, tokens: Tokens, positions: str) -> Int[Tensor, " rows"]:
        if positions == "not-special":
            return (~torch.isin(tokens.flatten(), self.special)).nonzero().squeeze(1)
        # Known from the shape alone: an accelerator need not be waited for.
        index = torch.arange(tokens.numel(), device=tokens.device).view(tokens.shape)
        return index[:, int(positions == "not-first") :].flatten()


def _catch(caught: dict[str, Tensor], name: str) -> Hook:
    def keep(value: Tensor, hook: Module) -> None:
        caught[name] = value

    return keep
