"""Tiny random models of the four families, a tokenizer, a text and SAEs: no download."""

import random

import torch
from sae_lens import (
    SAE,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from bench.loading import models as bench_models
from bench.problem.problem import Problem

FAMILIES = ("llama", "gpt2", "gemma2", "gemma3")
KINDS = ("topk", "jumprelu", "standard", "gated")
VOCABULARY, WIDTH, BLOCKS, SEQ = 64, 32, 4, 12
SITE = "blocks.1.hook_resid_post"
GROUPED = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def hf_model(family, seed=0):
    """A random Hugging Face model in eval mode, float32."""
    torch.manual_seed(seed)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**GROUPED, attn_implementation="eager"))
    elif family == "gemma2":
        own = {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
        model = Gemma2ForCausalLM(Gemma2Config(**GROUPED, **own, attn_implementation="eager"))
    elif family == "gemma3":
        kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
        own = {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8, "layer_types": kinds}
        model = Gemma3ForCausalLM(Gemma3TextConfig(**GROUPED, **own, attn_implementation="eager"))
    else:
        shape = {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": 4, "n_positions": 32}
        tokens = {"bos_token_id": 1, "eos_token_id": 2}
        config = GPT2Config(
            vocab_size=VOCABULARY,
            initializer_range=0.2,
            attn_implementation="eager",
            **shape,
            **tokens,
        )
        model = GPT2LMHeadModel(config)
    model.config.architectures = [type(model).__name__]  # as in a folder; the bridge reads it
    return model.eval()


def tokenizer():
    """One token a character."""
    characters = "abcdefghijklmnopqrstuvwxyz .,;\n0123456789"
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", *characters])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        name_or_path="tiny",
    )


def bridge(family, seed=0, dtype=torch.float32):
    """The frozen bridge over `hf_model`."""
    return bench_models.bridge(hf_model(family, seed).to(dtype), tokenizer())


def sae(width=WIDTH, seed=0):
    """A TopK SAE in inference form whose reconstruction is off by a fair amount."""
    torch.manual_seed(seed)
    training = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=width, d_sae=4 * width, k=4))
    config = {**training.cfg.get_inference_sae_cfg_dict(), "architecture": "topk"}
    inference = SAE.from_dict(config)
    inference.load_state_dict(training.state_dict())
    with torch.no_grad():
        inference.W_dec.mul_(3)
        inference.b_enc.normal_(std=0.1)
        inference.b_dec.normal_(std=0.1)
    return torch.nn.ModuleList([inference])


def sae_of_kind(kind, width=WIDTH, seed=0):
    """An SAE of one of KINDS in inference form, every parameter away from its start."""
    if kind == "topk":
        return sae(width, seed)
    made, config = {
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig),
        "standard": (StandardSAE, StandardSAEConfig),
        "gated": (GatedSAE, GatedSAEConfig),
    }[kind]
    torch.manual_seed(seed)
    inference = made(config(d_in=width, d_sae=4 * width))
    with torch.no_grad():
        inference.W_enc.normal_(std=0.3)
        inference.W_dec.copy_(inference.W_enc.T).mul_(0.5)
        for name, parameter in inference.named_parameters():
            if name in ("b_enc", "b_dec", "b_gate", "b_mag", "r_mag"):
                parameter.normal_(std=0.1)
        if kind == "jumprelu":
            inference.threshold.uniform_(0.0, 0.6)
    return torch.nn.ModuleList([inference])


def windows(n, seed=0):
    """Random windows [n, SEQ]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (n, SEQ), generator=generator)


def ce_by_document(logits, tokens, n_documents):
    """CE of dense logits [windows, seq, vocab], first position left out; as many windows each."""
    losses = torch.nn.functional.cross_entropy(
        logits[:, 1:-1].flatten(0, 1), tokens[:, 2:].flatten(), reduction="none"
    )
    return losses.view(n_documents, -1).double().mean(1).tolist()


def problem(family="llama", kind="topk", dtype=torch.float32, **settings):
    """A whole tiny problem."""
    settings = {"batch_size": 2, **settings}
    return Problem(bridge(family, dtype=dtype), sae_of_kind(kind), [SITE], windows(24), **settings)


def write_model(folder, family="llama"):
    """A tiny model with its tokenizer, as a folder for `--model`."""
    model = hf_model(family)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def write_text(folder, documents=24, characters=600):
    """Documents of random words, as a folder for `--text`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for number in range(documents):
        words = ("".join(draw.choices("abcdefgh", k=draw.randint(1, 6))) for _ in range(characters))
        (folder / f"{number:02d}.txt").write_text(" ".join(words)[:characters], encoding="utf-8")
