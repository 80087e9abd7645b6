"""Runs methods on one problem, a record each; an interrupted run can be resumed.

`Harness` has what the runs share, `Run` is one of them: from its start, or from a checkpoint, to
its end or as far as it gets.
"""

import math
import shutil
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bench.config.request import Outcome, RunSettings
from bench.distributed import group, shares
from bench.errors import Fault, Lost, RunFailed, Unavailable, Usage, out_of_memory, reason
from bench.harness import checkpoint, signals
from bench.harness.drive import Diverged, drive, evaluating, seed_all, snapshot, warm_up
from bench.harness.evaluate import HeldOut, Score, by_site, mean, measure, of_saes
from bench.harness.meter import Meter
from bench.harness.resume import resumed_from
from bench.harness.signals import Stopped
from bench.io import console
from bench.io.files import new_file, new_folder, new_text
from bench.io.record import Unwritten, Writer, encoded
from bench.loading import saes
from bench.problem.batches import Batches
from bench.problem.gradient_check import Reached
from bench.problem.oom import MicroBatching
from bench.problem.problem import Adapted, Problem, trained_by

SHARE_OF_TIME = 0.05
"""Writing checkpoints takes at most about so much of a run."""


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
            raise Lost(outcome.why, outcome.code)
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
            with signals.at_once():  # memory that runs out here does so off the clock
                warm_up(settings.method, self.problem.of_run(micro), settings.config)
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

    def _take_back(self) -> bool:
        """Put the lent SAEs right again; whether that was needed."""
        now = self.problem.saes.state_dict()
        changed = any(not torch.equal(now[name], self._lent[name]) for name in now)
        if changed:
            self.problem.saes.load_state_dict(self._lent)
        self.problem.saes.requires_grad_(False)
        return changed


