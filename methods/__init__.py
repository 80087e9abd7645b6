"""One file per method: `methods/NAME.py` with `Config` and `train` is `--methods NAME`.

So is NAME.py in a folder that the environment names in SPLICEBENCH_METHODS, or `--methods PATH.py`.
"""

import os

FOLDERS = "SPLICEBENCH_METHODS"
__path__ += filter(None, os.environ.get(FOLDERS, "").split(os.pathsep))  # after our own
