"""From a spec's names to what is ready for use: models, SAEs, texts, adapters; or a refusal.

Knows nothing of passes, losses or runs.
"""

__all__ = [
    "peft_format",
    "cpu_kernels",
    "documents",
    "hub",
    "models",
    "packages",
    "sae_metadata",
    "sae_sources",
    "saes",
    "sparsify",
    "streams",
    "text",
]
