"""`python -m bench speed`: our step against the plain one, in turn, on the same tokens.

Two processes: one drives the method as `compare` does, the other runs `bench.speed.reference` and
nothing of ours. Both start from the same adapters, take the same batches and must show the same
loss at every step.
"""

import importlib.util
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from bench.config.method import Entry, MethodRequest, load
from bench.config.spec import Spec, block_of
from bench.errors import Rejected, RunFailed, Unavailable, Usage
from bench.harness.signals import Interrupted, blocked
from bench.io import clock
from bench.io.console import in_words, say
from bench.io.files import new_json
from bench.io.record import digest
from bench.runs import preflight, process
from bench.speed import busy, report
from bench.speed.remote import Side

WARM_UP = 1
"""Pairs that are run and checked but not timed."""
WORTH_IT = 1.05
"""By how much twice the batch must be faster for the next one to be tried."""


def speed(
    spec: Spec,
    methods: Sequence[MethodRequest],
    pairs: int = 5,
    out: str | Path = "runs",
    plain_dtype: str | None = None,
    best_batch: bool = False,
) -> None:
    """Race each method; a table of each and a JSON file of all that was measured.

    A race that is broken off leaves what it measured; the next one is a fresh one.

    `plain_dtype` is the number format of the plain side's LM, that of the spec if None; with
    `best_batch` each side is then also timed at the batch that is best for it. Raises `RunFailed`
    where the losses are not the same.
    """
    if pairs < 1:
        raise Usage(f"--pairs must be at least 1, got {pairs}")
    out = Path(out)
    preflight.check_inputs(spec, out)
    # The paper's step size: no step is slower for it, and rounding does not run away with the
    # losses, as it does where large steps meet a TopK. A random SAE wants smaller ones still.
    lr = "5e-9" if spec.sae == "fresh" else "5e-5"
    methods = [replace(asked, sets=(f"{asked.name}.lr={lr}", *asked.sets)) for asked in methods]
    for asked in methods:
        check_reference(spec, asked)
    if best_batch and spec.cache_clean:
        raise Usage("--best-batch: not with --cache-clean, filling the cache would be timed")
    preflight.set_environment(online=preflight.asks_the_hub(spec))
    folder, config = process.call(preflight.check_model, spec, methods)
    if not config["model_type"].startswith(("llama", "gemma")):
        raise Rejected(f"speed: the plain step is for Llama and Gemma, not {config['model_type']}")
    plain_dtype = plain_dtype or spec.dtype
    entries = [load(asked) for asked in methods]
    races = [Race(spec, str(folder), entry, pairs, plain_dtype, out) for entry in entries]
    filling, apart = races[0].prepare(), []
    for number, race in enumerate(races):
        try:
            start = race.run(filling, len(races) - number)
        except Interrupted as stop:
            race.broken_off(stop)
            raise
        result, path = race.result, race.path
        if best_batch:
            result["best_batch"] = race.best_batches(start)
            new_json(path, result)
        say(f"wrote {path}")
        if result["largest_difference"] > result["tolerance"]:
            apart.append(result)
    if apart:
        worst, allowed = (max(r[k] for r in apart) for k in ("largest_difference", "tolerance"))
        raise RunFailed(f"the losses differ by up to {worst:.1e}, {allowed:.0e} is allowed")


def identity(result: report.Fields) -> list[Any]:
    """What names the file; a number format of the plain side counts where it is another."""
    spec, plain_dtype = result["spec"], result["sides"]["plain"]["dtype"]
    named = [result["label"], spec, result["matmul"]]
    return named if plain_dtype == spec["dtype"] else [*named, plain_dtype]


def check_reference(spec: Spec, asked: MethodRequest) -> None:
    """Raise `Usage` for what the plain step cannot do, `Unavailable` without PEFT.

    The plain side knows no special token but the first one: the BOS that is put before a text.
    """
    if asked.name not in ("lora", "e2e"):
        raise Usage(f"speed: there is no plain step of '{asked.name}', expected lora or e2e")
    if asked.steps is not None:
        raise Usage(f"speed: '{asked.label}': a race takes pairs of steps: --pairs says how many")
    entry = load(asked)
    if getattr(entry.config, "dropout", 0) or getattr(entry.config, "loss", "kl") != "kl":
        raise Usage(f"speed: '{entry.label}': dropout and losses other than kl cannot be compared")
    if spec.weights == "random" and spec.sae == "own":
        raise Usage("speed: --sae own on random weights: expected fresh, or an SAE that is there")
    after_block = re.fullmatch(r"blocks\.\d+\.(hook_resid_post|hook_out)", spec.site)
    if not after_block or spec.spliced != spec.scored:
        raise Usage(
            "speed: expected one site after a block, and the same positions spliced and scored"
        )
    if spec.scored == "not-special" and not spec.prepend_bos:
        raise Usage("speed: not-special only with a BOS put first: --prepend-bos true")
    if spec.scored == "not-special" and spec.text == "random":
        raise Usage(
            "speed: not-special on random tokens, some of which are special: expected a --text, "
            "or --spliced and --scored both not-first or all"
        )
    if entry.name == "lora" and importlib.util.find_spec("peft") is None:
        raise Unavailable("speed compares with PEFT: pip install 'splicebench[speed]'")


