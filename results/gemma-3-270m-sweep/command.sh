#!/bin/sh
# The step sizes on Gemma-3-270M. The records were copied from runs-sweep/.
set -e
cd "$(dirname "$0")/../.."
python -m bench compare --spec gemma-3-270m --steps 15 --out runs-sweep \
    --methods lora:lr=4e-4,lora:lr=1e-3,lora:lr=2.5e-3,lora:lr=6e-3,e2e:lr=1e-4,e2e:lr=2.5e-4,e2e:lr=6e-4,e2e:lr=1.5e-3
