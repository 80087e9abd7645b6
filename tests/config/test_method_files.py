"""A method's file that does not load, lacks something or lies elsewhere is one line."""

import sys

import pytest

import methods
from bench.config import method
from bench.config.method_files import imported
from bench.errors import Unavailable, Usage


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """Write a method's file of this name -> its module's name; forgotten afterwards."""
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])

    def plant(name, imports, field="pass"):
        lines = ['"""Planted."""', "from dataclasses import dataclass", imports]
        lines += ["@dataclass(frozen=True)", "class Config:", f"    {field}"]
        lines += ["def train(problem, batches, config):", "    pass"]
        (tmp_path / f"{name}.py").write_text("\n".join(lines) + "\n")
        monkeypatch.delitem(sys.modules, f"methods.{name}", raising=False)
        return name

    yield plant
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(f"methods.{path.stem}", None)


def test_a_method_that_needs_a_package(planted, command, monkeypatch):
    planted("wants_foo", "import foo_of_ours.part")
    with pytest.raises(Unavailable) as caught:
        method.entry("wants_foo")
    message = "methods/wants_foo.py needs 'foo_of_ours', which is not installed: "
    assert str(caught.value) == message + "pip install foo_of_ours" and caught.value.code == 4
    code, out, _ = command("methods")
    assert code == 0 and "wants_foo: Planted." in out
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(Unavailable, match="methods/wants_yaml.py needs 'yaml'"):
        method.entry(planted("wants_yaml", "import yaml"))


WRONG = """from json import nope
import json.nope
import methods.nope
1 +
raise RuntimeError("at import")
dataclass = lambda frozen: lambda kind: kind"""


@pytest.mark.parametrize("imports", WRONG.split("\n"))
def test_a_method_that_is_wrong_itself(planted, imports):
    with pytest.raises(Usage, match="methods/wrong.py does not load: "):
        method.entry(planted("wrong", imports))


def test_a_list_says_which_method_does_not_load(planted, command, tmp_path):
    planted("wrong", "1 +")
    (tmp_path / "silent.py").write_text("from methods.lora import Config, train\n")
    (tmp_path / "helper.py").write_text("x = 1\n")
    code, out, err = command("methods")
    assert code == 0 and not err
    assert "wrong: does not load: SyntaxError: " in out
    assert "silent: (its file says nothing of it)" in out and "lora: Low-rank" in out
    assert "helper" not in out


def test_a_field_without_a_default_is_asked_for(planted):
    name = planted("asks", "", field="rank: int")
    with pytest.raises(Usage, match="asks: 'rank' has no default: write asks:rank=VALUE"):
        method.entry(name)
    assert method.entry(f"{name}:rank=3").settings == {"rank": 3}
    assert imported(name).Config(rank=3)  # as a finished run is loaded


def test_a_method_that_is_nowhere_says_where_it_would_be_found():
    with pytest.raises(Usage, match="no method 'gone': .* where SPLICEBENCH_METHODS names"):
        imported("gone")
