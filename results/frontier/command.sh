#!/bin/sh
# The frontier on SmolLM2-135M; corpora/novels95 is a folder of novels as .txt files.
# Each sitting added --minutes, such as 129; the next one goes on.
set -e
cd "$(dirname "$0")/../.."
python -m bench experiment frontier --scale frontier
python -m analysis results/frontier
