"""Shapes of tensors in `bench.problem`, the methods and the evaluation are checked in tests.

One thread a test, so that a process may fork and two tests run side by side.
"""

import ast
import os

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

from jaxtyping import _import_hook, install_import_hook  # noqa: E402

CHECKED = ("bench.problem", "bench.harness.evaluate", "bench.harness.drive", "methods")


class OfTensors(_import_hook.JaxtypingTransformer):
    """Leaves functions alone that have no tensor in their signature: mypy checks them, and here
    they would cost a third of the tests' time. So too functions inside functions: each would be
    compiled anew in every call."""

    def visit_FunctionDef(self, node):
        nested = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
        if nested or "Tensor" not in ast.unparse([node.args, node.returns or ast.Tuple([])]):
            return node
        return super().visit_FunctionDef(node)


_import_hook.JaxtypingTransformer = OfTensors
install_import_hook(CHECKED, "beartype.beartype")

from bench.problem import clean_cache, objectives, oom, problem  # noqa: E402

for module in (clean_cache, objectives, oom):  # they name what they could not import in a circle
    module.Adapted, module.Clean, module.Problem = problem.Adapted, problem.Clean, problem.Problem
