#!/bin/sh
# The step size of e2e from a random SAE.
set -e
cd "$(dirname "$0")/../.."
python -m bench compare --sae fresh --steps 15 --val-tokens 8192 --out results/sweep-scratch \
    --methods e2e:lr=1e-3:decay=0.2,e2e:lr=2e-3:decay=0.2,e2e:lr=4e-3:decay=0.2,e2e:lr=8e-3:decay=0.2
python -m bench compare --sae fresh --steps 15 --val-tokens 8192 --out results/sweep-scratch \
    --methods e2e:lr=1.6e-2:decay=0.2,e2e:lr=3.2e-2:decay=0.2