class Run:
    """Drives the method of `settings` on the problem of `harness`, and writes rows with `writer`.

    `resumed` is the checkpoint that the run continues, if any; `segments` the processes that
    worked on it so far. A run begins with `micro`, a resumed one with its checkpoint's.
    """

    def __init__(
        self,
        harness: Harness,
        settings: RunSettings,
        writer: Writer | Unwritten,
        resumed: dict[str, Any] | None,
        segments: list[dict[str, Any]],
        micro: MicroBatching,
    ) -> None:
        self.harness, self.settings, self.writer = harness, settings, writer
        self.resumed, self.segments = resumed, segments
        if resumed:  # gradients were looked at in the first passes, and these are later
            micro = MicroBatching(resumed["micro_batch"], resumed["memory"])
            self.problem = harness.problem.of_run(micro)
        else:
            self.problem = harness.problem.of_run(micro, Reached())
        self.meter = Meter(self.problem.bridge)
        self.evaluations = doubling(settings.steps)
        self.keeps = checkpoints(getattr(settings.method, "CHECKPOINTS", (1.0,)), settings.steps)
        self.measured = -1
        """The last step that has a row."""
        self._saved_at, self._took = math.nan, 0.0
        """When the last checkpoint was written, by the meter, and how long that took."""

    def go(self) -> dict[str, Any]:
        """Run to the end -> the fields of the end line. Raises `Stopped` where that was asked for,
        with a checkpoint written, and whatever the method raises."""
        problem, about = self.problem, self.settings
        seed = about.header["seed"]
        seed_all(seed)
        if self.resumed:
            self.measured = self.resumed["measured"]
        if problem.clean_cache:
            problem.clean_cache.filled = self.resumed["filled"] if self.resumed else 0
        fetched = self.meter.fetched
        batches = Batches(problem.train, problem.batch_size, about.steps, seed, fetched)
        bar = console.bar(total=about.steps, desc=about.path.stem, unit="step")
        with self.meter.watching(), bar:
            where = {"resume": self.resumed, "bar": bar}
            steps = drive(about.method, problem, batches, about.config, self.meter, **where)
            for step, adapted in steps:
                self._visit(step, adapted, batches)
            self._look(step, adapted, batches)  # at the last step, where the method ended early
            score = self._unless_stopped(self._score, step, adapted, batches)
        if group.is_first():
            save_state(adapted, self.settings.folder)
        return self._end_fields(score, adapted)

    def _visit(self, step: int, adapted: Adapted, batches: Batches) -> None:
        """The work between two steps: evaluate, keep SAEs, write a checkpoint when one is due."""
        if math.isnan(self._saved_at):  # at the start, or where the checkpoint was taken
            self._saved_at = self._now()
            shares.check_alike(trained_by(adapted))
        for halving in self.problem.micro.halvings:
            halving.setdefault("step", step)
        if step == 0:
            checkpoint.check_room(self.settings.folder, trained_by(adapted))
        if step in self.evaluations:
            self._look(step, adapted, batches)
        for share in self.keeps.get(step, ()):
            self._keep(share, adapted)
        # Several processes stop at one step; when it is time, the first one's clock says.
        stop, due = group.any_of(signals.asked(), group.is_first() and self._is_time())
        if stop:
            self._save(step, adapted, batches)
            raise signals.Stopped
        if step < self.settings.steps and due:
            self._save(step, adapted, batches)

    def _look(self, step: int, adapted: Adapted, batches: Batches) -> None:
        """Write the row of a step, unless it is there."""
        if step <= self.measured:
            return
        row = self._unless_stopped(self._row, step, adapted, batches)
        self.writer.write(row)
        self.measured = step
        if not math.isfinite(row["ce"]):
            raise Diverged(f"CE {row['ce']} at step {step}")

    def _unless_stopped(
        self, evaluate: Callable, step: int, adapted: Adapted, batches: Batches
    ) -> Any:
        """What `evaluate(step, adapted)` gives; a stop that comes meanwhile has a checkpoint."""
        try:
            with signals.at_once():
                return evaluate(step, adapted)
        except signals.Stopped:
            self._save(step, adapted, batches)
            raise

    def _row(self, step: int, adapted: Adapted) -> dict[str, Any]:
        with evaluating(adapted), self.meter.evaluation():
            score = measure(self.problem, self.harness.curve, adapted)
        row = {
            "step": step,
            "ce": mean(score.ce),
            "kl": mean(score.kl),
            "l0": mean(score.l0),
            "fvu": mean(score.fvu),
            **by_site(score),
            **self.meter.of_all(),
            "micro_batch": self.problem.micro.size,
        }
        if self.problem.clean_cache:
            row["cache_filled_tokens"] = self.problem.clean_cache.filled
        return row

    def _is_time(self) -> bool:
        """Whether enough has passed since the last checkpoint, in steps and evaluations."""
        passed = self._now() - self._saved_at
        every = self.settings.every
        return not every or passed >= max(every, self._took / SHARE_OF_TIME)

    def _now(self) -> float:
        return self.meter.cost.seconds + self.meter.cost.evaluation_seconds

    def _save(self, step: int, adapted: Adapted, batches: Batches) -> None:
        before = self.meter.cost.checkpoint_seconds
        with self.meter.checkpoint():
            meters = group.gathered(self.meter.state())
            if group.is_first():
                state = self._state_at(step, adapted, batches, meters)
                checkpoint.write(self.settings.folder, step, state)
        self._took = self.meter.cost.checkpoint_seconds - before
        self._saved_at = self._now()

    def _state_at(self, step: int, adapted: Adapted, batches: Batches, meters: list) -> dict:
        return snapshot(step, adapted, batches, meters) | {
            "run": self.settings.path.stem,
            "lines": self.writer.lines,
            "measured": self.measured,
            "segments": self.segments,
            "micro_batch": self.problem.micro.size,
            "memory": self.problem.micro.halvings,
            "filled": self.problem.clean_cache.filled if self.problem.clean_cache else 0,
        }

    def _keep(self, share: float, adapted: Adapted) -> None:
        """Save the SAEs, where the run trains them, with what they had cost by now."""
        if adapted.saes is self.problem.saes:
            return
        spent = self.meter.of_all()
        if not group.is_first():
            return
        kept = {part: adapted.state[part].state_dict() for part in adapted.keep}
        for index, sae in enumerate(adapted.saes):
            name = saes.checkpoint_name(share, index, len(adapted.saes))
            cost = self.harness.sae_cost
            if cost is not None:
                whole = {k: v + cost.get(k, 0) for k, v in spent.items() if k != "by_rank"}
                cost = {**whole, **self.harness.clock, **group.together()}
            about = {"share": share, "run": self.settings.path.stem, "cost": cost}
            for left in self.settings.folder.glob(f".{name}-*"):  # of a process that was killed
                shutil.rmtree(left)
            with new_folder(self.settings.folder / name, replace=True) as temporary:
                saes.save(sae, temporary, **about)
                if kept and not index:
                    saes.save_state(kept, temporary)

    def _score(self, step: int, adapted: Adapted) -> Score:
        """The `Score` of the adapted model on the validation set."""
        if adapted.hooks or adapted.blocks or adapted.saes is not self.problem.saes:
            with evaluating(adapted):
                return measure(self.problem, self.harness.validation, adapted)
        return self.harness.spliced

    def spent(self) -> dict[str, Any]:
        """What any end line says, however the run ended."""
        spread, halvings = self.meter.spread(), self.problem.micro.halvings
        fields = {"step_seconds": spread, "memory": halvings}
        return {name: value for name, value in fields.items() if value}

    def _end_fields(self, score: Score, adapted: Adapted) -> dict[str, Any]:
        return {
            "ce_full": score.ce,
            "kl_full": score.kl,
            **of_saes(score),
            "trained_parameters": count(adapted),
        }


