#!/bin/sh
# The records were copied from runs/.
set -e
cd "$(dirname "$0")/../.."
make compare SPEC=gemma-3-270m
python -m bench compare --spec gemma-3-270m --methods lora,lora:lr=1e-3,e2e --seeds 0,1,2
