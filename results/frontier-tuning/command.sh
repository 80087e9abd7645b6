#!/bin/sh
# The step sizes of the frontier's arms; corpora/novels95 is a folder of novels as .txt files.
# On an AMD EPYC oneDNN's products are the default; with them the digits are the same elsewhere.
set -e
cd "$(dirname "$0")/../.."
export SPLICEBENCH_MATMUL=onednn
MAIN=mse:adam=kept:warmup=0.03:decay=1:steps=818,lora:warmup=0.03:decay=1:steps=207,e2e:warmup=0.03:decay=1:steps=211
REST=e2e:loss=kl+mse:warmup=0.03:decay=1:steps=205,joint:warmup=0.03:decay=1:steps=203,sae_lora:rank=64:warmup=0.03:decay=1:steps=223,affine:warmup=0.03:decay=1:steps=236,ridge:steps=960
for methods in "$MAIN" "$REST"; do
    python -m bench tune "$methods" \
        --sae-tokens 1728512 --sae-lr 1e-3 --sae-set decay=0:warmup=0.01 --sae-share 0.75 --cache-clean \
        --text sotu+corpora/novels95 --curve-docs 16 --curve-tokens 2048 --val-docs 46 --val-tokens 23552 \
        --checkpoint-every 120 --out results/frontier-tuning
done
python -m analysis results/frontier-tuning