def count(adapted: Adapted) -> int:
    """How many numbers the run trains; of a method without gradients, all that it has."""
    parameters = trained_by(adapted)
    trained = [p for p in parameters if p.requires_grad]
    return sum(p.numel() for p in trained or parameters)


def save_state(adapted: Adapted, folder: Path) -> None:
    """Write the modules that a run trained to `folder`/state.safetensors, names as in `state`."""
    from safetensors.torch import save_file

    modules = {k: v for k, v in adapted.state.items() if isinstance(v, torch.nn.Module)}
    states = {f"{k}.{n}": t for k, m in modules.items() for n, t in m.state_dict().items()}
    tensors = {name: tensor.contiguous() for name, tensor in states.items()}
    if tensors:
        new_file(folder / "state.safetensors", lambda temporary: save_file(tensors, temporary))


def doubling(steps: int) -> list[int]:
    """The steps to evaluate at: 0, 1, 2, 3, 4, 6, 8, 11, 16, ..., two a doubling, and the last."""
    powers = {round(2 ** (i / 2)) for i in range(2 * steps.bit_length())}
    return [0, *sorted(step for step in powers if step < steps), *([steps] if steps else [])]


def checkpoints(shares: Iterable[float], steps: int) -> dict[int, list[float]]:
    """Step -> those of the shares of a run that it stands for."""
    at: dict[int, list[float]] = {}
    for share in shares:
        at.setdefault(max(1, round(steps * share)), []).append(share)
    return at


def _failed(error: BaseException, folder: Path) -> Outcome:
    """The `Outcome` of a run that raised; the traceback goes into its folder, and is named."""
    if isinstance(error, Fault):
        return Outcome("error", str(error), error.code)
    path, where = folder / "traceback.txt", ""
    with suppress(Unavailable):
        new_text(path, traceback.format_exc())
        where = f" (see {folder.name}/{path.name})"
    if out_of_memory(error):
        why = f"out of memory ({reason(error)}); lower --batch-size, --seq-len or --sae-width"
        return Outcome("error", why, Unavailable.code)
    return Outcome("error", f"{type(error).__name__}: {reason(error)}{where}", RunFailed.code)


def _close(writer: Writer | Unwritten, outcome: Outcome, fields: dict[str, Any]) -> Outcome:
    """Write the end line; on a full disk the lines before it stay."""
    try:
        writer.end(
            {"end": outcome.end, **({"reason": outcome.why} if outcome.why else {}), **fields}
        )
    except Unavailable as fault:
        return Outcome("error", outcome.why or str(fault), Unavailable.code)
    return outcome
