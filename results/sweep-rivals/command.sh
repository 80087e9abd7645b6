#!/bin/sh
# The step sizes of the other rivals, then one more each for affine and full.
set -e
cd "$(dirname "$0")/../.."
python -m bench compare --steps 15 --out results/sweep-rivals \
    --methods linear:lr=4e-4,linear:lr=1e-3,linear:lr=2.5e-3,linear:lr=6e-3,affine:lr=1e-3,affine:lr=2.5e-3,affine:lr=6e-3,affine:lr=1.5e-2,full:lr=1e-5,full:lr=2.5e-5,full:lr=6e-5,full:lr=1.5e-4,joint:lr=4e-4:sae_lr=1e-4,joint:lr=1e-3:sae_lr=2.5e-4,joint:lr=2.5e-3:sae_lr=6e-4,joint:lr=6e-3:sae_lr=1.5e-3,ridge:shrink=0.01,ridge:shrink=0.1,ridge:shrink=1,ridge:shrink=10
python -m bench compare --steps 15 --out results/sweep-rivals --methods affine:lr=4e-2,full:lr=4e-4
