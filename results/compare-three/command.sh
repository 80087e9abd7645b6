#!/bin/sh
# The records were copied from runs/.
set -e
cd "$(dirname "$0")/../.."
make compare
