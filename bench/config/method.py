"""A method as it is asked for: what the command line says of it, parsed.

`lora:rank=64` is a method with fields set for this one entry; `--set lora.rank=64` sets a field for
every entry. `steps` is set like a field, of any method: `lora:steps=64` runs for 64 steps, whatever
the others do.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bench.config.method_files import from_path, imported, names, source
from bench.config.spec import Spec
from bench.errors import Fault, Usage, unknown


@dataclass(frozen=True)
class Entry:
    """A method that can be run."""

    asked: "MethodRequest"
    module: ModuleType
    config: Any
    """The frozen `Config` of the method's file."""
    source: str
    """The text of the method's file, read when it was imported."""

    @property
    def label(self) -> str:
        """As `--methods` has it."""
        return self.asked.label

    @property
    def name(self) -> str:
        """The method's name."""
        return self.asked.name

    @property
    def settings(self) -> dict[str, Any]:
        """The config as plain JSON values."""
        fields = dataclasses.asdict(self.config)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


@dataclass(frozen=True)
class MethodRequest:
    """A method as it was asked for; nothing of it is imported yet."""

    label: str
    """As `--methods` has it, such as `lora:rank=64`."""
    sets: tuple[str, ...] = ()
    """The `--set` items of this method, such as `lora.clip=2`."""

    @property
    def name(self) -> str:
        """The method's name, that of its file."""
        return self.label.partition(":")[0]

    @property
    def settings(self) -> list[str]:
        """`FIELD=VALUE` of each setting but `steps`; of two of one field the later one counts."""
        return [item for item in self._items() if _field(item) != STEPS]

    @property
    def fields(self) -> set[str]:
        """The fields that it sets."""
        return {_field(item) for item in self.settings}

    @property
    def steps(self) -> str | None:
        """What it says of its steps: `64`, or `4x` for four times the spec's; None for these."""
        said = [item.partition("=")[2] for item in self._items() if _field(item) == STEPS]
        return said[-1] if said else None

    def spec_of(self, spec: Spec) -> Spec:
        """The spec of its run, with the run's own number of steps; `Usage` for a wrong one."""
        if self.steps is None:
            return spec
        times = self.steps.endswith("x")
        try:
            number = float(self.steps[:-1]) if times else int(self.steps)
            if not 0 < number < math.inf:
                raise ValueError
        except ValueError:
            expected = "expected a whole number from 1 on, or a factor such as 4x or 2.5x"
            raise Usage(f"'{self.label}': steps '{self.steps}': {expected}") from None
        steps = max(1, round(number * spec.steps)) if times else int(number)
        return dataclasses.replace(spec, steps=steps)

    def _items(self) -> list[str]:
        """`FIELD=VALUE` of all that is set, as it was typed."""
        sets = [item.removeprefix(f"{self.name}.") for item in self.sets]
        return sets + self.label.split(":")[1:]

    def with_setting(self, field: str, value: str) -> "MethodRequest":
        """The same with one more field set."""
        return dataclasses.replace(self, label=f"{self.label}:{field}={value}")

    def without(self, *fields: str) -> "MethodRequest":
        """The same with these fields no longer set by its label."""
        name, *items = self.label.split(":")
        left = [item for item in items if _field(item) not in fields]
        return dataclasses.replace(self, label=":".join([name, *left]))


STEPS = "steps"
"""What a label may set of any method: how long its run is. It is a field of no `Config`."""


def _field(item: str) -> str:
    return item.partition("=")[0]


