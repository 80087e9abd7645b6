"""Who imports whom: data goes one way, and `analysis` never imports torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("bench", "methods", "analysis")
FILES = {folder: sorted((ROOT / folder).rglob("*.py")) for folder in FOLDERS}


def imported(path):
    """Top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def test_the_harness_knows_no_method():
    knowing = {path.name for path in FILES["bench"] if "methods" in imported(path)}
    assert knowing == {"method.py"}  # it finds them by name


def test_the_bench_draws_nothing():
    knowing = {path.name for path in FILES["bench"] if "analysis" in imported(path)}
    # All of them end by showing what a record says.
    assert knowing == {"compare.py", "experiment.py", "export.py"}


@pytest.mark.parametrize("folder", ["methods", "analysis"])
def test_nobody_but_the_meter_holds_a_clock(folder):
    assert not [path.name for path in FILES[folder] if "time" in set(imported(path))]
    assert [path.name for path in FILES["bench"] if "time" in set(imported(path))] == ["clock.py"]


def test_analysis_never_imports_torch():
    code = "import sys, analysis.__main__, analysis.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_plain_step_knows_nothing_of_ours():
    ours = {"bench", "methods", "analysis", "transformer_lens"}
    assert not ours & set(imported(ROOT / "bench" / "speed" / "reference.py"))


def test_only_the_bridge_is_used():
    for path in [*FILES["bench"], *FILES["methods"]]:
        assert "HookedTransformer" not in path.read_text(), path.name
