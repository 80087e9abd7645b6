"""How long a step takes on a device, and what memory: for `python -m bench speed`."""

from statistics import median

from bench import devices
from bench.errors import Unavailable, out_of_memory
from bench.harness.meter import timed

WARM_UP, TIMED = 1, 3
"""Steps of a probe that are not timed, and that are."""


def measured(device, function, *arguments):
    """(what the function gives, its seconds until the device has done it all, and peak bytes)."""

    def whole():
        result = function(*arguments)
        devices.synchronize(device)
        return result

    devices.synchronize(device)
    devices.forget_peak(device)
    result, seconds = timed(whole)
    return result, {"seconds": seconds, "device_peak_bytes": devices.peak_bytes(device)}


def probe(steps, device, n_tokens):
    """What a step on `n_tokens` takes, of `steps(number)`, which gives the step to be called.

    None where memory runs out.
    """
    try:
        step = steps(WARM_UP + TIMED)
        for _ in range(WARM_UP):
            step()
        taken = [measured(device, step)[1] for _ in range(TIMED)]
    except (MemoryError, RuntimeError, Unavailable) as error:
        if not out_of_memory(error):
            raise
        return None
    seconds = [one["seconds"] for one in taken]
    return {
        "tokens_per_second": n_tokens / median(seconds),
        "seconds": seconds,
        "device_peak_bytes": max(one["device_peak_bytes"] for one in taken),
    }
