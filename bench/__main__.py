"""The command line. Nothing heavy is imported before the arguments are known to be good."""

import argparse
import dataclasses
import math
import shlex
import sys
from typing import get_type_hints

from bench import __version__
from bench.errors import Fault, Unavailable, Usage, out_of_memory
from bench.interrupts import Interrupted, handling, leave
from bench.order import EVERY
from bench.spec import Spec, documentation, flag
from bench.specs import SPECS, named


class Parser(argparse.ArgumentParser):
    """argparse that ends a wrong command with one line."""

    def error(self, message):
        raise Usage(f"{message} (see {self.prog} --help)")


def parser():
    """The parser of `python -m bench`."""
    top = Parser(prog="python -m bench", description=__import__("bench").__doc__)
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)
    compare = commands.add_parser("compare", help="run methods on one problem; table and figure")
    compare.add_argument("--seeds", default="0", help="comma-separated, one run each")
    compare.add_argument("--fresh", action="store_true", help="run again what is already done")
    compare.add_argument("--init-adapter", metavar="DIR", help="where lora starts: a PEFT adapter")
    compare.add_argument("--force", action="store_true", help="even with an SAE that check doubts")
    add_every(compare)
    add_problem(compare, methods="lora,e2e")
    speed = commands.add_parser("speed", help="our step against plain Hugging Face and PEFT")
    speed.add_argument("--pairs", type=int, default=5, help="timed pairs of steps (default: 5)")
    add_problem(speed, methods="lora:rank=64,lora:rank=64:layers=all,e2e")
    experiment = commands.add_parser("experiment", help="the papers' experiments, what is missing")
    experiment.add_argument("names", nargs="+", metavar="NAME", help="such as timing, rivals; all")
    experiment.add_argument("--scale", default="laptop", help="laptop (default) or full")
    experiment.add_argument("--out", help="folder of the records (default: results/SCALE)")
    experiment.add_argument("--dry-run", action="store_true", help="list the runs, run none")
    experiment.add_argument("--fresh", action="store_true", help="run again what is already done")
    add_every(experiment)
    check = commands.add_parser("check", help="does the SAE belong at its site, and if not, why")
    add_spec(check)
    export = commands.add_parser("export", help="what a run trained, for PEFT and SAELens")
    export.add_argument("run", help="a run's record, such as runs/lora-e7c49a90.jsonl")
    export.add_argument("--to", required=True, metavar="DIR", help="a new folder")
    downstream = commands.add_parser("downstream", help="benchmarks around a run's SAE, by lm-eval")
    downstream.add_argument("run", help="a run's record, such as runs/lora-e7c49a90.jsonl")
    downstream.add_argument("--tasks", help="default: hellaswag,mmlu,truthfulqa_mc1")
    downstream.add_argument("--limit", type=int, metavar="N", help="documents of each task")
    downstream.add_argument("--to", metavar="FILE", help="the record (default: beside the run)")
    downstream.add_argument("--include-path", metavar="DIR", help="a folder of own lm-eval tasks")
    downstream.add_argument("--saebench", metavar="FILE", help="SAEBench's core numbers, only they")
    verify = commands.add_parser("verify", help="are these records sound; a line for each fault")
    verify.add_argument("paths", nargs="+", metavar="PATH", help="folders of records, or files")
    commands.add_parser("specs", help="the named specs, one line each")
    commands.add_parser("methods", help="the methods, one line each")
    return top


def add_every(command):
    """`--checkpoint-every`."""
    text = f"seconds between checkpoints (default: {EVERY:g}); 0: after every step"
    command.add_argument("--checkpoint-every", type=seconds, default=EVERY, help=text, metavar="X")


def add_problem(command, methods):
    """What is run on what: `--methods`, `--set`, `--out`, `--spec` and the fields of the spec."""
    command.add_argument("--methods", default=methods, help="comma-separated; lora:rank=64 sets")
    command.add_argument(
        "--set", action="append", default=[], metavar="METHOD.FIELD=VALUE", dest="sets"
    )
    command.add_argument("--out", default="runs", help="folder of the records (default: runs)")
    add_spec(command)


def add_spec(command):
    """`--spec` and the fields of the spec."""
    command.add_argument("--spec", default=Spec.name, help="a named setting (see `specs`)")
    fields = command.add_argument_group("fields of the spec (default: as the spec says)")
    types, texts = get_type_hints(Spec), documentation()
    for field in dataclasses.fields(Spec):
        if field.name != "name":
            kind = {bool: boolean, float: finite}.get(types[field.name], types[field.name])
            # A switch may be given alone: --cache-clean is --cache-clean true.
            alone = {"nargs": "?", "const": True} if kind is boolean else {}
            told = {"help": texts[field.name], "metavar": kind_name(kind)}
            fields.add_argument(flag(field.name), type=kind, dest=field.name, **alone, **told)


