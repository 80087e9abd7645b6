#!/bin/sh
# One step at the true shape of the paper's models. The records were copied from runs-shapes/.
set -e
cd "$(dirname "$0")/../.."
one_step="--weights random --sae fresh --steps 1 --methods lora:rank=64:alpha=32,e2e
    --curve-docs 1 --curve-tokens 1024 --val-docs 1 --val-tokens 1024 --out runs-shapes"
python -m bench compare --spec llama-3.2-1b $one_step
python -m bench compare --spec gemma-2-2b-topk $one_step
