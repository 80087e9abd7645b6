"""The suite's only clock: seconds come from `perf_counter`, stamps of the day are for people.

`perf_counter` never goes back and does not count the time that a machine is suspended, so a
duration is never negative. Two other clocks are read beside it, to notice what it does not show.
"""

import time
from datetime import UTC, datetime
from typing import NamedTuple


class Reading(NamedTuple):
    """Three clocks at one moment, in seconds; or what passed between two moments."""

    seconds: float
    """`perf_counter`, from which durations come."""
    boot: float
    """The same, but it goes on while the machine is suspended (Linux)."""
    wall: float
    """The time of day, which somebody may set."""

    def since(self, earlier: "Reading") -> "Reading":
        """What passed since an earlier reading."""
        return Reading(*(now - then for now, then in zip(self, earlier, strict=True)))

    @property
    def suspended(self) -> float:
        """Seconds that the machine was suspended for."""
        return _noticed(self.boot - self.seconds)

    @property
    def jump(self) -> float:
        """Seconds that the time of day was set forth, or back where it is negative."""
        return _noticed(self.wall - self.boot)


LEAST = 1.0
"""Seconds that two clocks must differ by; less is how they drift."""


def _noticed(difference: float) -> float:
    return difference if abs(difference) > LEAST else 0.0


def read() -> Reading:
    """The clocks now."""
    seconds = time.perf_counter()
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return Reading(seconds, seconds if boot is None else time.clock_gettime(boot), time.time())


def timestamp() -> str:
    """The time of day in UTC, as `2026-11-22T15:00:00.000Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
