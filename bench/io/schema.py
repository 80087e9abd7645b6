"""What a record is made of: the fields of its lines, with their types and meanings.

The reader, `bench verify`, docs/records.md and docs/record.schema.json are all made from the
classes here; `python -m bench.io.schema` writes both files in docs. Knows nothing of what a run
does. Fields may be added, none renamed.
"""

import ast
import inspect
import json
import textwrap
from dataclasses import MISSING, dataclass, fields
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

SCHEMA = 1
"""The version that this code writes and reads."""
ENDS = ("finished", "diverged", "interrupted", "error")
Losses = list[float | None]

KINDS: dict[Any, tuple[str, Any, str]] = {
    str: ("text", str, "string"),
    dict: ("an object", dict, "object"),
    list: ("a list", list, "array"),
    Losses: ("a list of numbers", list, "array"),
    bool: ("true or false", bool, "boolean"),
    int: ("a whole number", int, "integer"),
    float: ("a number", int | float, "number"),
    float | None: ("a number or null", int | float | None, "number"),
}
"""Annotation -> its name in messages, Python's types of the JSON value, JSON Schema's type."""


@dataclass(kw_only=True)
class Made:
    """What was run or measured, and where and when: in a header, and in a measurement."""

    schema: int
    """Version of this format."""
    method: str
    """Name of the method, that of its file in methods/."""
    config: dict
    """The method's settings, all of them."""
    spec: dict
    """The setting: model, site, SAE, text, budget (`python -m bench specs`)."""
    seed: int
    """Seed of batches, initial values and dropout."""
    sae: dict
    """The SAE: source, kind, sha256, the run that trained it, its share of that training."""
    label: str = None
    """The method as typed, such as `lora:rank=64`."""
    split: str = None
    """What a loss of `ce_full` is of: a document, or a group of short ones."""
    weights: str = None
    """`pretrained` or `random`: of random weights no loss means anything."""
    commit: str = None
    """The commit of the code."""
    dirty: bool = None
    """Whether the code differed from the commit."""
    device: str = None
    """cpu, cuda or mps."""
    machine: str = None
    """The processor and its cores, or the accelerator."""
    threads: int = None
    """Threads of the tensor library."""
    matmul: str = None
    """What multiplied float32 matrices."""
    tf32: bool = None
    """Whether float32 products were rounded to TF32."""
    compiled: bool = None
    """Whether blocks ran compiled in the clean pass (`SPLICEBENCH_COMPILE=blocks`)."""
    world_size: int = None
    """Processes that worked together."""
    sharded: bool = None
    """Whether the model was spread over them."""
    load: float = None
    """The machine's load at the start, as `uptime` says it."""
    versions: dict = None
    """Versions of Python and the packages."""
    started: str = None
    """When it was started."""
    command: str = None
    """What was typed."""


@dataclass(kw_only=True)
class Header(Made):
    """The first line: what was run, on what, and what stays the same over the run."""

    ce_clean: float
    """CE of the clean model on the curve set, nats per scored token."""
    ce_spliced: float
    """CE of the spliced model on the curve set, nats per scored token."""
    sets: list = None
    """The `--set` items of this method."""
    source: str = None
    """Text of the method's file, and of the methods that it imports."""
    key: str = None
    """Hash of model and text; of older records."""
    code: str = None
    """sha256 of the code that decides the numbers."""
    model: dict = None
    """The model: family and sha256."""
    text_sha256: str = None
    """sha256 of the text's files."""
    text_read: dict = None
    """What of the text was read: files, documents, bytes."""
    sae_cost: dict = None
    """What training the SAE had cost: seconds, passes, tokens; null where it is not known."""
    ce_ablated: float = None
    """CE with the site set to 0, on the curve set."""
    kl_spliced: float = None
    """KL(clean || spliced) on the curve set."""
    kl_ablated: float = None
    """KL(clean || the site set to 0) on the curve set."""
    ce_full_clean: Losses = None
    """CE of the clean model for each validation document."""
    ce_full_spliced: Losses = None
    """CE of the spliced model for each validation document."""
    kl_full_spliced: Losses = None
    """KL(clean || spliced) for each validation document."""
    documents: list = None
    """Names of the validation documents, in the order of the losses."""
    train_tokens: int = None
    """Tokens of the training set."""
    l0_full: float | None = None
    """Latents that fire for a token of the spliced model, mean over the validation set."""
    fvu_full: float | None = None
    """Share of the site's variance that the SAE leaves unexplained, on the validation set."""
    fvu_weighted_full: float | None = None
    """The same with each token weighted by 1/|x|^2: those of huge norm do not decide it."""
    dead_full: float | None = None
    """Share of the latents that fire nowhere in the validation set."""
    l0_full_by_site: list = None
    """`l0_full` of each site, where there are several."""
    fvu_full_by_site: list = None
    """`fvu_full` of each site, where there are several."""
    forced: list = None
    """Why the SAE may not belong here, where `--force` took it all the same."""
    nonfinite: dict = None
    """Fields of this line that are null because they were not finite, with what they were."""


