"""Real processes, killed and stopped at any instant: the long version is `make test-faults`."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from bench.io import ranks
from bench.io.record import read
from bench.io.verify import verify
from tests.conftest import SMALL
from tests.helpers import forked, plants
from tests.helpers.killed import arguments, deterministic

SHORT, LONG = 1, 22
faults = pytest.mark.faults


class Real:
    """`python -m bench` with its own interpreter, threads and all."""

    def __init__(self, folder, out, module="bench", first=()):
        given = map(str, [*first, *arguments(folder, SMALL, out, steps=60)])
        # Threads that wait without spinning: with others on the machine that is ten times faster.
        threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
        settings = {"SPLICEBENCH_CACHE": str(folder / "cache"), **threads}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings},
            preexec_fn=forked.hear_ctrl_c,
        )

    def end(self):
        """(exit code, stdout, stderr)."""
        out, err = self.process.communicate(timeout=180)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """(what must come out, seconds from the first run's record to the end of the last)."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:  # forked from this one, which saves the imports
        patch.setenv("SPLICEBENCH_CACHE", str(folder / "cache"))
        log = tmp_path_factory.mktemp("log")
        process = forked.Command(arguments(folder, SMALL, out, steps=60), log)
    forked.until(lambda: list(out.glob("lora-*.jsonl")))
    began = time.perf_counter()
    forked.until(lambda: any('"end"' in path.read_text() for path in out.glob("e2e-*.jsonl")))
    took = time.perf_counter() - began
    assert process.wait() == 0, process.err
    return deterministic(out), took


def check_ends_well(folder, out, whole):
    code, _, err = Real(folder, out).end()
    assert code == 0, err
    assert deterministic(out) == whole[0]
    verify([out])


def moments(number):
    """Shares of the time that a comparison takes, the same in every call."""
    draw = random.Random(7)
    return [draw.random() * 0.8 for _ in range(number)]


def strike(folder, out, whole, share, number):
    """Start a comparison, and send it a signal some time after its first run has begun."""
    process = Real(folder, out)
    forked.until(lambda: list(out.glob("lora-*.jsonl")))
    time.sleep(share * whole[1])
    process.process.send_signal(number)
    return process.end()


MOMENTS = [
    pytest.param(share, marks=() if number < SHORT else faults)
    for number, share in enumerate(moments(SHORT + LONG))
]


@pytest.mark.parametrize("share", MOMENTS)
def test_killed_at_random(folder, whole, tmp_path, share):
    code, _, _ = strike(folder, tmp_path, whole, share, signal.SIGKILL)
    assert code == -signal.SIGKILL
    check_ends_well(folder, tmp_path, whole)


@faults
@pytest.mark.parametrize("instant", plants.instants(None))
def test_killed_at_a_chosen_instant(folder, whole, tmp_path, instant):
    code, _, err = Real(folder, tmp_path, "tests.helpers.faulty", [instant]).end()
    assert code == -signal.SIGKILL, err
    check_ends_well(folder, tmp_path, whole)


@faults
@pytest.mark.parametrize("share", moments(10))
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_at_random(folder, whole, tmp_path, share, number, expected):
    code, _, err = strike(folder, tmp_path, whole, share, number)
    assert code == expected and f"stopped; to go on: {ranks.start_as_typed()} compare" in err
    assert err.count("\n") == 1
    assert {read(path).status for path in tmp_path.glob("*.jsonl")} <= {"finished", "interrupted"}
    check_ends_well(folder, tmp_path, whole)
