"""The command line. Nothing heavy is imported before the arguments are known to be good."""

import shlex
import sys
from argparse import Namespace
from pathlib import Path

from bench.cli.parser import parsed, problem, seeds, setting
from bench.config.request import Request
from bench.config.specs import SPECS, named
from bench.errors import Fault, Unavailable, Usage, out_of_memory
from bench.harness.signals import Interrupted, handling, leave
from bench.io import ranks
from bench.io.console import check_output, say, tolerate


def compare(arguments: Namespace) -> None:
    """`python -m bench compare`."""
    from bench.runs.compare import compare as run

    if arguments.init_adapter:
        arguments.sets.append(f"lora.init={arguments.init_adapter}")
    a, (spec, methods) = arguments, problem(arguments)
    if a.tuned:
        from bench.runs.tuned import chosen

        methods = chosen(Path(a.tuned), spec, methods)
    request = Request(
        spec=spec,
        out=Path(a.out),
        every=a.checkpoint_every,
        fresh=a.fresh,
        micro_batch=a.micro_batch,
        shard_model=a.shard_model,
        force=a.force,
        tuned=Path(a.tuned) if a.tuned else None,
        tracker=a.tracker,
    )
    if ranks.world() > 1:
        from bench.runs.preflight import asks_the_hub, quiet_libraries, set_environment

        set_environment(online=asks_the_hub(spec))  # before anything imports the libraries
        quiet_libraries()
        from bench.runs import torchrun

        ended = torchrun.compare(request, methods, seeds(a.seeds))
    else:
        ended = run(request, methods, seeds(a.seeds))
    if ended:  # only the first of several processes holds it
        from bench.cli import show

        show.comparison(request.out, ended)


def tune(arguments: Namespace) -> None:
    """`python -m bench tune`."""
    from bench.runs.tune import tune as run

    a, (spec, methods) = arguments, problem(arguments)
    run(Request(spec, Path(a.out), every=a.checkpoint_every, force=a.force), methods)


def speed(arguments: Namespace) -> None:
    """`python -m bench speed`."""
    from bench.speed.speed import speed as run

    # One window of 1,024 tokens, as the paper's code steps.
    defaults: dict[str, object] = {"batch_size": 1, "seq_len": 1024}
    # A step takes as long whatever its SAE has learnt; on random weights none was ever trained.
    if arguments.weights == "random" or named(arguments.spec).sae == "own":
        defaults["sae"] = "fresh"
    spec, methods = problem(arguments, **defaults)
    a = arguments
    run(spec, methods, a.pairs, a.out, a.plain_dtype, a.best_batch)


def experiment(arguments: Namespace) -> None:
    """`python -m bench experiment`."""
    from bench.experiments.experiment import experiment as run

    a = arguments
    ended = run(a.names, a.scale, a.out, a.dry_run, a.fresh, a.checkpoint_every, a.minutes)
    if ended:
        from bench.cli import show

        show.experiments(ended)


def check(arguments: Namespace) -> None:
    """`python -m bench check`."""
    from bench.evals.check import check as run

    run(setting(arguments))


def export(arguments: Namespace) -> None:
    """`python -m bench export`."""
    from bench.cli import show
    from bench.export.export import export as run

    run(arguments.run, arguments.to, show.closed)


def downstream(arguments: Namespace) -> None:
    """`python -m bench downstream`; with `--saebench` alone no benchmark is run."""
    from bench.evals import saebench
    from bench.evals.downstream import TASKS
    from bench.evals.downstream import downstream as evaluate
    from bench.runs import process

    a = arguments
    if a.saebench:
        process.call(saebench.core, a.run, a.saebench)
    if a.tasks is not None or not a.saebench:
        tasks = TASKS if a.tasks is None else [task for task in a.tasks.split(",") if task]
        process.call(evaluate, a.run, tasks, a.limit, a.to, a.include_path)


def verify(arguments: Namespace) -> None:
    """`python -m bench verify`."""
    from bench.io.verify import verify as run

    run(arguments.paths)


def submit(arguments: Namespace) -> None:
    """`python -m bench submit`."""
    from bench.cli import show
    from bench.io.verify import verify as check

    check([arguments.folder])
    show.submitted(Path(arguments.folder), Path(arguments.board), arguments.name)


def specs(arguments: Namespace) -> None:
    """`python -m bench specs`."""
    for spec in SPECS.values():
        say(f"{spec.name}: {spec.model}, SAE {spec.sae} at {spec.site}, text {spec.text}")


def methods(arguments: Namespace) -> None:
    """`python -m bench methods`."""
    from bench.config import method_files

    for name in method_files.names():
        say(f"{name}: {method_files.summary(name)}")


def main() -> int:
    """Run the command; a `Fault` is one line on stderr and its exit code."""
    known = (compare, tune, experiment, speed, check, export, downstream, verify, submit)
    commands = {run.__name__: run for run in (*known, specs, methods)}
    if sys.argv[1:2] == ["analysis"]:  # has a parser of its own
        from bench.cli import show

        return show.analysed(sys.argv[2:])
    tolerate()
    try:
        with handling(leave):
            arguments = parsed()
            if ranks.world() > 1 and arguments.command != "compare":
                raise Usage(f"torchrun: only for compare, not for {arguments.command}")
            commands[arguments.command](arguments)
            check_output()
    except Fault as fault:
        tell(fault)
        return fault.code
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        tell("out of memory; lower --batch-size or --seq-len")
        return Unavailable.code
    except Interrupted as stop:
        again = "to race anew" if sys.argv[1:2] == ["speed"] else "to go on"
        tell(f"{stop}: stopped; {again}: {same_command()}")
        return stop.code
    return 0


def tell(message: object) -> None:
    """The one line on stderr; of several processes each says which it is."""
    who = f" rank {ranks.rank()}:" if ranks.world() > 1 else ""
    print(f"bench:{who} {message}", file=sys.stderr, flush=True)


def same_command() -> str:
    """What was typed, to be typed again; `--fresh` would begin again."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--fresh"]
    return f"{ranks.start_as_typed()} {shlex.join(arguments)}"
