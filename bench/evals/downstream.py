"""`python -m bench downstream RUN`: HellaSwag, MMLU and TruthfulQA around a run's SAE, by lm-eval.

Each task is asked of the clean, the spliced and the adapted model, and of the adapted one without
the SAE where something besides the SAE was trained. One JSON file beside the run is the record.
"""

import difflib
import importlib.util
import json
import math
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config.spec import Spec
from bench.errors import Rejected, Unavailable, Usage, out_of_memory, reason
from bench.evals.measures import about
from bench.export import artefacts, reload
from bench.io import console
from bench.io.console import say
from bench.io.files import new_text
from bench.io.record import Run, digest
from bench.loading import hub, models

if TYPE_CHECKING:  # an extra
    from lm_eval.tasks import TaskManager

TASKS = ("hellaswag", "mmlu", "truthfulqa_mc1")
DATA = {
    "hellaswag": "Rowan/hellaswag",
    "mmlu": "cais/mmlu",
    "truthfulqa_mc1": "truthfulqa/truthful_qa",
    "truthfulqa_mc2": "truthfulqa/truthful_qa",
}
"""The data sets that these tasks read; the hub is asked for them before lm-eval waits for it."""
SCORED = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")
"""The kinds of task that whole windows are enough for."""


def downstream(
    source: str | Path,
    tasks: Iterable[str] = TASKS,
    limit: int | None = None,
    to: str | Path | None = None,
    include_path: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate the models of a finished run -> the record of the evaluation.

    `source` is the run's record or the folder beside it, `tasks` are names of lm-eval or of the
    folder `include_path`, `limit` is the number of documents of each. The record goes to `to`, by
    default `downstream-xxxxxxxx.json` beside the run. Raises `Unavailable` where lm-eval or a
    task's data cannot be reached.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise Unavailable("downstream asks lm-eval: pip install -e '.[downstream]'")
    if limit is not None and limit < 1:
        raise Usage(f"--limit must be at least 1, got {limit}")
    if include_path and not Path(include_path).is_dir():
        raise Usage(f"--include-path {include_path}: expected a folder of lm-eval tasks")
    run, tasks = artefacts.finished(source), list(dict.fromkeys(tasks))
    spec = reload.spec_of(run)
    if spec.weights == "random":
        raise Usage(f"{run.path}: the model's weights are random, no score means anything")
    # The same evaluation has the same eight hex digits in its name.
    request = {"lm_eval": version("lm_eval"), "tasks": tasks, "limit": limit}
    name = f"downstream-{digest({'of': run.name, **request})[:8]}.json"
    path = Path(to) if to else run.path.with_name(name)
    record = {**about("downstream", run), **request}
    manager = task_manager(str(include_path) if include_path else None)
    record |= evaluate(run, spec, load(tasks, manager), limit, manager)
    new_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    say(f"\n{table(record)}\n\nwritten: {path}")
    return record


@cache
def task_manager(include_path: str | None) -> "TaskManager":
    """lm-eval's manager of its own tasks and a folder's; it reads thousands of files, so once."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def load(tasks: list[str], manager: "TaskManager") -> list[Any]:
    """The tasks and groups of lm-eval with these names, and their data.

    Raises `Usage` for a name that lm-eval does not know or a task that generates, `Unavailable`
    where the hub does not answer for a task's data.
    """
    import lm_eval

    if not tasks:
        raise Usage(f"--tasks is empty: expected some of lm-eval's, such as {', '.join(TASKS)}")
    for name in tasks:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"expected such as {', '.join(TASKS)}"
            raise Usage(f"unknown task '{name}': {hint}")
        file = Path(manager.task_index[name].yaml_path)
        if name in DATA and file.is_relative_to(Path(lm_eval.__file__).parent):
            _ask_hub(name)
    with console.others_quiet():
        return [part for name in tasks for part in _loaded(manager, name)]


def _ask_hub(name: str) -> None:
    """Raise `Unavailable` at once; with HF_HUB_OFFLINE `datasets` says whether it has the data."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return
    try:
        hub.reach(DATA[name], kind="dataset")
    except Unavailable as fault:
        raise Unavailable(f"the data of the task '{name}': {fault}") from None


def _loaded(manager: "TaskManager", name: str) -> list[Any]:
    """The group or the tasks of one name."""
    from bench.evals.likelihood import GENERATES

    try:
        loaded = manager.load([name])
    except Exception as error:  # whatever datasets, the hub's client or a task's file raises
        if out_of_memory(error):
            raise
        fault = Unavailable if hub.from_network(error) else Rejected
        raise fault(f"the task '{name}' cannot be loaded ({reason(error)})") from None
    for task in loaded["tasks"].values():
        if task.OUTPUT_TYPE not in SCORED:
            raise Usage(f"the task '{task.task_name}' {GENERATES}")
    groups = loaded.get("groups", {})
    return [groups[name]] if name in groups else list(loaded["tasks"].values())


def evaluate(
    run: Run, spec: Spec, tasks: list[Any], limit: int | None, manager: "TaskManager"
) -> dict[str, Any]:
    """lm-eval's results for each model of a run: `values` by model and task; the rest is of all."""
    from lm_eval import simple_evaluate

    from bench.evals.likelihood import WindowLM

    problem, adapted = reload.restore(run.path)
    tokenizer = models.load_tokenizer(models.locate(spec.model, spec.weights))
    models.check_tokenizer(tokenizer, "of the tasks")
    names = [getattr(task, "task_name", None) or task.name for task in tasks]
    values = {}
    for which in reload.there_are(problem, adapted):
        say(f"{which}: {', '.join(names)}")
        with reload.placed(problem, adapted, which), console.others_quiet():
            lm = WindowLM(problem, tokenizer, spec.prepend_bos)
            results = simple_evaluate(
                lm, tasks=tasks, limit=limit, task_manager=manager, log_samples=False
            )
        values[which] = scores(results)
    return {
        "versions_of_tasks": results["versions"],
        "shots": results["n-shot"],
        "truncated": lm.truncated,
        "values": values,
    }


def scores(results: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """lm-eval's results as {task: {metric, metric_stderr, n}}; None where there is no number."""
    counts = results["n-samples"]
    return {
        task: {
            **{key.removesuffix(",none"): _number(v) for key, v in values.items() if "," in key},
            "n": counts[task]["effective"] if task in counts else values.get("sample_len"),
        }
        for task, values in {**results["results"], **results.get("groups", {})}.items()
    }


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def table(record: dict[str, Any]) -> str:
    """The tasks that were asked for, a line for each metric, a column for each model."""
    values = record["values"]
    lines = [["task", "metric", *values]]
    first = next(iter(values.values()))
    for task in [name for name in record["tasks"] if name in first] or list(first):
        for metric in first[task]:
            if metric != "n" and not metric.endswith("_stderr"):
                cells = [_cell(values[which][task], metric) for which in values]
                lines.append([task, metric, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (map(str.ljust, line, widths) for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def _cell(result: dict[str, float | None], metric: str) -> str:
    value, error = result[metric], result.get(f"{metric}_stderr")
    text = "not a number" if value is None else f"{value:.4f}"
    return text if error is None else f"{text} ± {error:.4f}"
