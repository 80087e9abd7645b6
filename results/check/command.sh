#!/bin/sh
# saes/mine and saes/relu: see README.md. The output is smollm2-135m.txt.
set -e
cd "$(dirname "$0")/../.."
python -m bench check --sae saes/mine --site blocks.15.hook_resid_post --val-docs 16 --val-tokens 4096
python -m bench check --sae saes/mine --site blocks.14.hook_resid_post --val-docs 16 --val-tokens 4096
python -m bench check --sae saes/relu --site blocks.15.hook_resid_post --val-docs 16 --val-tokens 4096
