#!/bin/sh
# The default step sizes of lora, e2e and mse.
set -e
cd "$(dirname "$0")/../.."
python -m bench compare --steps 15 --out results/sweep \
    --methods lora:lr=4e-4,lora:lr=1e-3,lora:lr=2.5e-3,lora:lr=6e-3,e2e:lr=1e-4,e2e:lr=2.5e-4,e2e:lr=6e-4,e2e:lr=1.5e-3,mse:lr=1e-4,mse:lr=2.5e-4,mse:lr=6e-4,mse:lr=1.5e-3
