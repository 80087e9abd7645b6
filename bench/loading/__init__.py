"""From a spec's names to what is ready for use: models, SAEs, texts, adapters; or a refusal.

Knows nothing of passes, losses or runs.
"""

__all__ = ["cpu_kernels", "documents", "hub", "models", "packages", "peft_format", "sae_metadata"]
__all__ += ["sae_sources", "saes", "text"]
