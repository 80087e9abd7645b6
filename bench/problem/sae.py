"""The forms of an SAE that methods train: end to end, on reconstruction, with an affine map behind.

The map, which `linear`, `affine` and `ridge` train, is folded into W_dec and b_dec when the SAE is
saved: what is left is a plain SAE. Knows nothing of where SAEs come from (`bench.loading.saes`).
"""

from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module, ModuleList

from bench.distributed import shares
from bench.errors import Rejected, unknown

BANDWIDTH = 0.5
"""Width of the window around a JumpReLU's threshold in which a pre-activation moves it, in
multiples of the SAE's median threshold: SAELens' own width is in the units of its training data."""


def correct(saes: Iterable[Module], make: Callable[[int], Module]) -> tuple[ModuleList, ModuleList]:
    """Put `make(d_out)`, an affine map, behind every SAE -> (the maps, the corrected SAEs)."""
    maps = ModuleList(make(len(sae.b_dec)).to(sae.W_dec.device) for sae in saes)
    pairs = zip(saes, maps, strict=True)
    corrected = ModuleList(Corrected(sae, correction) for sae, correction in pairs)
    for one in corrected:
        check_foldable(one)
    return maps, corrected


@torch.no_grad()
def check_foldable(corrected: "Corrected") -> None:
    """Raise `Rejected`, before any training, where a map of this kind does not fold into the SAE.

    The map is tried at random values: at the identity, where it starts, everything folds.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tried = Corrected(corrected.sae, deepcopy(corrected.correction))
        for values in tried.correction.parameters():
            values.add_(torch.randn_like(values) / 2)
    tried.folded()


@torch.no_grad()
def check_same(folded: Module, corrected: "Corrected") -> None:
    """Raise `Rejected` where a plain SAE is not the corrected one, on tokens of two sizes.

    The median token counts: rounding may have one lose a latent to another that is as large.
    """
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(64, corrected.cfg.d_in, generator=draw)
    tokens = torch.cat([tokens[:32], 30 * tokens[32:]]).to(folded.W_dec)
    want = corrected.decode(corrected.encode(tokens))
    error = (folded.decode(folded.encode(tokens)) - want).norm(dim=-1) / want.norm(dim=-1)
    error = error.median().item()
    if not error < TOLERANCE:
        scaling = corrected.cfg.normalize_activations
        raise Rejected(
            f"an affine map does not fold into an SAE with normalize_activations '{scaling}': its "
            f"output would be off by {error:.1%}; `linear`, which shifts nothing, may"
        )


TOLERANCE = 1e-3
"""Relative error of a folded SAE's output that rounding may cause."""


class Corrected(Module):
    """A frozen SAE with a correction, an affine map of [tokens, d_out], of what it decodes.

    Raises `Rejected` for an SAE that normalises each token: no affine map can be folded into it.
    """

    def __init__(self, sae: Module, correction: Module) -> None:
        super().__init__()
        if sae.cfg.normalize_activations == "layer_norm":
            raise Rejected("an SAE that normalises each token takes no correction of its output")
        if hasattr(sae, "W_skip"):
            raise Rejected("a transcoder that skips its latents takes no correction of its output")
        self.sae, self.correction, self.cfg = sae, correction, sae.cfg

    def encode(self, activations: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_sae"]:
        """The latents, as the SAE itself has them."""
        return self.sae.encode(activations)

    def decode(self, latents: Float[Tensor, "tokens d_sae"]) -> Float[Tensor, "tokens d_in"]:
        """The corrected reconstruction."""
        return self.correction(self.sae.decode(latents))

    @torch.no_grad()
    def folded(self) -> Module:
        """A plain SAE with the same latents and outputs."""
        sae = deepcopy(self.sae)
        if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
            sae.fold_W_dec_norm()  # else a new W_dec would change which latents are the largest
            sae.cfg.rescale_acts_by_decoder_norm = False
        bias = self.correction(torch.zeros_like(sae.b_dec)[None])[0]
        sae.W_dec.copy_(self.correction(sae.W_dec) - bias)
        moved = self.correction(sae.b_dec[None])[0] - sae.b_dec
        sae.b_dec.add_(moved)
        if sae.cfg.apply_b_dec_to_input:  # b_dec is taken off the input too: give it back
            _shift_input(sae, moved)
        check_same(sae, self)
        return sae


def _shift_input(sae: Module, moved: Float[Tensor, " d_in"]) -> None:
    """Change the encoder's biases as if its input were larger by `moved`."""
    if hasattr(sae, "b_gate"):
        sae.b_gate.add_(moved @ sae.W_enc)
        sae.b_mag.add_(moved @ (sae.W_enc * sae.r_mag.exp()))
    else:
        sae.b_enc.add_(moved @ sae.W_enc)


def trainable(sae: Module) -> Module:
    """An own copy with the same outputs, in which every parameter that can gets a gradient.

    A JumpReLU becomes SAELens' training class, whose straight-through estimator reaches the
    thresholds (Rajamanoharan et al. 2407.14435); in the inference class they get none.
    """
    from sae_lens import JumpReLUSAE, JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

    if not isinstance(sae, JumpReLUSAE):
        return deepcopy(sae)
    positive = sae.threshold[sae.threshold > 0]
    settings = sae.cfg.to_dict()
    if len(positive):
        settings["jumprelu_bandwidth"] = BANDWIDTH * positive.median().item()
    training = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig.from_dict(settings))
    training.load_state_dict(sae.state_dict())
    training.turn_off_forward_pass_hook_z_reshaping()
    return training.to(sae.W_dec.device)


@torch.no_grad()
def center(sae: Module, activations: Float[Tensor, "tokens d_in"]) -> None:
    """Give an SAE that was never trained, whose decoder bias is 0, the mean of these as that bias.

    Much as the SAEs of Chen et al. (2501.19406) start from their first batch.
    """
    if not sae.b_dec.any():
        sae.b_dec.copy_(shares.mean(activations))


def freeze(saes: Iterable[Module], names: Iterable[str]) -> None:
    """Take these parameters of the SAEs out of training; `Usage` for one that an SAE lacks."""
    for sae in saes:
        known = dict(sae.named_parameters())
        for name in names:
            if name not in known:
                raise unknown("parameter of the SAE", name, known)
            known[name].requires_grad_(False)


@torch.no_grad()
def clamp_thresholds(saes: Iterable[Module]) -> None:
    """Bring thresholds that a step has taken below 0 back to 0: below it, negative latents fire."""
    for sae in saes:
        if hasattr(sae, "threshold"):
            sae.threshold.clamp_(min=0)


def to_training(sae: Module) -> Module:
    """An own copy as SAELens' training class, with the same weights and outputs.

    Raises `Rejected` for a kind of SAE that cannot be trained on reconstruction here.
    """
    from sae_lens import TopKSAE, TopKTrainingSAE, TopKTrainingSAEConfig

    if not isinstance(sae, TopKSAE):
        raise Rejected(f"mse trains topk SAEs, this one is '{sae.cfg.architecture()}'")
    training = TopKTrainingSAE(TopKTrainingSAEConfig.from_dict(sae.cfg.to_dict()))
    training.load_state_dict(sae.state_dict())
    training.turn_off_forward_pass_hook_z_reshaping()
    return training.to(sae.W_dec.device)
