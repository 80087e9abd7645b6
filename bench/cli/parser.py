"""What may be typed after `python -m bench`. Nothing heavy is imported here."""

import dataclasses
import math
import os
from argparse import Namespace
from collections.abc import Callable
from typing import Any, get_type_hints

from bench import __version__
from bench.config.method import MethodRequest, requested
from bench.config.request import EVERY, TRACKERS
from bench.config.spec import CHOICES, Spec, documentation, flag
from bench.config.specs import named
from bench.errors import Usage
from bench.io import ranks
from bench.io.console import Parser, check_output

SPEED = (
    "Times our step and that of plain Hugging Face and PEFT in turn, on one window of 1,024 tokens "
    "(--batch-size, --seq-len). In place of an own SAE, which is trained first (--sae own), it has "
    "a fresh one: a step takes as long. A race that is broken off keeps its pairs in "
    "*.partial.json; the next one begins anew."
)
TUNE = (
    "Finds the step size of each method: four rates a factor of 2.5 apart, and more, up to eight, "
    "until the best is none of the outermost. The best has the least KL to the clean model, on "
    "windows that serve nothing else and around an SAE of another seed. What is chosen goes into "
    "FOLDER/tuned.json, for compare --tuned FOLDER. Broken off, the same command goes on."
)
PLAIN_DTYPE = "number format of the plain side's LM (default: that of --dtype)"


def parser() -> Parser:
    """The parser of `python -m bench`."""
    top = Parser(
        prog=ranks.start_of_command(),
        description=__import__("bench").__doc__,
        epilog="analysis FOLDER, or python -m analysis FOLDER: tables and figures of records",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=Parser
    )
    text = "run methods on one problem; table and figure"
    add_compare(commands.add_parser("compare", help=text))
    add_tune(commands.add_parser("tune", help="the step size of each method", description=TUNE))
    text = "our step against plain Hugging Face and PEFT"
    speed = commands.add_parser("speed", help=text, description=SPEED)
    speed.add_argument("--pairs", type=int, default=5, help="timed pairs of steps (default: 5)")
    speed.add_argument("--plain-dtype", choices=CHOICES["dtype"], help=PLAIN_DTYPE)
    speed.add_argument("--best-batch", action="store_true", help="each side also at its best batch")
    add_problem(speed, methods="lora:rank=64,e2e")
    experiment = commands.add_parser("experiment", help="the papers' experiments, what is missing")
    experiment.add_argument(
        "names", nargs="+", metavar="NAME", help="such as timing, rivals; or all"
    )
    experiment.add_argument("--scale", default="laptop", help="laptop (default), full, ...")
    experiment.add_argument("--out", help="folder of the records (default: results/SCALE)")
    text = "end before a run that would end after so many minutes (default: do all)"
    experiment.add_argument("--minutes", type=seconds, default=math.inf, help=text, metavar="X")
    experiment.add_argument("--dry-run", action="store_true", help="list the runs, run none")
    experiment.add_argument("--fresh", action="store_true", help="run again what is already done")
    add_every(experiment)
    check = commands.add_parser("check", help="does the SAE belong at its site, and if not, why")
    add_spec(check)
    export = commands.add_parser("export", help="what a run trained, for PEFT and SAELens")
    export.add_argument("run", help="a run's record, such as runs/lora-xxxxxxxx.jsonl")
    export.add_argument("--to", required=True, metavar="DIR", help="a new folder")
    downstream = commands.add_parser("downstream", help="benchmarks around a run's SAE, by lm-eval")
    downstream.add_argument("run", help="a run's record, such as runs/lora-xxxxxxxx.jsonl")
    downstream.add_argument("--tasks", help="default: hellaswag,mmlu,truthfulqa_mc1")
    downstream.add_argument("--limit", type=int, metavar="N", help="documents of each task")
    downstream.add_argument("--to", metavar="FILE", help="the record (default: beside the run)")
    downstream.add_argument("--include-path", metavar="DIR", help="a folder of own lm-eval tasks")
    downstream.add_argument("--saebench", metavar="FILE", help="SAEBench's core numbers, only they")
    verify = commands.add_parser("verify", help="are these records sound; a line for each fault")
    verify.add_argument("paths", nargs="+", metavar="PATH", help="folders of records, or files")
    submit = commands.add_parser("submit", help="add a comparison of several seeds to the board")
    submit.add_argument("folder", help="a folder of records, such as runs")
    submit.add_argument("--name", metavar="NAME", help="its name there (default: the folder's)")
    text = "folder of the board (default: results/board)"
    submit.add_argument("--board", default="results/board", metavar="DIR", help=text)
    commands.add_parser("specs", help="the named specs, one line each")
    commands.add_parser("methods", help="the methods, one line each")
    return top


