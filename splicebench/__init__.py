"""splicebench in Python: the same comparisons, records, tables and figures as on the command line.

import splicebench as sb

results = sb.compare("lora,e2e", model=model, tokenizer=tokenizer, sae=sae, site=site, steps=64)
results.frame()         # pandas: what each method reached, with intervals
print(results.table("latex"))
results.figure()        # matplotlib

sb.read("runs", "other-runs").frame(of="run")
sb.load("runs/lora-xxxxxxxx.jsonl").run_with_cache(tokens, use_cache=False)
"""

import inspect
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, get_type_hints

from analysis.records import comparison
from analysis.records.comparison import Comparison
from analysis.tables import frames
from analysis.tables.comparison import table
from bench import __version__, load
from bench.cli.parser import seeds as numbers
from bench.cli.parser import setting
from bench.config.method import MethodRequest, requested
from bench.config.spec import Spec
from bench.config.specs import flags_of
from bench.errors import Fault, Locked, Rejected, RunFailed, Unavailable, Usage, unknown
from bench.io.record import Run, read_folder
from bench.runs.done import identity_of, wanted_identity

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["Fault", "Results", "__version__", "compare", "load", "read"]

Method = str | os.PathLike | FunctionType | ModuleType
"""A label such as `lora:rank=64`, a method's file, its module, or its `train`."""
ROOT = Path(__file__).resolve().parents[1]
FAULTS = {kind.code: kind for kind in (Usage, Rejected, Unavailable, Locked, RunFailed)}
"""Exit code of the command -> what is raised."""


@dataclass(frozen=True)
class Results:
    """Runs that faced one problem, or several."""

    comparisons: list[Comparison]

    @property
    def failed(self) -> dict[str, str]:
        """The runs that did not finish -> how they ended."""
        return {run.name: run.status for run in self.runs if run.status != "finished"}

    @property
    def runs(self) -> list[Run]:
        """The records: `header`, `rows`, `end` and `path` of each."""
        return [run for each in self.comparisons for run in each.all]

    def frame(self, of: str = "method") -> "DataFrame":
        """A row for each method, with intervals over seeds and documents; or, by `of`, for each
        `run` or each `evaluation`. See `analysis.tables.frames.frame`."""
        return frames.frame(self.comparisons, of)

    def table(self, kind: str = "text") -> str:
        """The table of the command line, or as `markdown`, `latex` or `csv`."""
        if kind == "text":
            return "\n\n".join(map(table, self.comparisons))
        return frames.formatted(self.comparisons, kind)

    def figure(self, number: int = 0) -> "Figure":
        """The curves of one of the `comparisons`, the first unless `number` says another."""
        from analysis.figures.comparison import draw

        if not 0 <= number < len(self.comparisons):
            raise Usage(f"figure {number}: expected 0 to {len(self.comparisons) - 1}")
        return draw(self.comparisons[number])

    def __repr__(self) -> str:
        return self.table()


def compare(
    methods: Method | Iterable[Method] = "lora,e2e",
    *,
    model: Any = None,
    tokenizer: Any = None,
    sae: Any = None,
    seeds: int | str | Iterable[int] = 0,
    spec: str = Spec.name,
    out: str | os.PathLike = "runs",
    tuned: str | os.PathLike | None = None,
    fresh: bool = False,
    force: bool = False,
    micro_batch: int | None = None,
    **fields: Any,
) -> Results:
    """`python -m bench compare`: run each method once per seed, skip what is done -> `Results`.

    `model` is what `--model` takes, or a Hugging Face model or `TransformerBridge` that you hold;
    `tokenizer` belongs to it. `sae` is what `--sae` takes, or a SAELens SAE, or a list of either,
    one for each site. What you hold is written once to `out`/given, since each run has a process
    of its own. `fields` are those of the spec: `site`, `text`, `steps`, `val_docs`, ...

    Raises the `Fault` of the command, with its line. A run that diverged or broke is a result: it
    is in `Results.failed`.
    """
    folder = Path(out).expanduser()
    labels = _labels(methods)
    asked, which = requested(labels, []), numbers(_seeds(seeds))
    made = _given(spec, {"model": model, "sae": sae}, tokenizer, fields, folder / "given")
    options = ["--methods", ",".join(labels), "--seeds", ",".join(map(str, which))]
    options += [*flags_of(made, {}), "--out", str(folder)]
    options += ["--fresh"] * fresh + ["--force"] * force
    if tuned:
        from bench.runs.tuned import chosen

        options += ["--tuned", str(Path(tuned).expanduser())]
        asked = chosen(Path(tuned).expanduser(), made, asked)
    if micro_batch is not None:
        options += ["--micro-batch", str(micro_batch)]
    fault = _run("compare", *options)
    wanted = {
        wanted_identity(a, made, seed) for a in [MethodRequest("none"), *asked] for seed in which
    }
    there = read_folder(folder) if folder.is_dir() else []
    names = [run.name for run in there if "sets" in run.header and identity_of(run) in wanted]
    if fault and not (names and isinstance(fault, RunFailed)):
        raise fault
    return Results(comparison.load(folder, names))


