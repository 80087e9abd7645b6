"""Tiny random models of the three families, a tokenizer, a text and an SAE: no download."""

import random

import torch
from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from bench import models as bench_models
from bench.problem import Problem

FAMILIES = ("llama", "gpt2", "gemma2")
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


def bridge(family, seed=0):
    """The frozen bridge over `hf_model`."""
    return bench_models.bridge(hf_model(family, seed), tokenizer())


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


def windows(n, seed=0):
    """Random windows [n, SEQ]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (n, SEQ), generator=generator)


def problem(family="llama", **settings):
    """A whole tiny problem."""
    settings = {"batch_size": 2, **settings}
    return Problem(bridge(family), sae(), [SITE], windows(24), **settings)


def write_model(folder):
    """A tiny Llama with its tokenizer, as a folder for `--model`."""
    model = hf_model("llama")
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def write_text(folder, documents=24, characters=600):
    """Documents of random words, as a folder for `--text`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for number in range(documents):
        words = ("".join(draw.choices("abcdefgh", k=draw.randint(1, 6))) for _ in range(characters))
        (folder / f"{number:02d}.txt").write_text(" ".join(words)[:characters], encoding="utf-8")
