#!/bin/sh
# The papers' experiments on SmolLM2-135M, then the claims (results/CLAIMS.md).
set -e
cd "$(dirname "$0")/../.."
python -m bench experiment timing rank one-layer additivity token-loss distance no-sae rivals --scale laptop
python -m analysis results --claims