def requested(labels: Sequence[str], sets: Sequence[str]) -> list[MethodRequest]:
    """`--methods` and the `--set` items; `Usage` for a method that is not there. Imports none."""
    if not labels:
        raise Usage(f"--methods is empty: expected some of {', '.join(names())}")
    labels = [from_path(label) for label in labels]
    there = names()
    for item in sets:
        if not all(item.partition("=")[0].partition(".")) or "=" not in item:
            raise Usage(f"--set '{item}': expected METHOD.FIELD=VALUE")
    run = [label.partition(":")[0] for label in labels]
    for name in run + [item.partition(".")[0] for item in sets]:
        if name not in there:
            raise unknown("method", name, there)
    for item in sets:
        if item.partition(".")[0] not in run:
            raise Usage(f"--set '{item}': its method is not run; --methods has {', '.join(run)}")
    named = [(label, f"{name}.") for label, name in zip(labels, run, strict=True)]
    return [
        MethodRequest(label, tuple(item for item in sets if item.startswith(prefix)))
        for label, prefix in named
    ]


def entry(label: str) -> Entry:
    """`load` of a method without `--set` items."""
    return load(MethodRequest(label))


def load(asked: MethodRequest) -> Entry:
    """Import a method and make its config; `Usage` for a wrong field or value.

    Raises `Unavailable` for a method whose file imports a package that is not installed.
    """
    name = asked.name
    module = imported(name)
    types, required = get_type_hints(module.Config), _without_default(module.Config)
    content = source(name)
    values = {}
    for item in asked.settings:
        field, equals, text = item.partition("=")
        if not equals:
            raise Usage(f"'{name}.{item}': expected {name}.FIELD=VALUE")
        if field not in types:
            raise unknown(f"field of {name}", field, types or ["(none: it has no fields)"])
        values[field] = parse(text, types[field], f"{name}.{field}")
    for field in required:
        if field not in values:
            raise Usage(f"{name}: '{field}' has no default: write {name}:{field}=VALUE")
    try:
        return Entry(asked, module, module.Config(**values), content)
    except ValueError as error:
        raise Usage(f"{name}: {error}") from None
    except Fault as error:
        raise Usage(str(error)) from None


def _without_default(config: type) -> list[str]:
    """The fields of a `Config` that have to be set."""
    fields = [field for field in dataclasses.fields(config) if field.init]
    return [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]


def tuned_fields(entry: Entry) -> dict[str, str | None]:
    """The fields that `tune` chooses, all by one factor -> the method whose choice each starts at.

    What the method's file names as `TUNED`, else its `lr`; {} for a method that has none.
    """
    named = getattr(entry.module, "TUNED", ["lr"] if "lr" in entry.settings else [])
    return dict(named) if isinstance(named, dict) else dict.fromkeys(named)


def own_label(spec: Spec) -> str:
    """The label of the method that trains the own SAEs of a spec."""
    frozen = "freeze=W_dec" if spec.sae_decoder == "frozen" else ""
    return ":".join(filter(None, [f"mse:lr={spec.sae_lr}", spec.sae_set, frozen]))


def of_own_saes(spec: Spec) -> Entry:
    """The entry of that method; `Usage` for settings that are none of its own."""
    made = entry(own_label(spec))
    if made.asked.steps:
        raise Usage(f"--sae-set '{spec.sae_set}': its steps are those of --sae-tokens")
    return made


def parse(text: str, kind: Any, what: str) -> Any:
    """The text of a setting as its type; `Usage` that says what was expected."""
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise unknown(what, text, get_args(kind))
        return text
    if get_origin(kind) is tuple:
        return tuple(part for part in text.replace("+", ",").split(",") if part)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise unknown(what, text, ("true", "false"))
        return text.lower() == "true"
    expected = {int: "a whole number", float: "a finite number"}.get(kind, str(kind))
    try:
        value = kind(text)
    except (ValueError, TypeError):
        raise Usage(f"{what}: '{text}' is not {expected}") from None
    if kind is float and not math.isfinite(value):
        raise Usage(f"{what}: '{text}' is not {expected}")
    return value


def check_fits(entry: Entry, site_names: Sequence[str], n_blocks: int) -> None:
    """Ask the method, where it wants to be asked, whether the model has what its config names."""
    if hasattr(entry.module, "check"):
        try:
            entry.module.check(entry.config, site_names, n_blocks)
        except ValueError as error:
            raise Usage(f"{entry.name}: {error}") from None
