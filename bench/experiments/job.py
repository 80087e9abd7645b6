"""One run of an experiment, or one measurement of a run, before it is made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

from bench.config.method import MethodRequest
from bench.config.spec import Spec
from bench.io.record import digest


@dataclass(frozen=True)
class Job:
    """One run of an experiment, or one measurement of a run."""

    role: str
    """Its role in the experiment, mostly the name of its method."""
    label: str
    """The method with its settings, as `--methods` has it."""
    spec: Spec
    seed: int
    """The experiment's seed."""
    at: Mapping[str, object] = field(default_factory=dict)
    """Each variable of the experiment -> its value here."""
    run_seed: int | None = None
    """The seed of the run, where that is not the experiment's."""
    trains_own: Spec | None = None
    """The spec whose own SAE this trains; `spec` is then that of the training."""
    after: "Job | None" = None
    """The run whose weights this one starts from, or that it measures."""
    measure: str = ""
    """A measurement of `after` (`bench.evals.measures`) instead of a run."""
    experiment: str = ""
    """The experiment that it belongs to."""

    @property
    def method(self) -> MethodRequest:
        """Its method, before the weights of an earlier run are filled in."""
        return MethodRequest(self.label)

    @property
    def seed_of_run(self) -> int:
        """The seed of its run."""
        return self.seed if self.run_seed is None else self.run_seed

    @cached_property
    def key(self) -> str:
        """The digest that two jobs share if they are the same, whether they have run or not."""
        after = self.after and self.after.key
        return digest([self.label, asdict(self.spec), self.seed_of_run, after, self.measure])

    @property
    def in_short(self) -> str:
        """The job on one line."""
        at = " ".join(f"{name}={value}" for name, value in self.at.items())
        return f"{self.experiment}: {self.role} seed {self.seed} {at}".rstrip()

    def with_predecessors(self) -> "list[Job]":
        """The job, and before it those that it needs."""
        first = self.after and replace(self.after, experiment=self.experiment)
        return [*(first.with_predecessors() if first else ()), self]


def seeded(spec: Spec, seed: int) -> Spec:
    """The spec with an own SAE of this seed; SAEs by others are the same for all."""
    return replace(spec, sae_seed=1_000 + seed) if spec.sae == "own" else spec
