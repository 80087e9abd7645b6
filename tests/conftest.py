"""What several test files share: a tiny model and text on disk, and the command line on them.

Runs are forked from the tests' own process, so that what a test plants is there in a run. With one
thread that is safe. `test_process.py` and `test_real_kills.py` start processes as users do.
"""

import hashlib
import multiprocessing
import sys
from functools import partial

import huggingface_hub
import pytest
import torch

from bench.cli.commands import main
from bench.config.spec import Spec
from bench.errors import Fault
from bench.loading import models
from bench.runs import loaded, process
from tests.helpers import forked, tiny
from tests.helpers.killed import arguments

process.CONTEXT = multiprocessing.get_context("fork")

SMALL = {
    "site": tiny.SITE,
    "seq-len": 12,
    "batch-size": 2,
    "steps": 4,
    "sae-width": 2,
    "sae-k": 4,
    "sae-tokens": 480,
    "curve-docs": 2,
    "curve-tokens": 48,
    "val-docs": 4,
    "val-tokens": 192,
}


WHOLE = {"command", "start", "reference", "ranks", "begin", "made", "whole", "hang"}
"""Fixtures that run whole commands."""


def pytest_collection_modifyitems(items):
    """Tests of whole commands are marked `runs` and come first, as they take longest: so that no
    worker is left with one of them in the end."""
    for item in items:
        if WHOLE & {*item.fixturenames}:
            item.add_marker(pytest.mark.runs)
    long = {item.path for item in items if item.get_closest_marker("runs")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session", autouse=True)
def no_users_cache(tmp_path_factory):
    """No test reads the user's cache or leaves anything there: a warm one hides faults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLICEBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny model, a tiny text and a cache of their own.

    They are loaded once: what the libraries do at a first use is then done for all that is forked.
    """
    folder = tmp_path_factory.mktemp("inputs")
    tiny.write_model(folder / "model")
    tiny.write_text(folder / "text")
    fields = {name.replace("-", "_"): value for name, value in SMALL.items()}
    spec = Spec(model=str(folder / "model"), text=str(folder / "text"), **fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLICEBENCH_CACHE", str(folder / "cache"))
        loaded.load(spec, folder / "model", tell=False)
    return folder


@pytest.fixture
def online(monkeypatch, tmp_path):
    """The hub's client is not told to stay offline, and has nothing in its cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


call_in_process = process.call


def call_here(function, *arguments):
    """`process.call` without a process, which is several times as fast: for what ends well, or in
    an exception."""
    try:
        return function(*arguments)
    except Fault:
        raise
    except Exception as error:
        raise process.unexpected(error) from None


class LoadedOnce:
    """`models.load` that gives the same bridge again while it is as it was when it was loaded.

    Loading is half of the time of a short run. Runs have processes, and so bridges, of their own
    elsewhere; here one that is left with hooks, gradients or other weights is loaded anew.
    """

    def __init__(self, load):
        self._load, self._kept = load, {}

    def __call__(self, folder, spec, tokenizer, shard=False):
        settings = (spec.device, spec.dtype, spec.weights, spec.center_writing_weights, shard)
        key = (models.fingerprint(folder), str(folder), *settings)
        if key not in self._kept or _state(self._kept[key][0]) != self._kept[key][1]:
            bridge = self._load(folder, spec, tokenizer, shard)
            self._kept[key] = bridge, _state(bridge)
        return self._kept[key][0]


def _state(bridge):
    """What a run may leave on a bridge: a hash of its weights, gradients, hooks."""
    found = hashlib.sha256()
    for parameter in bridge.parameters():
        found.update(parameter.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    left = [p for p in bridge.parameters() if p.requires_grad or p.grad is not None]
    hooked = [n for n, point in bridge.hook_dict.items() if point.fwd_hooks or point.bwd_hooks]
    return found.hexdigest(), len(left), hooked


@pytest.fixture
def draws():
    """For tests that look at the figures of `command`: all others go without, in half the time."""


@pytest.fixture
def command(folder, monkeypatch, capfd, request):
    """Run `python -m bench` in this process -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(folder / "cache"))
    monkeypatch.setattr(process, "call", call_here)
    if "draws" not in request.fixturenames:
        forked.draw_nothing(monkeypatch.setattr)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        with monkeypatch.context() as patch:
            patch.setattr(models, "load", LoadedOnce(models.load))
            code = main()
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def in_processes(command, monkeypatch):
    """Runs of `command` have processes of their own all the same."""
    monkeypatch.setattr(process, "call", call_in_process)


@pytest.fixture
def small(command, folder):
    """`command` with the fields of a small setting, which `changes` may override."""

    def run(name, *arguments, **changes):
        fields = {"model": folder / "model", "text": folder / "text", **SMALL}
        fields |= {field.replace("_", "-"): value for field, value in changes.items()}
        flags = [item for pair in fields.items() for item in (f"--{pair[0]}", pair[1])]
        return command(name, *flags, *arguments)

    return run


@pytest.fixture(scope="session")
def reference(folder, tmp_path_factory):
    """The folder of a comparison that nothing happened to."""
    out = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLICEBENCH_CACHE", str(folder / "cache"))
        command = forked.Command(arguments(folder, SMALL, out / "out"), out / "log")
        assert command.wait() == 0, command.err
    return out / "out"


@pytest.fixture
def start(folder, monkeypatch, tmp_path):
    """Start the comparison in a process."""
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(folder / "cache"))
    number = iter(range(100))

    def begin(*more, plant=lambda: None, draws=False, **changes):
        given = arguments(folder, SMALL, tmp_path / "out", *more, **changes)
        return forked.Command(given, tmp_path / f"log-{next(number)}", plant, draws)

    return begin


@pytest.fixture
def bench(small):
    """`python -m bench compare` on the small setting."""
    return partial(small, "compare")