@dataclass
class Row:
    """A line for each evaluation. Counts and seconds are sums since the start of the run."""

    step: int
    """Training steps so far."""
    ce: float | None
    """CE of the adapted model on the curve set, nats per scored token."""
    seconds: float
    """Time in the method: its first line and its steps; evaluations are not in it."""
    forwards: int
    """Passes forward through the LM's final norm."""
    backwards: int
    """Passes backward through the LM's final norm."""
    tokens: int
    """Tokens of the training batches."""
    kl: float | None = None
    """KL(clean || adapted) on the curve set, nats per scored token."""
    l0: float | None = None
    """Latents that fire for a token, on the curve set."""
    fvu: float | None = None
    """Share of the site's variance that is unexplained, on the curve set."""
    l0_by_site: list = None
    """`l0` of each site, where there are several."""
    fvu_by_site: list = None
    """`fvu` of each site, where there are several."""
    block_forwards: int = None
    """Passes forward through single blocks."""
    block_backwards: int = None
    """Passes backward through single blocks."""
    backward_tokens: int = None
    """Tokens that went backward through the final norm."""
    evaluation_seconds: float = None
    """Time in evaluations."""
    checkpoint_seconds: float = None
    """Time in writing checkpoints."""
    suspended_seconds: float = None
    """Time that the machine slept, which `seconds` does not count."""
    clock_jump_seconds: float = None
    """How far the time of day was set; no duration depends on it."""
    peak_bytes: int = None
    """The most memory seen at the end of a timed part."""
    by_rank: list = None
    """Passes and memory of each process, where there are several."""
    micro_batch: int = None
    """Windows that go through the model at once."""
    cache_filled_tokens: int = None
    """Tokens whose clean side the run has put into the cache."""
    nonfinite: dict = None
    """Fields of this line that are null because they were not finite, with what they were."""


@dataclass
class End:
    """The last line: how the run ended, and what it came to on the validation set."""

    end: str
    """`finished`, `diverged`, `interrupted` or `error`."""
    reason: str = None
    """Why it did not finish."""
    ce_full: Losses = None
    """CE of the adapted model for each validation document."""
    kl_full: Losses = None
    """KL(clean || adapted) for each validation document."""
    l0_full: float | None = None
    """Latents that fire for a token, mean over the validation set."""
    fvu_full: float | None = None
    """Share of the site's variance that is unexplained, on the validation set."""
    fvu_weighted_full: float | None = None
    """The same with each token weighted by 1/|x|^2: those of huge norm do not decide it."""
    dead_full: float | None = None
    """Share of the latents that fire nowhere in the validation set."""
    l0_full_by_site: list = None
    """`l0_full` of each site, where there are several."""
    fvu_full_by_site: list = None
    """`fvu_full` of each site, where there are several."""
    trained_parameters: int = None
    """How many numbers the method trained."""
    step_seconds: dict = None
    """Spread of the steps' durations: the median and the 95th percentile."""
    memory: list = None
    """For each time memory ran out: the step, the micro-batch since, whether the loss changed."""
    segments: int = None
    """Processes that worked on the run one after the other."""
    resumed: list = None
    """For each segment after the first: its first step, when it started, the machine's load."""
    timing: str = None
    """`resumed`, where `seconds` is a sum over several processes."""
    deterministic: bool = None
    """false where the resumed run may differ in the last digits from an unbroken one."""
    why: str = None
    """Why it may differ."""
    sha256: str = None
    """Of all lines before this one."""
    nonfinite: dict = None
    """Fields of this line that are null because they were not finite, with what they were."""


