"""Jobs spread over devices, with devices that are but names: what runs beside what, and in which
order; and the records of an experiment that was spread."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.config.spec import Spec
from bench.errors import RunFailed
from bench.experiments import experiment, plans, schedule
from bench.experiments.scales import LAPTOP, SCALES
from bench.experiments.schedule import Item, Queue, spread, visible
from bench.harness import checkpoint
from bench.harness.signals import Interrupted
from bench.io import ranks
from bench.io.clock import read as read_clock
from bench.io.files import new_folder
from bench.io.record import read
from bench.problem.gradient_check import Reached
from tests.experiments.test_experiment import SMALL
from tests.helpers import forked, plants
from tests.helpers.killed import deterministic


class Told:
    """What `spread` tells, in order."""

    def __init__(self):
        self.lines, self.results, self.seconds = [], {}, {}

    def begun(self, job, device):
        self.lines.append(("begun", job, device))

    def ended(self, job, device, seconds, task):
        self.lines.append(("ended", job, device))
        self.seconds[job] = seconds
        try:
            self.results[job] = task.result()
        except RunFailed as fault:
            self.results[job] = str(fault)
        return isinstance(self.results[job], dict)


def run(names, devices, work, **items):
    """Spread jobs that are names; `items` are the fields of those that wait for something."""
    told = Told()
    listed = [Item(name, name, **items.get(name, {})) for name in names]
    spread(listed, devices, work, told.begun, told.ended)
    return told


def seen(name):
    return {"device": os.environ[schedule.VISIBLE], "pid": os.getpid()}


def test_each_process_sees_one_device(monkeypatch):
    monkeypatch.setenv(schedule.VISIBLE, "3,7")
    told = run("abcd", visible(pytest.fail), seen)
    assert {told.results[name]["device"] for name in "abcd"} == {"3", "7"}
    assert len({told.results[name]["pid"] for name in "abcd"} | {os.getpid()}) == 5
    begun = {job: device for what, job, device in told.lines if what == "begun"}
    assert all(told.results[name]["device"] == begun[name] for name in "abcd")
    assert os.environ[schedule.VISIBLE] == "3,7"
    assert all(0 < told.seconds[name] < 30 for name in "abcd")


def test_two_devices_run_two_jobs_at_once(tmp_path):
    def meets(name):
        (tmp_path / name).touch()
        forked.until((tmp_path / {"a": "b", "b": "a"}[name]).exists, seconds=20)
        return {}

    assert run("ab", ["0", "1"], meets).results == {"a": {}, "b": {}}


def test_a_device_has_one_job_at_a_time():
    told, busy = run("abcdefg", ["0", "1", "2"], seen), set()
    for what, _, device in told.lines:
        assert (device in busy) == (what == "ended")
        busy ^= {device}


def order(told):
    return [(what, job) for what, job, _ in told.lines]


def test_a_job_waits_for_what_it_goes_on_from():
    lines = order(run("abc", ["0", "1"], seen, b={"after": "a"}, c={"after": "x"}))
    assert lines.index(("ended", "a")) < lines.index(("begun", "b"))
    assert lines.index(("begun", "c")) < lines.index(("begun", "b"))  # nobody waits for `x`


def test_what_several_share_is_made_by_the_first(tmp_path):
    def makes(name):
        if name != "d":  # all three are there at once
            (tmp_path / name).touch()
        forked.until(lambda: name in "ad" or len(list(tmp_path.iterdir())) == 3, seconds=20)
        return {}

    shared = {name: {"makes": "the SAE"} for name in "abc"}
    told = run("abcd", ["0", "1", "2"], makes, **shared)
    assert order(told)[:2] == [("begun", "a"), ("begun", "d")]
    assert order(told).index(("ended", "a")) < order(told).index(("begun", "b"))
    assert told.results == dict.fromkeys("abcd", {})


def test_where_the_first_fails_the_next_one_makes_it():
    queue = Queue([Item(name, name, makes="the SAE") for name in "abc"])
    first = queue.take()
    assert first.job == "a" and queue.take() is None
    queue.ended(first, well=False)
    second = queue.take()
    assert second.job == "b" and queue.take() is None
    queue.ended(second, well=True)
    assert queue.take().job == "c"


def test_one_that_fails_or_is_killed_leaves_the_others(capfd):
    def work(name):
        if name == "a":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "b":
            raise ValueError("planted")
        return {}

    told = run("abcd", ["0", "1"], work, d={"after": "a"})
    assert "ended by SIGKILL" in told.results["a"]
    assert told.results["b"] == "ValueError: planted"
    assert told.results["c"] == told.results["d"] == {}


def test_a_signal_stops_all(tmp_path):
    def work(name):
        try:
            (tmp_path / name).touch()
            forked.until(lambda: len(list(tmp_path.glob("?"))) == 2)
            if name == "a":
                os.kill(os.getppid(), signal.SIGTERM)
            signal.pause()
        finally:
            (tmp_path / f"{name} wrote").touch()

    with pytest.raises(Interrupted) as raised:
        run("abc", ["0", "1"], work)
    assert raised.value.code == 143
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "a wrote", "b wrote"}


def test_a_fault_of_the_command_itself_stops_all(tmp_path):
    def work(name):
        (tmp_path / name).touch()
        if name == "b":
            forked.until((tmp_path / "a").exists)
            return {}
        signal.pause()

    def ended(*_):
        raise RunFailed("no room")

    started = read_clock()
    with pytest.raises(RunFailed, match="no room"):
        spread([Item(n, n) for n in "ab"], ["0", "1"], work, lambda *_: None, ended)
    assert read_clock().since(started).seconds < 20


def test_what_cuda_would_see(monkeypatch):
    monkeypatch.delenv(schedule.VISIBLE, raising=False)
    assert visible(lambda: 2) == ["0", "1"] and visible(lambda: 0) == []
    for given, names in [("", []), ("-1", []), ("0, 2", ["0", "2"]), ("1,-1,0", ["1"])]:
        monkeypatch.setenv(schedule.VISIBLE, given)
        assert visible(pytest.fail) == names


ALONE = {}
"""The records of one device, once they are made: what is the same for all tests is made once."""


@pytest.fixture
def begin(folder, tmp_path, monkeypatch):
    """Start two experiments at a tiny scale, on some devices; each has a folder and a cache."""
    spec = replace(Spec(), model=str(folder / "model"), text=str(folder / "text"), **SMALL)
    tiny = replace(LAPTOP, spec=spec, seeds=(0, 1), shares=(0.5, 1.0))
    monkeypatch.setitem(SCALES, "laptop", lambda: tiny)
    monkeypatch.setattr("analysis.report.report_experiments", lambda folder: ("", []))
    number = iter(range(100))

    def begin(name, devices, plant=lambda: None):
        here = tmp_path / name
        here.mkdir(exist_ok=True)
        monkeypatch.chdir(here)
        monkeypatch.setenv("SPLICEBENCH_CACHE", str(here / "cache"))
        monkeypatch.setattr(experiment, "visible_to", lambda todo: devices)
        given = ["experiment", "timing", "additivity", "--out", "out", "--checkpoint-every", 0]
        return forked.Command(given, tmp_path / f"log-{next(number)}", plant)

    return begin


@pytest.fixture
def alone(begin, tmp_path):
    """What came out on one device, and its folder of records."""
    if not ALONE:
        one = begin("one", ["0"])
        assert one.wait() == 0, one.err
        assert "GPU" not in one.out
        ALONE.update(out=tmp_path / "one" / "out", made=deterministic(tmp_path / "one" / "out"))
    return ALONE


def test_the_records_are_those_of_one_device(begin, alone, tmp_path):
    two = begin("two", ["0", "1"])
    assert two.wait() == 0, two.err + two.out
    assert deterministic(tmp_path / "two" / "out") == alone["made"]
    manifests = [f"{name}.json" for name in ("timing", "additivity")]
    for name in manifests:
        two_wrote = (tmp_path / "two" / "out" / name).read_text()
        assert (alone["out"] / name).read_text() == two_wrote
    n_runs = sum(len(plans.jobs(name, "laptop")) for name in ("timing", "additivity"))
    ended = [line for line in two.out.splitlines() if line.startswith("[")]
    assert f"{len(ended)} runs to do on 2 GPUs: about" in two.out
    assert 0 < len(ended) <= n_runs and {" on GPU 0", " on GPU 1"} <= {
        line[line.index(" on GPU") :][:9] for line in ended
    }
    assert two.out.count("training the SAE") == 2  # one for each seed, though six runs want it


def test_a_stopped_experiment_goes_on(begin, alone, tmp_path):
    first = begin("two", ["0", "1"], plants.slowly(checkpoint, "write", 0.5))
    forked.until(lambda: len(list((tmp_path / "two" / "out").glob("*/step-*.pt"))) >= 2)
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    (line,) = first.err.strip().splitlines()
    start = ranks.start_as_typed()
    assert line.startswith(f"bench: SIGTERM: stopped; to go on: {start} experiment")
    again = begin("two", ["0", "1"])
    assert again.wait() == 0, again.err
    assert "goes on from step" in again.out
    assert deterministic(tmp_path / "two" / "out") == alone["made"]


def test_a_run_that_is_killed_costs_those_that_go_on_from_it(begin, alone, tmp_path):
    def is_lora(folder, *_):
        return folder.name.startswith("lora")

    kill = plants.before(checkpoint, "write", 2, forked.kill_this, is_lora)
    first = begin("two", ["0", "1"], kill)
    assert first.wait() == 5, first.err + first.out
    assert "lora seed 0 share=1.0: its process was ended by SIGKILL" in first.out
    assert "lora seed 1, which it goes on from, did not finish" in first.out
    there = [read(path) for path in (tmp_path / "two" / "out").glob("*.jsonl")]
    ends = {(run.header["method"], run.status) for run in there}
    assert ends == {("mse", "finished"), ("e2e", "finished"), ("lora", "error")}
    again = begin("two", ["0", "1"])
    assert again.wait() == 0, again.err
    assert deterministic(tmp_path / "two" / "out") == alone["made"]


def test_the_second_ctrl_c_kills_all(begin, tmp_path):
    command = begin("two", ["0", "1"], plants.slowly(Reached, "__call__", seconds=60))
    forked.until(lambda: list((tmp_path / "two").glob("**/step-00000000-*.pt")))
    started = read_clock()
    command.send(signal.SIGINT)
    time.sleep(0.5)
    assert os.waitpid(command.pid, os.WNOHANG) == (0, 0)
    command.send(signal.SIGINT)
    assert command.wait() == 130
    assert read_clock().since(started).seconds < 30
    forked.until(lambda: nobody_in(command.pid))


def nobody_in(group):
    """Whether no process of this group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_only_jobs_for_a_gpu_are_spread(monkeypatch):
    monkeypatch.setenv(schedule.VISIBLE, "0,1")
    on = {name: [("timing", job)] for name in SCALES for job in plans.jobs("timing", name)}
    assert experiment.visible_to(on["laptop"]) == ["cpu"]
    assert experiment.visible_to(on["gpu-smollm2"]) == ["0", "1"]
    assert experiment.visible_to([*on["gpu-smollm2"], *on["laptop"]]) == ["cpu"]
    monkeypatch.setenv(schedule.VISIBLE, "")
    assert len(experiment.visible_to(on["gpu-smollm2"])) == 1


def test_a_folder_that_two_make_at_once_is_that_of_the_first(tmp_path, monkeypatch):
    made = tmp_path / "sae"
    with new_folder(made) as late:
        (late / "late").touch()
        made.mkdir()
        (made / "first").touch()
        monkeypatch.setattr(Path, "exists", lambda path: False)  # between the look and the name
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]
    assert [path.name for path in made.iterdir()] == ["first"]
