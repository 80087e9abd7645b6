"""From a spec's names to what is ready for use: models, SAEs, texts, adapters; or a refusal.

Knows nothing of passes, losses or runs.
"""

__all__ = ["compiled", "cpu_kernels", "documents", "hub", "models", "packages", "peft_format"]
__all__ += ["sae_metadata", "sae_sources", "saes", "text"]
