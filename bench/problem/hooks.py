"""Functions on hook points: resolve names, attach for one pass, prove that each one fired.

The bridge's own `hooks()` ignores unknown names in silence and rebuilds its table of names for
every hook; here a name that does not exist is an error, and functions go straight onto the
hook points.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from bench.config.spec import ends_of
from bench.errors import Usage, unknown

Hook = Callable[..., torch.Tensor | None]
"""Called as `function(value, hook=point)`; gives the new value, or None to leave it as it is."""

LEVEL = 7_000
"""The context level our functions are attached at, so that removing them removes no others."""


class HookPoints:
    """The hook points of one bridge, by every name it has for them."""

    def __init__(self, bridge: torch.nn.Module) -> None:
        self._points = dict(bridge.hook_dict)
        self._blocks = bridge.blocks
        self._distinct = list({id(point): point for point in self._points.values()}.values())
        self.widths = self._measure(bridge)
        """Width of the activation (heads flattened) at each name that fires in a plain pass."""

    def __contains__(self, name: str) -> bool:
        return name in self._points

    def __getitem__(self, name: str) -> torch.nn.Module:
        """The hook point called `name`; `Usage` with the nearest name if there is none."""
        if name not in self._points:
            block = re.match(r"blocks\.\d+\.", name)
            choices = [n for n in self._points if not block or n.startswith(block[0])]
            raise unknown("hook point", name, choices or self._points)
        return self._points[name]

    @contextmanager
    def attached(
        self,
        pairs: Iterable[tuple[str, Hook]],
        copies: dict[int, torch.nn.Module] | None = None,
        all_fire: bool = True,
    ) -> Iterator[None]:
        """Attach (name, function) pairs for the passes inside the block, in this order.

        When the block ends well, each function must have fired at least once. A name that is
        there but never fires (GPT-2's fused `attn.qkv`) is a RuntimeError, not an adapter that
        does nothing; without `all_fire` that is not checked. Inside a block of which `copies`
        (block number -> block) has a copy, the copy's hook point is meant.
        """
        pairs, fired = list(pairs), set[int]()
        points = [self._resolve(name, copies or {}) for name, _ in pairs]
        try:
            for index, (point, (_, function)) in enumerate(zip(points, pairs, strict=True)):
                point.add_hook(_reporting(function, index, fired), level=LEVEL)
            yield
        finally:
            for point in points:
                point.remove_hooks(level=LEVEL)
        silent = [name for index, (name, _) in enumerate(pairs) if index not in fired]
        if silent and all_fire:
            raise RuntimeError(f"hook points that never fired: {', '.join(silent)}")

    def _resolve(self, name: str, copies: dict[int, torch.nn.Module]) -> torch.nn.Module:
        point = self[name]
        match = re.match(r"blocks\.(\d+)\.", name) if copies else None
        if not match or int(match[1]) not in copies:
            return point
        original = self._blocks[int(match[1])]
        path = next(path for path, module in original.named_modules() if module is point)
        return copies[int(match[1])].get_submodule(path)

    @torch.no_grad()
    def _measure(self, bridge: torch.nn.Module) -> dict[str, int]:
        """One pass over two tokens, so that no family's weight layout has to be known."""
        seen: dict[int, int] = {}

        def keep(value: object, hook: torch.nn.Module) -> None:
            if isinstance(value, torch.Tensor) and value.ndim > 2:
                seen[id(hook)] = value.flatten(2).shape[-1]

        for point in self._distinct:
            point.add_hook(keep, level=LEVEL)
        try:
            tokens = torch.zeros(1, 2, dtype=torch.long, device=bridge.unembed.weight.device)
            bridge(tokens, use_cache=False, logits_to_keep=1)
        finally:
            for point in self._distinct:
                point.remove_hooks(level=LEVEL)
        return {name: seen[id(p)] for name, p in self._points.items() if id(p) in seen}

    def widths_at(self, site: str) -> tuple[int, ...]:
        """The width of a site, or those of its two points; `Usage` where one never fires."""
        names = dict.fromkeys(ends_of(site))
        for name in names:
            self[name]  # raises where there is no such point
            if name not in self.widths:
                raise Usage(f"hook point '{name}' never fires in this model")
        return tuple(self.widths[name] for name in names)

    def assert_none_attached(self) -> None:
        """The clean pass is clean: no function sits on any hook point."""
        occupied = [point.name for point in self._distinct if point.fwd_hooks]
        assert not occupied, f"hooks on a clean pass: {', '.join(occupied)}"


def _reporting(function: Hook, index: int, fired: set[int]) -> Hook:
    def report_and_call(value: torch.Tensor, hook: torch.nn.Module) -> torch.Tensor | None:
        fired.add(index)
        return function(value, hook=hook)

    return report_and_call


def start_block(name: str, n_blocks: int) -> int:
    """The first block that runs differently when `name` is changed: where a pass can restart.

    The output of block L (`hook_resid_post`, `hook_out`) is the input of block L+1; anything
    else inside block L, its input included, needs block L itself. A point before the blocks
    needs them all, one after them needs none.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match:
        after = match[2] in ("hook_out", "hook_resid_post")
        return int(match[1]) + after
    return n_blocks if name.startswith(("ln_final.", "unembed.")) else 0


def block_after(name: str) -> int:
    """The first block that runs after the point `blocks.L.POINT` as a whole."""
    _, block, point = name.split(".", 2)
    return int(block) + (point not in ("hook_in", "hook_resid_pre"))


def end_block(name: str, n_blocks: int) -> int:
    """How many blocks have to run before `name` has fired."""
    match = re.match(r"blocks\.(\d+)\.", name)
    return int(match[1]) + 1 if match else start_block(name, n_blocks)
