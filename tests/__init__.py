"""Types and shapes of `bench.problem`, of the methods and of the evaluation are checked in tests.

One thread a test, so that a process may fork and two tests run side by side.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

from jaxtyping import install_import_hook  # noqa: E402

CHECKED = ("bench.problem", "bench.harness.evaluate", "bench.harness.drive", "methods")
install_import_hook(CHECKED, "beartype.beartype")

from bench.problem import clean_cache, objectives, oom, problem  # noqa: E402

for module in (clean_cache, objectives, oom):  # they name what they could not import in a circle
    module.Problem, module.Adapted = problem.Problem, problem.Adapted
