"""Whatever stdout is, a command ends with one line at most and the exit code of its work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli.parser import parsed
from bench.io import ranks
from bench.io.files import cache_root
from tests.helpers import records

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.runs


def shell(line, **environment):
    """A line of bash in the project's folder, PYTHON standing for the interpreter."""
    line = line.replace("PYTHON", sys.executable)
    settings = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(["bash", "-c", line], env={**os.environ, **environment}, **settings)


@pytest.mark.parametrize(
    "encoding", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_characters_that_stdout_does_not_know(encoding, tmp_path):
    records.write(
        tmp_path, *(records.make(m, gains=[0.1, 0.2, 0.1, 0.1]) for m in ("none", "lora", "e2e"))
    )
    done = shell(f"PYTHON -m analysis {tmp_path}", **encoding)
    assert done.returncode == 0 and done.stderr == ""
    assert "gap closed" in done.stdout


@pytest.mark.parametrize(
    "command", ["-m bench methods", "-m bench specs", "-m bench --help", "-m bench verify results"]
)
class TestACommandThatOnlyPrints:
    def test_to_a_reader_that_leaves(self, command):
        done = shell(f"PYTHON {command} | head -c 1; exit ${{PIPESTATUS[0]}}")
        assert (done.returncode, done.stderr) == (0, "")

    def test_to_nowhere(self, command):
        done = shell(f"PYTHON {command} >&-")
        assert (done.returncode, done.stderr) == (0, "")

    def test_without_any_stream(self, command):
        assert shell(f"PYTHON {command} <&- >&- 2>&-").returncode == 0

    def test_to_a_full_disk(self, command):
        done = shell(f"PYTHON {command} >/dev/full")
        assert done.returncode == 4
        said = "bench: cannot write to stdout: No space left on device; what was run is kept\n"
        assert done.stderr == said


def test_a_cache_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPLICEBENCH_CACHE", "~/x")
    assert cache_root() == tmp_path / "x"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("compare --out=~/x", "out"),
        ("compare --init-adapter=~/x", "init_adapter"),
        ("speed --out=~/x", "out"),
        ("experiment timing --out=~/x", "out"),
        ("export ~/x --to DIR", "run"),
        ("export RUN --to=~/x", "to"),
        ("downstream RUN --to=~/x", "to"),
        ("downstream RUN --include-path=~/x", "include_path"),
        ("downstream RUN --saebench=~/x", "saebench"),
    ],
)
def test_paths_in_the_home_folder(words, name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["bench", *words.split()])
    assert getattr(parsed(), name) == str(tmp_path / "x")
    monkeypatch.setattr(sys, "argv", ["bench", "verify", "~/x", "~/y"])
    assert parsed().paths == [str(tmp_path / "x"), str(tmp_path / "y")]


def test_the_command_to_go_on_with_names_the_interpreter_that_ran(monkeypatch, tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("")
    python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", "/nowhere")
    assert ranks.start_as_typed() == "bin/python -m bench"
    monkeypatch.setenv("PATH", str(python.parent))
    assert ranks.start_as_typed() == "python -m bench"
    assert ranks.start_of_command() == "python -m bench"  # in records, for any machine
