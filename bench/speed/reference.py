"""The plain way to take a step: Hugging Face, PEFT, full logits. What `bench speed` measures us by.

A step as the paper's own code takes it (Chen, Engels, Tegmark 2501.19406, utils.py and
train_lora.py of matchten/LoRA-Models-for-SAEs): eager attention, a teacher pass of the whole
model, a student pass with the SAE in a forward hook, softmax over full logits, `kl_div`,
clipping, AdamW. Where ours differs by choice (the first position, a mean over tokens), it
follows ours, so that both have the same loss. Only the LM is in `dtype`: the SAE, the adapters
and the softmax stay in float32. Imports nothing of this suite.
"""

from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, softmax


class Reference:
    """One model, one SAE after layer `layer`, and what is trained: `step(tokens)`."""

    def __init__(
        self,
        model_folder: str,
        sae_folder: str,
        layer: int,
        *,
        lr: float,
        clip: float,
        adapters: dict[str, Any] | None = None,
        skipped: int = 1,
        device: str = "cpu",
        dtype: str = "float32",
        drawn: str | None = None,
    ) -> None:
        """`adapters` are the fields of a PEFT `LoraConfig`; without them the SAE is trained.

        The first `skipped` positions of a window are neither spliced nor scored. `drawn` is the
        number format that random weights are drawn in; without it they are read from the folder.
        """
        from sae_lens import SAE

        if drawn:
            with torch.device(device):
                model = _random(model_folder, drawn, dtype)
        else:
            model = _pretrained(model_folder, dtype)
        self.model = model.requires_grad_(False).eval().to(device)
        self.sae = SAE.load_from_disk(sae_folder, device=device, dtype="float32")
        self.layer, self.lr, self.clip, self.skipped = layer, lr, clip, skipped
        self.adapters, self.spliced = adapters, False
        self.centered = adapters is not None or bool(self.sae.b_dec.any())

    def prepare(self, weights: dict[str, Tensor] | None = None) -> None:
        """Hook the SAE in; make the adapters and the optimizer.

        `weights`: where each adapter starts, as PEFT's names -> tensors.
        """
        self.model.model.layers[self.layer].register_forward_hook(self._splice)
        self.sae.requires_grad_(self.adapters is None)
        trained = self.sae
        if self.adapters is not None:
            from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

            self.model = trained = get_peft_model(self.model, LoraConfig(**self.adapters))
            if weights is not None:
                set_peft_model_state_dict(self.model, weights)
        self.parameters = [p for p in trained.parameters() if p.requires_grad]
        # Without weight decay it is Adam, which the methods of the suite use.
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.lr, weight_decay=0.0)

    def step(self, tokens: Int[Tensor, "batch seq"]) -> float:
        """One optimizer step on `tokens`; the loss, in nats per scored token."""
        with torch.no_grad(), self.model.disable_adapter() if self.adapters else nullcontext():
            teacher = softmax(self._logits(tokens), -1)
        self.spliced = True
        student = log_softmax(self._logits(tokens), -1)
        self.spliced = False
        loss = kl_div(student, teacher, reduction="sum") / student.shape[:2].numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def _logits(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch scored vocabulary"]:
        logits = self.model(input_ids=tokens, use_cache=False).logits
        return logits[:, self.skipped :].float()

    def _splice(self, layer: nn.Module, inputs: object, output: Any) -> Any:
        if not self.spliced:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        first, rest = hidden[:, : self.skipped], hidden[:, self.skipped :]
        if not self.centered:  # an SAE that was never trained starts at the mean of a batch
            self.sae.b_dec.data.copy_(rest.float().flatten(0, 1).mean(0))
            self.centered = True
        hidden = torch.cat([first, self.sae(rest).to(hidden.dtype)], 1)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _pretrained(folder: str, dtype: str) -> nn.Module:
    from transformers import AutoModelForCausalLM

    settings = {"dtype": getattr(torch, dtype), "attn_implementation": "eager"}
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **settings)


def _random(folder: str, drawn: str, dtype: str) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    settings = {"dtype": getattr(torch, drawn), "attn_implementation": "eager"}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, **settings)
    # Parameters alone: the frequencies of the rotary embedding stay in float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return model