@dataclass
class Race:
    """One method of ours against the plain step."""

    spec: Spec
    folder: str
    """The model's."""
    entry: Entry
    pairs: int
    plain_dtype: str
    out: Path
    result: report.Fields = field(default_factory=dict)
    """What has been measured so far."""

    @property
    def path(self) -> Path:
        """The race's file, once the sides have told what they are."""
        return self.out / f"speed-{digest(identity(self.result))[:8]}.json"

    @property
    def partial(self) -> Path:
        """The file while the race goes on: an earlier race's whole one stays until its end."""
        return self.path.with_suffix(".partial.json")

    def ours(self) -> Side:
        """Our side, not yet started."""
        return Side("Ours", *self._ours())

    def _ours(self) -> tuple[Any, ...]:
        return self.spec, self.folder, self.entry.asked, WARM_UP + self.pairs

    def plain(self, start: report.Fields) -> Side:
        """The plain side at the SAE that our side began with, not yet started."""
        settings = plain_settings(self.spec, self.entry, start, self.plain_dtype)
        layer = block_of(self.spec.site)
        return Side("Plain", self.folder, start["sae"], layer, settings, self.spec.dtype)

    def prepare(self) -> float | None:
        """Train the SAE and fill the cache -> seconds a token of filling, if there was any.

        A process of its own takes the memory of it away.
        """
        spec = self.spec
        if spec.sae != "own" and not spec.cache_clean:
            return None
        filling = process.call(prepare, *self._ours())
        if filling:
            seconds = filling * spec.batch_size * spec.seq_len
            say(f"filling the cache of the clean side took {seconds:.2f} s a batch, once")
        return filling

    def run(self, filling: float | None, left: int) -> report.Fields:
        """Both sides, step by step in turn; its file -> what ours began with.

        `filling` is what `prepare` gave, `left` how many races are left, this one included.
        """
        spec, entry, began = self.spec, self.entry, clock.read()
        cached = ", clean side from the cache" if spec.cache_clean else ""
        tokens = f"{spec.batch_size} x {spec.seq_len} tokens"
        say(f"\n{entry.label}, {tokens}, {spec.model}, SAE {spec.sae}{cached}")
        with self.ours() as ours:
            start = ours.call("start")
            with self.plain(start) as plain:
                plain.call("start", start["weights"])
                self.result = {
                    "label": entry.label,
                    "config": entry.settings,
                    "spec": vars(spec),
                    **ours.call("provenance"),
                    "sides": settings(ours, plain),
                    "fill_seconds_per_token": filling,
                }
                self._race(ours, plain, began, left)
            self.result |= ours.call("fields")
        self.result |= report.summary(self.result)
        report.describe(self.result)
        new_json(self.path, self.result)
        self.partial.unlink()
        return start

    def _race(self, ours: Side, plain: Side, began: clock.Reading, left: int) -> None:
        """The pairs; they and what follows from them are written after each one."""
        if self.partial.exists():
            say(f"the race of {self.partial} was broken off: this is a fresh one")
        rows = step_in_turn(ours, plain, WARM_UP + self.pairs)
        warm_up = list(islice(rows, WARM_UP))
        self._tell_duration(warm_up[0], clock.read().since(began).seconds, left)
        watch = busy.Watch([ours.pid, plain.pid])
        pairs: list[report.Fields] = []
        for row in rows:
            pairs = [*pairs, row]
            sides, seconds = settings(ours, plain), [pair["ours"]["seconds"] for pair in pairs]
            so_far = {
                "n_pairs": {"done": len(pairs), "asked": self.pairs},
                "sides": sides,
                "pairs": pairs,
                "warm_up": warm_up,
                "largest_difference": max(row["difference"] for row in warm_up + pairs),
                "tolerance": report.tolerance(sides),
                "peak_bytes": {"ours": ours.call("peak"), "plain": plain.call("peak")},
                "disturbance": busy.verdict(seconds, watch.shares(), self.spec.device == "cpu"),
            }
            with blocked():  # a signal finds a pair told and written, or neither
                self.result |= so_far
                self.result |= report.summary(self.result)
                new_json(self.partial, self.result)

    def _tell_duration(self, warm_up: report.Fields, loading: float, left: int) -> None:
        """About how long the pairs will take, and all races: each has to load, too.

        What comes after the pairs (the profile, the floor) takes about one pair.
        """
        pair = sum(warm_up[side]["seconds"] for side in report.SIDES)
        whole = left * (self.pairs + 1) * pair + (left - 1) * loading
        races = "this race" if left == 1 else f"the {left} races"
        say(f"{self.pairs} pairs: {in_words(self.pairs * pair)}; {races}: {in_words(whole)}")

    def broken_off(self, stop: Interrupted) -> None:
        """Say what is kept of a race that a signal ended."""
        if "pairs" in self.result:
            report.describe_median(self.result)
            report.describe_machine(self.result)
            done, asked = self.result["n_pairs"].values()
            say(f"{stop} after {done} of {asked} pairs, which are in {self.partial}")

    def best_batches(self, start: report.Fields) -> report.Fields:
        """The best batch of each side (`climb`), and the ratio of their rates.

        One side at a time: neither holds memory of the device while the other is timed.
        """
        say("best batch: ours, then plain")
        with self.ours() as side:
            ours = climb(lambda batch: side.call("probe", batch))
        with self.plain(start) as side:
            side.call("start", start["weights"])
            plain = climb(lambda batch: side.call("probe", batch, self.spec.seq_len))
        rates = [best["tokens_per_second"] for best in (ours, plain)]
        ratio = None if None in rates else rates[0] / rates[1]
        best = {"ours": ours, "plain": plain, "ratio": ratio}
        report.describe_best(best)
        return best


