"""Types and shapes of `bench.problem`, of the methods and of the evaluation are checked in tests.

One thread a test, so that a process may fork and two tests run side by side.
"""

import ast
import os

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

from jaxtyping import _import_hook, install_import_hook  # noqa: E402

CHECKED = ("bench.problem", "bench.harness.evaluate", "bench.harness.drive", "methods")


class NotNested(_import_hook.JaxtypingTransformer):
    """Leaves functions inside functions alone: each would be compiled anew in every call."""

    def visit_FunctionDef(self, node):
        if any(isinstance(parent, ast.FunctionDef) for parent in self._parents):
            return node
        return super().visit_FunctionDef(node)


_import_hook.JaxtypingTransformer = NotNested
install_import_hook(CHECKED, "beartype.beartype")

from bench.problem import clean_cache, objectives, oom, problem  # noqa: E402

for module in (clean_cache, objectives, oom):  # they name what they could not import in a circle
    module.Adapted, module.Clean, module.Problem = problem.Adapted, problem.Clean, problem.Problem
