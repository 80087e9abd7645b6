"""What no file may have: code from outside, run; a second clock; torch where records are read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("bench", "methods", "analysis", "splicebench")
SHIPPED = sorted(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))
TESTS = sorted(set((ROOT / "tests").rglob("*.py")) - {Path(__file__)})

SETTINGS = {"weights_only": False, "trust_remote_code": True, "allow_pickle": True}
"""Settings that let a file, or a hub's repository, run code of its own."""
LOADERS = ("load", "loads", "Unpickler", "_Unpickler")
PICKLES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib")
CLOCKS = ("perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time", "time_ns")
CLOCKS += ("process_time_ns", "thread_time", "clock_gettime", "clock_gettime_ns", "utcnow")


def parsed(paths):
    """(path as it is told, syntax tree) of each file."""
    for path in paths:
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def told(find, files):
    """`FILE:LINE: what` for each thing that is found."""
    return [f"{path}:{line}: {what}" for path, tree in files for line, what in find(tree)]


def modules(tree):
    """(node, module) for each import: `from a import b` is of `a` and of `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node, node.module or ""
            yield from ((node, f"{node.module}.{name.name}") for name in node.names)


def names_of(tree, wanted):
    """What modules are called in a file: `import pickle as p` makes it {"p": "pickle"}."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {n.asname or n.name: n.name for n in node.names if n.name in wanted}
    return found


def runs_code(tree):
    """(line, what) of all that runs code which comes as data."""
    pickles = names_of(tree, PICKLES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            if name in ("eval", "exec"):
                yield node.lineno, f"{name}()"
            settings = [(keyword.arg, keyword.value) for keyword in node.keywords]
            yield from ((node.lineno, text) for text in unsafe(settings))
        elif isinstance(node, ast.Dict):
            keys = [getattr(key, "value", None) for key in node.keys]
            yield from ((node.lineno, t) for t in unsafe(zip(keys, node.values, strict=True)))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in pickles and node.attr in LOADERS:
                yield node.lineno, f"{pickles[node.value.id]}.{node.attr}"
            if node.value.id == "builtins" and node.attr in ("eval", "exec"):
                yield node.lineno, f"builtins.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module in PICKLES:
            found = [name.name for name in node.names if name.name in LOADERS]
            yield from ((node.lineno, f"{node.module}.{name}") for name in found)


def leaves_it_open(tree):
    """(line, what) of each torch.load that leaves it to torch, or its environment, what is safe."""
    for node in ast.walk(tree):
        is_load = isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
        if is_load and "weights_only" not in {keyword.arg for keyword in node.keywords}:
            yield node.lineno, "torch.load that does not say weights_only"


def unsafe(settings):
    """Those of `SETTINGS` that are set among (name, value)."""
    for name, value in settings:
        if name in SETTINGS and getattr(value, "value", None) is SETTINGS[name]:
            yield f"{name}={value.value}"


def reads_a_clock(tree):
    """(line, what) of all that asks what time it is."""
    for node, module in modules(tree):
        if module in ("time", "timeit") or module.startswith(("time.", "timeit.")):
            yield node.lineno, f"import of {module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
            if node.attr in CLOCKS or (node.attr, owner) == ("time", "time"):
                yield node.lineno, f"{owner}.{node.attr}"
            if node.attr in ("now", "today") and owner in ("datetime", "date"):
                yield node.lineno, f"{owner}.{node.attr}"
        elif isinstance(node, ast.Name) and node.id in CLOCKS:
            yield node.lineno, node.id


def test_nothing_from_outside_runs_code():
    assert len(SHIPPED) > 80 and len(TESTS) > 30
    assert told(runs_code, parsed([*SHIPPED, *TESTS])) == []
    assert told(leaves_it_open, parsed(SHIPPED)) == []


def test_only_one_file_reads_a_clock():
    others = [(path, tree) for path, tree in parsed(SHIPPED) if path != "bench/io/clock.py"]
    assert told(reads_a_clock, others) == []


def test_a_method_never_sees_a_clock():
    forbidden = {"bench.io.clock", "bench.harness.meter", "time", "datetime"}
    for path, tree in parsed((ROOT / "methods").glob("*.py")):
        imported = {module for _, module in modules(tree)}
        assert not imported & forbidden, path


def test_the_analysis_imports_no_torch():
    for path, tree in parsed((ROOT / "analysis").rglob("*.py")):
        assert "torch" not in {module.partition(".")[0] for _, module in modules(tree)}, path


def test_nor_does_anything_that_the_analysis_imports():
    names = [f"analysis.{path.stem}" for path in (ROOT / "analysis").glob("[!_]*.py")]
    code = f"import sys, {', '.join(names)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


FOUND = [
    (runs_code, "torch.load(path, weights_only=False)", "weights_only=False"),
    (leaves_it_open, "torch.load(path)", "torch.load that does not say weights_only"),
    (runs_code, "load(path, **{'trust_remote_code': True})", "trust_remote_code=True"),
    (runs_code, "numpy.load(path, allow_pickle=True)", "allow_pickle=True"),
    (runs_code, "import pickle\npickle.load(file)", "pickle.load"),
    (runs_code, "import pickle as p\np.Unpickler(file)", "pickle.Unpickler"),
    (runs_code, "from pickle import loads", "pickle.loads"),
    (runs_code, "import cPickle\ncPickle.loads(data)", "cPickle.loads"),
    (runs_code, "eval(text)", "eval()"),
    (runs_code, "exec(text)", "exec()"),
    (reads_a_clock, "import time", "import of time"),
    (reads_a_clock, "from time import perf_counter as now", "import of time"),
    (reads_a_clock, "import timeit", "import of timeit"),
    (reads_a_clock, "clock.perf_counter()", "clock.perf_counter"),
    (reads_a_clock, "datetime.now(UTC)", "datetime.now"),
    (reads_a_clock, "datetime.datetime.utcnow()", "datetime.utcnow"),
    (reads_a_clock, "lib.time.time()", "time.time"),
]


@pytest.mark.parametrize(("find", "text", "what"), FOUND, ids=[found[1] for found in FOUND])
def test_each_spelling_is_found(find, text, what):
    assert what in [found for _, found in find(ast.parse(text))]


FINE = """
import pickle, torch
from datetime import UTC, datetime
model.eval()
self.eval()
pickle.dumps(payload)
torch.load(path, weights_only=True)
numpy.load(path, allow_pickle=False)
json.loads(text)
clock.read().since(started).seconds
row["seconds"], spent.time
"""


def test_what_is_fine_is_not_found():
    tree = ast.parse(FINE)
    assert [*runs_code(tree), *leaves_it_open(tree), *reads_a_clock(tree)] == []
