"""What both sides of a race are asked, and their stopwatch.

Each side is in a process of its own (`bench.speed.remote`) that imports only its own code: what
was imported before a step no longer counts as memory of the step.
"""

import gc
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench import devices
from bench.errors import Unavailable, out_of_memory
from bench.harness.meter import timed

PROBE_WARM_UP, PROBE_TIMED = 1, 3
"""Steps of a probe that are not timed, and that are."""


class Contestant:
    """What both sides can be asked of their device, number format and memory."""

    def __init__(self, device: torch.device, dtype: str) -> None:
        self.device, self.dtype = device, dtype
        self._resident: int | None = None

    def setting(self) -> dict[str, Any]:
        """What the numbers depend on; `tf32`: whether float32 is multiplied in TF32."""
        kind = self.device.type
        tf32 = devices.float32_products(kind) == "TF32"
        return {"device": kind, "dtype": self.dtype, "tf32": tf32}

    def peak(self) -> int | None:
        """Peak memory above the loaded model, in bytes; on a CPU under Linux only."""
        if self.device.type != "cpu" or self._resident is None:
            return None
        return 1024 * (_kib("VmHWM") - self._resident)

    def _watch_memory(self) -> None:
        """Have `peak` count from what is resident now, and forget earlier peaks."""
        gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._resident = _kib("VmRSS")
        except OSError:
            self._resident = None


def measured(device: torch.device, function: Callable, *arguments: Any) -> tuple[Any, dict]:
    """(result of the function, its seconds until the device has done it all, and peak bytes)."""

    def whole() -> Any:
        result = function(*arguments)
        devices.synchronize(device)
        return result

    devices.synchronize(device)
    devices.forget_peak(device)
    result, seconds = timed(whole)
    return result, {"seconds": seconds, "device_peak_bytes": devices.peak_bytes(device)}


def rate(
    steps: Callable[[int], Callable[[], Any]], device: torch.device, n_tokens: int
) -> dict[str, Any] | None:
    """Tokens a second of steps on `n_tokens`, and the peak; None where memory runs out.

    `steps(number)` makes what a run of so many steps needs, and gives the step to be called.
    """
    release(device)
    try:
        step = steps(PROBE_WARM_UP + PROBE_TIMED)
        for _ in range(PROBE_WARM_UP):
            step()
        measures = [measured(device, step)[1] for _ in range(PROBE_TIMED)]
    except (MemoryError, RuntimeError, Unavailable) as error:
        if not out_of_memory(error):
            raise
        return None
    seconds = [one["seconds"] for one in measures]
    return {
        "tokens_per_second": n_tokens / median(seconds),
        "seconds": seconds,
        "device_peak_bytes": max(one["device_peak_bytes"] for one in measures),
    }


def release(device: torch.device) -> None:
    """Hand what is free of an accelerator's memory back, so that none is lost to odd sizes."""
    gc.collect()
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).empty_cache()


def _kib(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(rf"{field}:\s+(\d+) kB", status)[0])