def add_compare(compare: Parser) -> None:
    """What `compare` takes."""
    text = "comma-separated, one run each (default: 0)"
    compare.add_argument("--seeds", default="0", help=text)
    compare.add_argument("--fresh", action="store_true", help="run again what is already done")
    compare.add_argument("--init-adapter", metavar="DIR", help="where lora starts: a PEFT adapter")
    text = "windows that go through the model at once (default: the batch, halved until it fits)"
    compare.add_argument("--micro-batch", type=int, metavar="N", help=text)
    text = "under torchrun: spread the LM's blocks over the devices (FSDP2)"
    compare.add_argument("--shard-model", action="store_true", help=text)
    compare.add_argument("--force", action="store_true", help="even with an SAE that check doubts")
    text = "step sizes that tune has chosen, where a method does not set its own"
    compare.add_argument("--tuned", metavar="FOLDER", help=text)
    text = "show the records there as well, each when its run has ended: " + ", ".join(TRACKERS)
    compare.add_argument("--tracker", choices=TRACKERS, metavar="NAME", help=text)
    add_every(compare)
    add_problem(compare, methods="lora,e2e")


def add_tune(tune: Parser) -> None:
    """What `tune` takes."""
    tune.set_defaults(sets=[])
    tune.add_argument(
        "methods", metavar="METHODS", help="comma-separated, such as lora,e2e:decay=1"
    )
    text = "folder of the records and of tuned.json (default: runs/tuning)"
    tune.add_argument("--out", default="runs/tuning", metavar="FOLDER", help=text)
    tune.add_argument("--force", action="store_true", help="even with an SAE that check doubts")
    add_every(tune)
    add_spec(tune)


def add_every(command: Parser) -> None:
    """`--checkpoint-every`."""
    text = f"seconds between checkpoints (default: {EVERY:g}); 0: after every step"
    command.add_argument("--checkpoint-every", type=seconds, default=EVERY, help=text, metavar="X")


def add_problem(command: Parser, methods: str) -> None:
    """What is run on what: `--methods`, `--set`, `--out`, `--spec` and the fields of the spec."""
    command.add_argument(
        "--methods",
        default=methods,
        help=f"comma-separated; lora:rank=64 sets a field, lora:steps=64 the run's own number of "
        f"steps, steps=4x as a factor (default: {methods})",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="METHOD.FIELD=VALUE",
        dest="sets",
        help="a field of a method, in all its runs",
    )
    command.add_argument("--out", default="runs", help="folder of the records (default: runs)")
    add_spec(command)


def add_spec(command: Parser) -> None:
    """`--spec` and the fields of the spec."""
    text = f"a named setting, see `specs` (default: {Spec.name})"
    command.add_argument("--spec", default=Spec.name, help=text)
    fields = command.add_argument_group(f"fields of the spec (in brackets: those of {Spec.name})")
    types, texts = get_type_hints(Spec), documentation()
    for field in dataclasses.fields(Spec):
        if field.name != "name":
            kind = {bool: boolean, float: finite}.get(types[field.name], types[field.name])
            # A switch may be given alone: --cache-clean is --cache-clean true.
            alone: dict[str, Any] = {"nargs": "?", "const": True} if kind is boolean else {}
            default = str(field.default).lower() if kind is boolean else field.default
            text = f"{texts[field.name]} ({default})" if default != "" else texts[field.name]
            alone |= {"help": text, "metavar": kind_name(kind)}
            fields.add_argument(flag(field.name), type=kind, dest=field.name, **alone)


PATHS = ["out", "tuned", "to", "run", "paths", "folder", "board"]
PATHS += ["init_adapter", "include_path", "saebench"]
"""Arguments that are paths; those of the spec are expanded by what reads them."""


def parsed() -> Namespace:
    """The arguments of the command line; `~` is expanded also where no shell does, as in
    `--out=~/runs`."""
    try:
        arguments = parser().parse_args()
    except SystemExit:  # after --help or --version
        check_output()
        raise
    for name in PATHS:
        value = getattr(arguments, name, None)
        if isinstance(value, str):
            setattr(arguments, name, os.path.expanduser(value))
        elif value:
            setattr(arguments, name, [os.path.expanduser(one) for one in value])
    return arguments


def kind_name(kind: Callable[[str], Any]) -> str:
    """What stands for a value in the help."""
    return {boolean: "true|false", int: "N", finite: "X"}.get(kind, "NAME")


def boolean(text: str) -> bool:
    """`true` or `false`."""
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def finite(text: str) -> float:
    """A number that is neither infinite nor NaN."""
    if not math.isfinite(float(text)):
        raise ValueError
    return float(text)


def seconds(text: str) -> float:
    """A number that is finite and not negative."""
    if finite(text) < 0:
        raise ValueError
    return float(text)


def seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` -> (0, 1, 2)."""
    numbers = text.split(",")
    if not all(number.strip().isdecimal() and len(number) < 10 for number in numbers):
        raise Usage(f"--seeds '{text}': expected whole numbers such as 0,1,2")
    return tuple(dict.fromkeys(map(int, numbers)))


def problem(arguments: Namespace, **defaults: object) -> tuple[Spec, list[MethodRequest]]:
    """(the spec with what the command line changes, the methods)."""
    labels = [label for label in arguments.methods.split(",") if label]
    return setting(arguments, **defaults), requested(labels, arguments.sets)


def setting(arguments: Namespace, **defaults: object) -> Spec:
    """The named spec with what the command line changes."""
    names = [field.name for field in dataclasses.fields(Spec)]
    changes = {n: v for n, v in vars(arguments).items() if n in names and v is not None}
    if changes.get("device") == "auto":
        from bench.devices import available  # torch

        changes["device"] = available()[0]
    return named(arguments.spec, **{**defaults, **changes})
