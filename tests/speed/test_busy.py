"""What a race says of the machine: who else was on its cores, and how far its steps differ."""

import os
import subprocess
import sys

import pytest

from bench.speed import busy

IDLE = {"others": 0.02, "stolen": 0.0}


@pytest.mark.parametrize(
    ("seconds", "shares", "on_cpu", "too_busy"),
    [
        ([2.9, 3.0, 3.0, 3.1, 3.0], IDLE, True, False),
        ([2.9, 3.0, 3.0, 9.0, 3.0], IDLE, True, False),  # a single slow one moves no quartile
        ([2.9, 3.0, 3.0, 3.6, 3.6], IDLE, True, True),
        ([3.0], IDLE, True, False),
        ([3.0, 3.0], {"others": 0.31, "stolen": 0.0}, True, True),
        ([3.0, 3.0], {"others": 0.06, "stolen": 0.06}, True, True),
        ([3.0, 3.0], {"others": 0.31, "stolen": 0.0}, False, False),  # an accelerator's step
        ([3.0, 4.0], {"others": None, "stolen": None}, True, True),
    ],
)
def test_when_a_machine_is_too_busy(seconds, shares, on_cpu, too_busy):
    found = busy.verdict(seconds, shares, on_cpu)
    assert found["too_busy"] == too_busy and shares.items() <= found.items()
    assert busy.in_words(found, seconds).startswith("too busy") == too_busy


def test_what_is_said():
    found = {"others": 0.314, "stolen": 0.05, "spread": 0.2, "too_busy": True}
    assert busy.in_words(found, [2.9, 4.4]) == (
        "too busy to be believed: other processes took 31% of the cores during the pairs; "
        "other virtual machines 5%; our step took 2.90 to 4.40 s"
    )
    unknown = {"others": None, "stolen": None, "spread": None, "too_busy": False}
    assert busy.in_words(unknown, [3.0]) == (
        "quiet enough to be believed: our step took 3.00 to 3.00 s"
    )


def test_the_races_own_processes_are_no_others(monkeypatch):
    readings = iter([(10.0, 1.0, 20.0), (16.0, 2.0, 30.0)])
    spent = {os.getpid(): iter([1.0, 2.0]), 7: iter([3.0, 6.0])}
    monkeypatch.setattr(busy, "core_seconds", lambda: next(readings))
    monkeypatch.setattr(busy, "cpu_seconds", lambda pid: next(spent[pid]))
    assert busy.Watch([7, 7]).shares() == {"others": 0.2, "stolen": 0.1}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/stat is Linux's")
def test_another_process_is_seen():
    watch, before = busy.Watch([]), busy.core_seconds()
    burn = "import time\nwhile time.process_time() < 0.4: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    there = busy.core_seconds()[2] - before[2]
    assert watch.shares()["others"] * there > 0.3


def test_a_system_that_does_not_tell(monkeypatch):
    monkeypatch.setattr(busy, "Path", lambda name: busy.os)  # has no such file
    monkeypatch.setattr(busy.os, "read_text", no_file, raising=False)
    assert busy.Watch([]).shares() == {"others": None, "stolen": None}


def no_file(encoding):
    raise FileNotFoundError
