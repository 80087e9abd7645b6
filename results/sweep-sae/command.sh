#!/bin/sh
# The step size of the SAE's own training.
set -e
cd "$(dirname "$0")/../.."
python -m bench compare --sae fresh --steps 192 --out results/sweep-sae \
    --methods mse:lr=5e-4,mse:lr=1e-3,mse:lr=2e-3,mse:lr=4e-3