@dataclass(kw_only=True)
class Measurement(Made):
    """A JSON file beside a record: what was measured of a finished run."""

    measure: str
    """What was measured."""
    of: str
    """The name of the run."""
    ce: float = None
    """The run's CE on the validation set, nats per scored token."""
    values: dict = None
    """What came of it, by name."""


@dataclass
class Manifest:
    """A JSON file beside records: the runs of an experiment."""

    scale: str
    """The scale of the experiment."""
    command: str
    """What runs it."""
    runs: list
    """Its runs: record, role, seed, and what is varied."""


class Field(NamedTuple):
    """One field of a line."""

    kind: Any
    """A key of `KINDS`."""
    required: bool
    text: str


@cache
def fields_of(line: type) -> dict[str, Field]:
    """Name -> `Field` of a class of this file."""
    kinds = get_type_hints(line)
    texts: dict[str, str] = {}
    for part in reversed(line.__mro__[:-1]):
        texts |= field_texts(part)
    return {f.name: Field(kinds[f.name], f.default is MISSING, texts[f.name]) for f in fields(line)}


@cache
def required(line: type) -> list[str]:
    """The fields that no such line lacks."""
    return [name for name, field in fields_of(line).items() if field.required]


def is_a(kind: Any, value: Any) -> bool:
    """Whether a JSON value is of this kind."""
    types = KINDS[kind][1]
    if isinstance(value, bool) or not isinstance(value, types):
        return isinstance(value, bool) and types is bool
    return kind != Losses or all(is_a(float | None, one) for one in value)


def field_texts(made: type) -> dict[str, str]:
    """Field of a dataclass -> the text under it, on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(made))).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for node, below in zip_longest(tree.body, tree.body[1:]):
        if isinstance(node, ast.AnnAssign):
            text = ast.literal_eval(below.value) if isinstance(below, ast.Expr) else ""
            texts[ast.unparse(node.target)] = " ".join(text.split())
    return texts


def json_schema() -> dict[str, Any]:
    """JSON Schema of a record's lines: each is a header, a row or an end."""
    lines = {line.__name__.lower(): _object(line) for line in (Header, Row, End)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of a splicebench record (JSON Lines)",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in lines],
        "$defs": lines,
    }


def _object(line: type) -> dict[str, Any]:
    properties = {name: _property(field) for name, field in fields_of(line).items()}
    if line is End:
        properties["end"]["enum"] = list(ENDS)
    return {
        "title": line.__doc__,
        "type": "object",
        "properties": properties,
        "required": required(line),
    }


def _property(field: Field) -> dict[str, Any]:
    kind = KINDS[field.kind][2]
    null = not field.required or field.kind == float | None
    made = {"type": [kind, "null"] if null else kind, "description": field.text}
    return made | ({"items": {"type": ["number", "null"]}} if field.kind == Losses else {})


def table() -> str:
    """The fields of all lines as tables in Markdown, for docs/records.md."""
    parts = []
    for line in (Header, Row, End):
        rows = [
            f"| `{name}` | {KINDS[field.kind][0]} | {field.text} |"
            for name, field in fields_of(line).items()
        ]
        head = f"### {line.__name__}\n\n{line.__doc__}\n\n| field | is | meaning |\n|---|---|---|"
        parts.append("\n".join([head, *rows]))
    return "\n\n".join(parts)


def _write(folder: Path) -> None:
    """Bring docs/record.schema.json, and the table in docs/records.md, up to this file."""
    text = json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
    (folder / "record.schema.json").write_text(text, encoding="utf-8")
    page = folder / "records.md"
    before, after = page.read_text(encoding="utf-8").split("### Header")[0], table()
    page.write_text(f"{before}{after}\n", encoding="utf-8")


if __name__ == "__main__":
    _write(Path(__file__).resolve().parents[2] / "docs")
