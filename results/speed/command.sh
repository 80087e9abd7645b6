#!/bin/sh
# Our step against the plain one.
set -e
cd "$(dirname "$0")/../.."
METHODS=e2e,lora:rank=64,lora:rank=64:layers=all
python -m bench speed --methods $METHODS --out results/speed
python -m bench speed --methods $METHODS --cache-clean --out results/speed
python -m bench speed --model package:gemma3-270m --site blocks.9.hook_resid_post --sae fresh --seq-len 512 \
    --methods lora:rank=64 --out results/speed
SPLICEBENCH_MATMUL=blas python -m bench speed --methods lora:rank=64 --out results/speed
