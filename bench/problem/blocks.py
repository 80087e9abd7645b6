"""The bridge's blocks run by hand, so that a pass can start and stop where it likes."""

from collections import OrderedDict
from copy import deepcopy

import torch


class Blocks:
    """The blocks of one bridge, with the keyword arguments that each one wants.

    Masks and rotary embeddings depend on the shape of the windows alone, since none is padded:
    they are caught once a shape and replayed.
    """

    def __init__(self, bridge):
        self._bridge = bridge
        self._arguments = {}

    def __len__(self):
        return len(self._bridge.blocks)

    def embed(self, tokens):
        """The input of the first block: [batch, seq, d_model]."""
        return self._bridge(tokens, stop_at_layer=0)

    def arrive(self, block, residual):
        """A residual put in before `block`: the output of the block before is a hook point too."""
        return self._bridge.blocks[block - 1].hook_out(residual) if block else residual

    def run(self, first, end, residual, tokens, copies=None):
        """The residual after the blocks first .. end - 1: [batch, seq, d_model].

        `copies` (block number -> block) run in the place of the bridge's own.
        """
        arguments = self._arguments_for(tokens) if first < end else None
        for index in range(first, end):
            block = (copies or {}).get(index, self._bridge.blocks[index])
            out = block(residual, **arguments[index])
            residual = out[0] if isinstance(out, tuple) else out
        return residual

    def to_final(self, first, residual, tokens, copies=None):
        """Through the blocks from `first` on and the final norm: [batch, seq, d_model]."""
        return self._bridge.ln_final(self.run(first, len(self), residual, tokens, copies))

    def copies(self, numbers):
        """Trainable copies of these blocks, by number, and a `ParameterDict` of their weights."""
        copies = {number: _copy(self._bridge.blocks[number]) for number in numbers}
        weights = torch.nn.ParameterDict()
        for number, block in copies.items():
            for name, weight in named_weights(block).items():
                key = f"{number}.{name}".replace("_original_component.", "")
                weights[key.replace(".", "-")] = weight.requires_grad_(True)
        return copies, weights

    def prepare(self, tokens):
        """Catch the arguments for windows of this shape, as long as no hook is attached."""
        self._arguments_for(tokens)

    def _arguments_for(self, tokens):
        if tokens.shape not in self._arguments:
            self._arguments[tokens.shape] = self._catch(tokens)
        return self._arguments[tokens.shape]

    @torch.no_grad()
    def _catch(self, tokens):
        caught = {}
        handles = [
            block.register_forward_pre_hook(_keeper(caught, index), with_kwargs=True)
            for index, block in enumerate(self._bridge.blocks)
        ]
        try:
            self._bridge(tokens, use_cache=False, logits_to_keep=1)
        finally:
            for handle in handles:
                handle.remove()
        return caught


def _keeper(caught, index):
    def keep(block, positional, keywords):
        caught[index] = {k: v for k, v in keywords.items() if k != "hidden_states"}
        if _only_causal(keywords.get("attention_mask")):
            caught[index]["attention_mask"] = None

    return keep


def _only_causal(mask):
    """Whether a mask says no more than attention knows without one, and does faster."""
    if mask is None or mask.dtype == torch.bool or mask.ndim != 4:
        return False
    seq_len = mask.shape[-1]
    causal = torch.ones(seq_len, seq_len, dtype=torch.bool, device=mask.device).tril()
    return mask.shape[-2] == seq_len and bool(((mask == 0) == causal).all())


def named_weights(block):
    """Name -> each weight that a block runs on: of GPT-2's q, k and v the parts, not the whole."""
    return {name: weight for name, weight in block.named_parameters() if ".qkv." not in name}


def _copy(block):
    """A copy of a block that shares nothing with it but the hooks that sit on its output.

    Those are the meter's: it counts the passes of the copy too, and lets go of both at once.
    """
    hooks, block._forward_hooks = block._forward_hooks, OrderedDict()
    try:
        # TransformerLens' attention holds on to a part of the last pass, which cannot be copied.
        held = [v for part in block.modules() for v in vars(part).values() if _of_a_pass(v)]
        copied = deepcopy(block, {id(value): None for value in held})
    finally:
        block._forward_hooks = hooks
    copied._forward_hooks = hooks
    return copied


def _of_a_pass(value):
    return isinstance(value, torch.Tensor) and value.grad_fn is not None
