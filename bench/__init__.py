"""splicebench: what is the cheapest way to buy back the loss that a spliced SAE costs?"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__version__ = "0.1.0"


def load(run: "str | Path") -> "TransformerBridge":
    """The `TransformerBridge` of a finished run with its SAE and adapters in place.

    `run` is a record, or the folder beside it; see `bench.export.reload`.
    """
    from bench.export.reload import load

    return load(run)