def prepare(*arguments: Any) -> float | None:
    """`Ours(*arguments).prepare()`, for a process that ends with it."""
    preflight.quiet_libraries()
    from bench.speed.ours import Ours

    return Ours(*arguments).prepare()


def settings(ours: Side, plain: Side) -> report.Fields:
    """The `setting` of each side."""
    return {"ours": ours.call("setting"), "plain": plain.call("setting")}


def step_in_turn(ours: Side, plain: Side, n_pairs: int) -> Iterator[report.Fields]:
    """Pairs of steps on the same tokens: what each side measured, and how the losses differ."""
    say(f"{'pair':>7} {'loss ours':>11} {'plain':>11}   differ   s ours    plain  ratio")
    for number in range(n_pairs):
        mine = ours.call("step")
        theirs = plain.call("step", mine.pop("tokens"))
        if not math.isfinite(mine["loss"] + theirs["loss"]):
            raise RunFailed(f"a loss is not finite: ours {mine['loss']}, plain {theirs['loss']}")
        difference = abs(mine["loss"] - theirs["loss"]) / abs(theirs["loss"])
        name = "warm-up" if number < WARM_UP else str(number - WARM_UP + 1)
        say(
            f"{name:>7} {mine['loss']:11.6f} {theirs['loss']:11.6f} {difference:8.0e} "
            f"{mine['seconds']:8.3f} {theirs['seconds']:8.3f}  "
            f"{theirs['seconds'] / mine['seconds']:.2f}x"
        )
        yield {"ours": mine, "plain": theirs, "difference": difference}


def plain_settings(spec: Spec, entry: Entry, start: report.Fields, dtype: str) -> dict[str, Any]:
    """The keyword arguments of `Reference`; `dtype` is the number format of its LM."""
    config = entry.config
    settings = {"lr": config.lr, "clip": config.clip, "skipped": int(spec.scored != "all")}
    settings |= {"device": spec.device, "dtype": dtype}
    if spec.weights == "random":
        settings["drawn"] = spec.dtype  # other formats draw other numbers
    if entry.name == "lora":
        names = [name.split(".lora_")[0].split(".") for name in start["weights"]]
        settings["adapters"] = {
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": 0.0,
            "target_modules": sorted({name[-1] for name in names}),
            "layers_to_transform": sorted({int(name[4]) for name in names}),
            "task_type": "CAUSAL_LM",
        }
    return settings


def climb(probe: Callable[[int], report.Fields | None]) -> report.Fields:
    """`probe(batch)` of 1, 2, 4, ... windows until memory runs out or it is worth it no more.

    Gives the best `batch` (None if not even one window fits), its `tokens_per_second`, and all
    that was `tried`.
    """
    tried, before = [], 0
    for batch in (2**power for power in count()):
        rate = probe(batch) or {"batch": batch, "tokens_per_second": None}
        tried.append(rate)
        if not rate["tokens_per_second"] or rate["tokens_per_second"] < WORTH_IT * before:
            break
        before = rate["tokens_per_second"]
    best = max(tried, key=lambda rate: rate["tokens_per_second"] or 0)
    fits = best["tokens_per_second"] is not None
    return {
        "batch": best["batch"] if fits else None,
        "tokens_per_second": best["tokens_per_second"],
        "tried": tried,
    }
