#!/bin/sh
# On the machine with the GPU:  sh once.sh OUT [SECONDS]     (docs/gpu.md)
#
# Takes the pieces that lie beside it. When all have come, in however many calls, it joins and
# checks them, puts the wheels into a folder of their own, and works for so many seconds (570).
# OUT/results.tar.gz is then what there is to bring back. It ends with 0: all is done; 5: something
# is not, see the output; 75: call it again, with the pieces that are missing or for the rest.
set -eu
BESIDE=$(cd "$(dirname "$0")" && pwd)
SECONDS_HERE=${2:-570}
mkdir -p "$1"
OUT=$(cd "$1" && pwd)
WORK=${WORK:-$HOME/splicebench-once}
PYTHON=${PYTHON:-python3}
mkdir -p "$WORK/pieces"
began=$(date +%s)
if ! [ -d "$WORK/ready" ]; then
    cp "$BESIDE"/piece-* "$BESIDE/SHA256SUMS" "$WORK/pieces"
    cd "$WORK/pieces"
    sha256sum --check --quiet SHA256SUMS || { echo "once.sh: bring these pieces and call again"; exit 75; }
    rm -rf "$WORK/new" && mkdir -p "$WORK/new/site"
    cat piece-* | tar -xf - -C "$WORK/new"
    cd "$WORK/new"
    if [ -f novels.tar.xz ]; then
        mkdir -p splicebench/corpora/novels95
        "$PYTHON" -c 'import tarfile; tarfile.open("novels.tar.xz").extractall("splicebench/corpora/novels95", filter="data")'
    fi
    set -- wheels/*.whl
    # Not a virtual environment: the Python with PyTorch may be one itself, which a second one
    # would not see through.
    ! [ -f "$1" ] || "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --target site wheels/*.whl
    mv "$WORK/new" "$WORK/ready"
fi
cd "$WORK/ready/splicebench"
export PYTHONPATH="$PWD:$WORK/ready/site" PYTHONUNBUFFERED=1 SPLICEBENCH_CACHE="$WORK/cache"
export TEST_DEVICE=cuda
[ -z "${REHEARSE:-}" ] || export TEST_DEVICE=cpu
echo "once.sh: ready after $(($(date +%s) - began)) s"
exec "$PYTHON" -m results.gpu.once run "$OUT" "$((SECONDS_HERE - $(date +%s) + began))"
