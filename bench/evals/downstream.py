"""`python -m bench downstream RUN`: HellaSwag, MMLU and TruthfulQA around a run's SAE, by lm-eval.

Each task is asked of the clean, the spliced and the adapted model, and of the adapted one without
the SAE where something besides the SAE was trained. One JSON file beside the run is the record.
"""

import difflib
import importlib.util
import json
import math
from functools import cache
from importlib.metadata import version
from pathlib import Path

from bench.errors import Rejected, Unavailable, Usage, out_of_memory, reason
from bench.evals.measures import about
from bench.export import export, reload
from bench.io import console
from bench.io.console import say
from bench.io.files import new_text
from bench.io.record import digest
from bench.loading import hub, models

TASKS = ("hellaswag", "mmlu", "truthfulqa_mc1")
DATA = {
    "hellaswag": "Rowan/hellaswag",
    "mmlu": "cais/mmlu",
    "truthfulqa_mc1": "truthfulqa/truthful_qa",
    "truthfulqa_mc2": "truthfulqa/truthful_qa",
}
"""What these tasks read from the hub, which is asked for it before lm-eval waits for it."""
SCORED = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")
"""The kinds of task that whole windows are enough for."""


def downstream(run, tasks=TASKS, limit=None, to=None, include_path=None):
    """Evaluate the models of a finished run (its record, or the folder beside it) -> the record.

    `tasks` are lm-eval's names (those in the folder `include_path` too), `limit` the number of
    documents of each, `to` where the record goes: by default `downstream-xxxxxxxx.json` beside
    the run. Raises `Unavailable` where lm-eval or a task's data cannot be had from here.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise Unavailable("downstream asks lm-eval: pip install -e '.[downstream]'")
    if limit is not None and limit < 1:
        raise Usage(f"--limit must be at least 1, got {limit}")
    if include_path and not Path(include_path).is_dir():
        raise Usage(f"--include-path {include_path}: expected a folder of lm-eval tasks")
    run, tasks = export.finished(run), list(dict.fromkeys(tasks))
    spec = reload.spec_of(run)
    if spec.weights == "random":
        raise Usage(f"{run.path}: the model's weights are random, no score means anything")
    path = Path(to) if to else run.path.with_name(f"{record_name(run, tasks, limit)}.json")
    head = about("downstream", run)
    known = manager(str(include_path) if include_path else None)
    found = evaluate(run, spec, load(tasks, known), limit, known)
    record = {
        **head,
        "lm_eval": version("lm_eval"),
        "tasks": tasks,
        "limit": limit,
        **found,
    }
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    new_text(path, text)
    say(f"\n{table(record)}\n\nwritten: {path}")
    return record


def record_name(run, tasks, limit):
    """downstream-xxxxxxxx: eight hex digits of what makes it the same evaluation."""
    asked = {"of": run.name, "tasks": list(tasks), "limit": limit, "lm_eval": version("lm_eval")}
    return f"downstream-{digest(asked)[:8]}"


def load(tasks, known):
    """The tasks with their data, each a task or a group of lm-eval's, in a list."""
    if not tasks:
        raise Usage(f"--tasks is empty: expected some of lm-eval's, such as {', '.join(TASKS)}")
    for name in tasks:
        check_task(name, known.all_tasks)
        if name in DATA and _is_lm_evals(known.task_index[name]):
            ask(name)
    with console.others_quiet():
        return [part for name in tasks for part in _loaded(known, name)]


def _is_lm_evals(entry):
    """Whether a task is the one that lm-eval brings, and not of a user's folder."""
    import lm_eval

    return Path(entry.yaml_path).is_relative_to(Path(lm_eval.__file__).parent)


@cache
def manager(include_path):
    """What knows lm-eval's tasks and those of a folder; it reads thousands of files, so once."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def check_task(name, known):
    """Raise `Usage` for a task that lm-eval has not, with the nearest name."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"expected such as {', '.join(TASKS)}"
        raise Usage(f"unknown task '{name}': {hint}")


def ask(name):
    """Raise `Unavailable` at once where the hub does not answer for a task's data.

    With HF_HUB_OFFLINE it is for `datasets` to say whether it has them.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return
    try:
        hub.reach(DATA[name], kind="dataset")
    except Unavailable as fault:
        raise Unavailable(f"the data of the task '{name}': {fault}") from None


def _loaded(known, name):
    """The group or the tasks of one name."""
    from bench.evals.likelihood import GENERATES

    try:
        found = known.load([name])
    except Exception as error:  # whatever datasets, the hub's client or a task's file raises
        if out_of_memory(error):
            raise
        fault = Unavailable if hub.from_network(error) else Rejected
        raise fault(f"the task '{name}' cannot be loaded ({reason(error)})") from None
    for task in found["tasks"].values():
        if task.OUTPUT_TYPE not in SCORED:
            raise Usage(f"the task '{task.task_name}' {GENERATES}")
    groups = found.get("groups", {})
    return [groups[name]] if name in groups else list(found["tasks"].values())


def evaluate(run, spec, loaded, limit, known):
    """What lm-eval makes of each model of a run: `values` by model and task, and what is of all."""
    from lm_eval import simple_evaluate

    from bench.evals.likelihood import WindowLM

    problem, adapted = reload.restore(run.path)
    tokenizer = models.load_tokenizer(models.locate(spec.model, spec.weights))
    models.check_tokenizer(tokenizer, "of the tasks")
    values = {}
    for which in reload.there_are(problem, adapted):
        say(f"{which}: {', '.join(names(loaded))}")
        with reload.placed(problem, adapted, which), console.others_quiet():
            lm = WindowLM(problem, tokenizer, spec.prepend_bos)
            found = simple_evaluate(
                lm, tasks=loaded, limit=limit, task_manager=known, log_samples=False
            )
        values[which] = scores(found)
    return {
        "versions_of_tasks": found["versions"],
        "shots": found["n-shot"],
        "truncated": lm.truncated,
        "values": values,
    }


def names(loaded):
    """What tasks and groups are called."""
    return [getattr(part, "task_name", None) or part.name for part in loaded]


def scores(found):
    """lm-eval's results as {task: {metric, metric_stderr, n}}; null where it is not a number."""
    results = {**found["results"], **found.get("groups", {})}
    counts = found["n-samples"]
    return {
        task: {
            **{key.removesuffix(",none"): number(v) for key, v in result.items() if "," in key},
            "n": counts[task]["effective"] if task in counts else result.get("sample_len"),
        }
        for task, result in results.items()
    }


def number(value):
    """A finite number, or None."""
    real = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if real else None


def table(record):
    """The tasks that were asked for, a line for each metric."""
    values = record["values"]
    lines = [["task", "metric", *values]]
    first = next(iter(values.values()))
    for task in [name for name in record["tasks"] if name in first] or list(first):
        for metric in first[task]:
            if metric != "n" and not metric.endswith("_stderr"):
                cells = [_cell(values[which][task], metric) for which in values]
                lines.append([task, metric, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pad = "  ".join
    return "\n".join(
        pad(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(result, metric):
    value, error = result[metric], result.get(f"{metric}_stderr")
    told = "not a number" if value is None else f"{value:.4f}"
    return told if error is None else f"{told} ± {error:.4f}"
