"""One file per method: `methods/NAME.py` with `Config` and `train` is `--methods NAME`."""
