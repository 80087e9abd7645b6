"""Runs methods on one problem, a record each; an interrupted run can be resumed."""

import traceback
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bench.config.request import Outcome, RunSettings
from bench.distributed import group
from bench.errors import (
    Fault,
    Lost,
    Rejected,
    RunFailed,
    Unavailable,
    Usage,
    out_of_memory,
    reason,
)
from bench.harness import checkpoint, signals
from bench.harness.drive import Diverged, warm_up
from bench.harness.evaluate import HeldOut, Score
from bench.harness.resume import resumed_from
from bench.harness.run import Run
from bench.harness.signals import Stopped
from bench.io.files import new_text
from bench.io.record import Unwritten, Writer, encoded
from bench.problem.oom import MicroBatching
from bench.problem.problem import Problem

KINDS = {kind.code: kind for kind in (Rejected, Unavailable, RunFailed)}


class Harness:
    """Runs methods on one problem and writes a record for each run."""

    def __init__(
        self,
        problem: Problem,
        curve: HeldOut,
        validation: HeldOut,
        spliced: Score,
        clock: dict[str, Any],
        sae_cost: dict[str, Any] | None,
    ) -> None:
        self.problem, self.curve, self.validation = problem, curve, validation
        self.spliced = spliced
        """The `Score` of the bare spliced model on the validation windows."""
        self.clock = clock
        """What seconds depend on: machine, device, threads."""
        self.sae_cost = sae_cost
        """What the SAEs have cost so far: {} for fresh ones, None where it is not known."""
        self.micro_batch = problem.micro.size
        """How many windows a run begins with at once."""
        self._lent = {name: t.clone() for name, t in problem.saes.state_dict().items()}
        self._warm = set()

    def run(self, settings: RunSettings) -> Outcome:
        """One run -> its `Outcome`, its record at `path`, what it trained in the folder beside it.

        Where an attempt before has left a checkpoint the run goes on from there. A method that
        raises or diverges ends its own record with that status. Raises `Usage` where the
        checkpoint is of another method's file, model or text, `Rejected` where none is sound.
        """
        with signals.held():
            outcome = self._run(settings)
        # What is wrong with the command all processes find. After anything else, which one of
        # them alone may have met, they do not go on together.
        if group.world() > 1 and outcome.end == "error" and outcome.code != Usage.code:
            raise KINDS[outcome.code](outcome.why)
        return outcome

    def _run(self, settings: RunSettings) -> Outcome:
        # Of several processes the first one looks for a checkpoint, and writes the record.
        state = resumed_from(settings.path, settings.header) if group.is_first() else None
        resumed, segments, resumed_fields = group.from_first(state)
        lines = resumed["lines"] if resumed else [encoded(settings.header)]
        writer = Writer(settings.path, lines) if group.is_first() else Unwritten()
        micro = MicroBatching(self.micro_batch)
        run, end_fields = Run(self, settings, writer, resumed, segments, micro), {}
        outcome = Outcome("interrupted")
        try:
            self._warm_up(settings.method, settings.config, micro)
            end_fields = run.go()
            outcome = Outcome("finished")
        except Diverged as error:
            outcome = Outcome("diverged", str(error), RunFailed.code)
        except Stopped:
            outcome = Outcome("interrupted", "stopped between two steps")
        except Lost as error:
            outcome = Outcome("error", str(error), error.code)
            raise
        except (Exception, SystemExit) as error:
            outcome = _failed(error, settings.folder)
        finally:
            if self._take_back():
                why = "the method changed the SAEs that it was lent"
                end_fields, outcome = {}, Outcome("error", why, RunFailed.code)
            outcome = _close(writer, outcome, {**end_fields, **run.spent(), **resumed_fields})
        if outcome.end == "finished" and group.is_first():
            checkpoint.clear(settings.folder)
        return outcome

    def _warm_up(self, method: ModuleType, config: object, micro: MicroBatching) -> None:
        """Once for a method and config on this problem.

        Memory that runs out here does so off the clock, and the run begins in smaller parts.
        """
        if (method.__name__, repr(config)) not in self._warm:
            with signals.at_once():
                warm_up(method, self.problem.of_run(micro), config)
            self._warm.add((method.__name__, repr(config)))

    def _take_back(self) -> bool:
        """Put the lent SAEs right again; whether that was needed."""
        now = self.problem.saes.state_dict()
        changed = any(not torch.equal(now[name], self._lent[name]) for name in now)
        if changed:
            self.problem.saes.load_state_dict(self._lent)
        self.problem.saes.requires_grad_(False)
        return changed


def _failed(error: BaseException, folder: Path) -> Outcome:
    """The `Outcome` of a run that raised; the traceback goes into its folder."""
    if isinstance(error, Fault):
        return Outcome("error", str(error), error.code)
    with suppress(Unavailable):
        new_text(folder / "traceback.txt", traceback.format_exc())
    if out_of_memory(error):
        why = f"out of memory ({reason(error)}); lower --batch-size, --seq-len or --sae-width"
        return Outcome("error", why, Unavailable.code)
    return Outcome("error", f"{type(error).__name__}: {error}", RunFailed.code)


def _close(writer: Writer | Unwritten, outcome: Outcome, fields: dict[str, Any]) -> Outcome:
    """Write the end line; a disk that is full by now takes nothing from what is there."""
    try:
        writer.end(
            {"end": outcome.end, **({"reason": outcome.why} if outcome.why else {}), **fields}
        )
    except Unavailable as fault:
        return Outcome("error", outcome.why or str(fault), Unavailable.code)
    return outcome
