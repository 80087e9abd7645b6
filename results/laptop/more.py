"""What docs/limits.md and docs/experiments.md say of these records beyond experiments.txt and
CLAIMS: `python results/laptop/more.py`. The output is kept in more.txt."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

from analysis.records import manifest
from analysis.records.manifest import Experiment
from analysis.stats.crossed import Estimate, crossed, ratio
from analysis.stats.gap import ce_difference
from analysis.stats.speedup import whole_runs
from analysis.stats.usable import finished

SHARES = (0.1, 0.5, 1.0)
"""Of the SAE's training, that the others start from."""


def _nats(e: Estimate | None) -> str:
    assert e and e.low is not None
    return f"{e.value:+.4f} [{e.low:+.4f}, {e.high:+.4f}]"


def _own_training(timing: Experiment) -> Iterator[str]:
    yield "CE that the SAE's own training closes, % of the gap:"
    for share, to in pairwise(SHARES):
        end = {run.header["seed"]: run.header for run in timing.runs("lora", share=to)}
        gains, gaps = [], []
        for run in timing.runs("lora", share=share):
            before, after = (
                header["ce_full_spliced"] for header in (run.header, end[run.header["seed"]])
            )
            gains.append([x - y for x, y in zip(before, after, strict=True)])
            clean = run.header["ce_full_clean"]
            gaps.append([x - y for x, y in zip(before, clean, strict=True)])
        e = ratio(gains, gaps)
        assert e.low is not None and e.high is not None
        ends = f"{100 * e.value:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]"
        yield f"  from {share:.0%} of it to {to:.0%}: {ends}"


def _lora_less_e2e(timing: Experiment) -> Iterator[str]:
    yield "Nats of CE, lora less e2e-finetune:"
    for share in SHARES:
        pair = [timing.runs(role, share=share) for role in ("lora", "e2e-finetune")]
        yield f"  around the SAE at {share:.0%}: {_nats(ce_difference(*pair))}"


def _whole_runs(timing: Experiment) -> Iterator[str]:
    yield "Whole runs, seconds of e2e from scratch over those of the SAE and the run, by seed:"
    for role in ("lora", "e2e-finetune"):
        for share in SHARES:
            pairs = zip(timing.runs("e2e"), timing.runs(role, share=share), strict=True)
            found = [whole_runs(*pair, "seconds") for pair in pairs]
            values = [one.value for one in found if one]
            ends = f"{min(values):.3f}, {max(values):.3f}"
            yield f"  {role} at {share:.0%}: {median(values):.3f} [{ends}], the range"


def _in_turn(additivity: Experiment) -> Iterator[str]:
    yield "Nats of CE, one after the other less twice the same:"
    for both, twice in (("lora+e2e", "lora+lora"), ("e2e+lora", "e2e+e2e")):
        pair = [additivity.runs(role, stage=2) for role in (both, twice)]
        yield f"  {both} less {twice}: {_nats(ce_difference(*pair))}"


def _without_the_sae(no_sae: Experiment) -> Iterator[str]:
    values = [entry.measured for entry in no_sae.of("lora")]
    pairs = [zip(v["ce_without_sae"], v["ce_clean"], strict=True) for v in values]
    harm = crossed([[without - clean for without, clean in pair] for pair in pairs])
    yield f"Nats of CE without the SAE, lora less the clean model: {_nats(harm)}"


if __name__ == "__main__":
    there = {k: finished(v) for k, v in manifest.load(Path(__file__).parent).items()}
    parts = [_own_training(there["timing"]), _lora_less_e2e(there["timing"])]
    parts += [_whole_runs(there["timing"]), _in_turn(there["additivity"])]
    parts += [_without_the_sae(there["no-sae"])]
    print("\n\n".join("\n".join(part) for part in parts))
