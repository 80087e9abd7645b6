"""Whether the seconds of a race can be believed: what else ran, and how far its steps differ."""

import os
from collections.abc import Iterable
from pathlib import Path
from statistics import quantiles
from typing import Any

from bench.runs.process import cpu_seconds

OTHERS = 0.10
"""Share of the cores that others may take on a CPU. A step waits for its slowest thread: a tenth of
two cores may be a fifth of one, and the step then takes a fifth longer."""
SPREAD = 0.10
"""Distance between the quartiles of our step's seconds, over their median. In the
races of results/speed, on a quiet machine, it was 0.02 to 0.10."""


class Watch:
    """What happens from now on on the cores that this process may use."""

    def __init__(self, pids: Iterable[int]) -> None:
        """`pids`: the processes of the race besides this one."""
        self._pids = {os.getpid(), *pids}
        self._before = self._now()

    def shares(self) -> dict[str, float | None]:
        """Shares of the cores since then: of `others`, and `stolen` by other virtual machines.

        None where the system does not tell (not Linux).
        """
        pairs = zip(self._now(), self._before, strict=True)
        others, stolen, there = (max(0.0, now - before) for now, before in pairs)
        if not there:
            return {"others": None, "stolen": None}
        return {"others": others / there, "stolen": stolen / there}

    def _now(self) -> tuple[float, float, float]:
        busy, stolen, there = core_seconds()
        return busy - sum(map(cpu_seconds, self._pids)), stolen, there


def core_seconds() -> tuple[float, float, float]:
    """Seconds since the start of the machine that the cores were busy, were stolen, were there.

    Counts the cores that this process may use; zeros where there is no /proc/stat.
    """
    try:
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0, 0.0, 0.0
    cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    rows = [line.split()[1:9] for line in lines if line.partition(" ")[0] in cores]
    user, nice, system, idle, waiting, irq, softirq, stolen = (
        sum(map(int, column)) / os.sysconf("SC_CLK_TCK") for column in zip(*rows, strict=True)
    )
    busy = user + nice + system + irq + softirq
    return busy, stolen, busy + stolen + idle + waiting


def verdict(seconds: list[float], shares: dict[str, Any], on_cpu: bool) -> dict[str, Any]:
    """`shares`, the `spread` of our step's seconds (None for one step), and if it is `too_busy`.

    Where the step is an accelerator's, the cores say little and the spread alone decides.
    """
    spread = None
    if len(seconds) > 1:
        low, middle, high = quantiles(seconds, n=4, method="inclusive")
        spread = (high - low) / middle
    taken = (shares["others"] or 0) + (shares["stolen"] or 0) if on_cpu else 0
    return {**shares, "spread": spread, "too_busy": taken > OTHERS or (spread or 0) > SPREAD}


def in_words(found: dict[str, Any], seconds: list[float]) -> str:
    """The line about a `verdict`."""
    words = [f"our step took {min(seconds):.2f} to {max(seconds):.2f} s"]
    if (found["stolen"] or 0) >= 0.005:
        words.insert(0, f"other virtual machines {100 * found['stolen']:.0f}%")
    if found["others"] is not None:
        share = f"{100 * found['others']:.0f}%"
        words.insert(0, f"other processes took {share} of the cores during the pairs")
    judged = "too busy to be believed" if found["too_busy"] else "quiet enough to be believed"
    return f"{judged}: {'; '.join(words)}"