def read(*folders: str | os.PathLike) -> Results:
    """The records that lie directly in the folders. Raises `Fault` where there are none."""
    found = [each for folder in folders for each in comparison.load(Path(folder).expanduser())]
    if not found:
        raise Usage("read: expected at least one folder of records")
    return Results(found)


def _run(*words: str) -> Fault | None:
    """Run the command and show what it prints -> the fault that it ended with, if it did.

    A process of its own: this one keeps its environment, its signals and its libraries. It is
    stopped with this one, and has the time to finish its step and write.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    settings = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    said = ""
    with subprocess.Popen(
        [sys.executable, "-m", "bench", *words],
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        try:
            for line in process.stdout:
                said = line.removeprefix("bench: ").rstrip() if line.startswith("bench: ") else said
                print(line, end="", flush=True)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    code = process.returncode
    return FAULTS.get(code, Fault)(said or f"the command ended with {code}") if code else None


def _labels(methods: Method | Iterable[Method]) -> list[str]:
    """Methods as `--methods` has them; `Usage` for a function that is in no file."""
    if isinstance(methods, str):
        return [label.strip() for label in methods.split(",") if label.strip()]
    many: Any = methods if isinstance(methods, Iterable) else [methods]
    return [_label(method) for method in many]


def _label(method: Method) -> str:
    if isinstance(method, str | os.PathLike):
        return os.fspath(method)
    if not isinstance(method, FunctionType | ModuleType):
        raise Usage(f"a method is {method!r}: expected a label, a file, its module or its train")
    holder = method if isinstance(method, ModuleType) else inspect.unwrap(method)
    file = inspect.getsourcefile(holder)
    if not file or not Path(file).is_file():
        raise Usage(f"'{method.__name__}' is in no file: write Config and train into NAME.py")
    return file


def _seeds(seeds: int | str | Iterable[int]) -> str:
    """Seeds as `--seeds` has them."""
    if isinstance(seeds, Iterable) and not isinstance(seeds, str):
        return ",".join(map(str, seeds))
    return str(seeds)


def _given(
    spec: str, held: dict[str, Any], tokenizer: Any, fields: dict[str, Any], folder: Path
) -> Spec:
    """The spec that is asked for; models and SAEs that are held are written to `folder`, once
    everything else is seen to be right."""
    if tokenizer is not None and isinstance(held["model"], str | os.PathLike | None):
        raise Usage("tokenizer: only with a model that you hold")
    lists = {k: list(v) if isinstance(v, list | tuple) else [v] for k, v in held.items()}
    many: dict[str, list[Any]] = {k: values for k, values in lists.items() if values != [None]}
    if all(isinstance(one, str | os.PathLike) for values in many.values() for one in values):
        paths = {name: "+".join(map(os.fspath, values)) for name, values in many.items()}
        return setting(Namespace(spec=spec, **paths, **_typed(fields)))
    from splicebench import given

    like = {name: "+".join("held" for _ in values) for name, values in many.items()}
    fields = given.placed(held["model"]) | fields
    made = setting(Namespace(spec=spec, **like, **_typed(fields)))
    return replace(made, **given.as_paths(many, tokenizer, folder.resolve()))


def _typed(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields as the spec has them; `Usage` for one that it has not, or of another type."""
    kinds = {name: kind for name, kind in get_type_hints(Spec).items() if name != "name"}
    values = {}
    for name, value in fields.items():
        if name not in kinds:
            raise unknown("field of the spec", name, kinds)
        kind = kinds[name]
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        value = float(value) if kind is float and type(value) is int else value
        if type(value) is not kind:
            raise Usage(f"{name}={value!r}: expected {kind.__name__}")
        values[name] = value
    return values
