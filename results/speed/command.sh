#!/bin/sh
# Our step against the plain one.
set -e
cd "$(dirname "$0")/../.."
METHODS=lora:rank=64,lora:rank=64:layers=all,e2e
python -m bench speed --sae own --methods $METHODS --out results/speed
python -m bench speed --sae own --out results/speed --methods lora:rank=64    # made again alone: see README.md
python -m bench speed --sae own --methods $METHODS --cache-clean --out results/speed
python -m bench speed --model package:gemma3-270m --site blocks.9.hook_resid_post --sae fresh --seq-len 512 \
    --methods lora:rank=64 --out results/speed
SPLICEBENCH_MATMUL=blas python -m bench speed --methods lora:rank=64 --sae fresh --out results/speed
