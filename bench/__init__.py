"""splicebench: what is the cheapest way to buy back the loss that a spliced SAE costs?"""

__version__ = "0.1.0"