def kind_name(kind):
    """What stands for a value in the help."""
    return {boolean: "true|false", int: "N", finite: "X"}.get(kind, "NAME")


def boolean(text):
    """`true` or `false`."""
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def finite(text):
    """A number that is neither infinite nor NaN."""
    if not math.isfinite(float(text)):
        raise ValueError
    return float(text)


def seconds(text):
    """A number that is finite and not negative."""
    if finite(text) < 0:
        raise ValueError
    return float(text)


def seeds(text):
    """`0,1,2` -> (0, 1, 2)."""
    numbers = text.split(",")
    if not all(number.strip().isdecimal() and len(number) < 10 for number in numbers):
        raise Usage(f"--seeds '{text}': expected whole numbers such as 0,1,2")
    return tuple(dict.fromkeys(map(int, numbers)))


def compare(arguments):
    """`python -m bench compare`."""
    from bench.compare import compare as run

    spec, labels = problem(arguments)
    if arguments.init_adapter:
        arguments.sets.append(f"lora.init={arguments.init_adapter}")
    run(
        spec,
        labels,
        arguments.sets,
        seeds(arguments.seeds),
        arguments.out,
        arguments.fresh,
        arguments.force,
        arguments.checkpoint_every,
    )


def speed(arguments):
    """`python -m bench speed`."""
    from bench.speed import speed as run

    # One window of 1,024 tokens, as the paper's code steps.
    spec, labels = problem(arguments, batch_size=1, seq_len=1024)
    run(spec, labels, arguments.sets, arguments.pairs, arguments.out)


def experiment(arguments):
    """`python -m bench experiment`."""
    from bench.experiment import experiment as run

    a = arguments
    run(a.names, a.scale, a.out, a.dry_run, a.fresh, a.checkpoint_every)


def check(arguments):
    """`python -m bench check`."""
    from bench.check import check as run

    run(setting(arguments))


def export(arguments):
    """`python -m bench export`."""
    from bench.export import export as run

    run(arguments.run, arguments.to)


def downstream(arguments):
    """`python -m bench downstream`; with `--saebench` alone no benchmark is run."""
    if arguments.saebench:
        from bench.sae_bench import core

        core(arguments.run, arguments.saebench)
    if arguments.tasks is not None or not arguments.saebench:
        from bench.downstream import TASKS
        from bench.downstream import downstream as run

        given = arguments.tasks
        tasks = TASKS if given is None else [task for task in given.split(",") if task]
        run(arguments.run, tasks, arguments.limit, arguments.to, arguments.include_path)


def verify(arguments):
    """`python -m bench verify`."""
    from bench.verify import verify as run

    run(arguments.paths)


def problem(arguments, **defaults):
    """(the spec with what the command line changes, the labels of the methods)."""
    labels = [label for label in arguments.methods.split(",") if label]
    return setting(arguments, **defaults), labels


def setting(arguments, **defaults):
    """The named spec with what the command line changes."""
    names = [field.name for field in dataclasses.fields(Spec)]
    given = {n: v for n, v in vars(arguments).items() if n in names and v is not None}
    return named(arguments.spec, **{**defaults, **given})


def specs(arguments):
    """`python -m bench specs`."""
    for spec in SPECS.values():
        print(f"{spec.name}: {spec.model}, SAE {spec.sae} at {spec.site}, text {spec.text}")


def methods(arguments):
    """`python -m bench methods`."""
    from bench import method

    for name in method.names():
        print(f"{name}: {method.summary(name)}")


def main():
    """Run the command; a `Fault` is one line on stderr and its exit code."""
    known = (compare, experiment, speed, check, export, downstream, verify, specs, methods)
    commands = {run.__name__: run for run in known}
    try:
        with handling(leave):
            arguments = parser().parse_args()
            commands[arguments.command](arguments)
    except Fault as fault:
        print(f"bench: {fault}", file=sys.stderr)
        return fault.code
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        print("bench: out of memory; lower --batch-size or --seq-len", file=sys.stderr)
        return Unavailable.code
    except Interrupted as signal:
        print(f"bench: {signal}: stopped; to go on: {same_command()}", file=sys.stderr)
        return signal.code
    return 0


def same_command():
    """What was typed, to be typed again; `--fresh` would begin again."""
    given = [argument for argument in sys.argv[1:] if argument != "--fresh"]
    return shlex.join(["python", "-m", "bench", *given])


if __name__ == "__main__":
    sys.exit(main())
