#!/bin/sh
# The step sizes of the frontier's arms; corpora/novels95 is a folder of novels as .txt files.
set -e
cd "$(dirname "$0")/../.."
python -m bench tune \
    mse:adam=kept:warmup=0.03:decay=1:steps=818,lora:warmup=0.03:decay=1:steps=207,e2e:warmup=0.03:decay=1:steps=211 \
    --sae-tokens 1728512 --sae-lr 1e-3 --sae-set decay=0:warmup=0.01 --sae-share 0.75 --cache-clean \
    --text sotu+corpora/novels95 --curve-docs 16 --curve-tokens 2048 --val-docs 46 --val-tokens 23552 \
    --checkpoint-every 120 --out results/frontier-tuning
