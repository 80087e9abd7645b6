"""Hash of the code that decides a number, so that none in the cache outlives a change of it."""

import ast
from functools import cache
from pathlib import Path

from bench.record import digest
from bench.unchanged import source

TOP = Path(__file__).resolve().parent.parent
BEGIN = ("bench.loaded", "bench.build")
"""What makes all that is cached: of model and text, and of SAEs."""
NO_NUMBER = ["agree", "cache", "checkpoint", "clock", "code_hash", "done", "errors", "files"]
NO_NUMBER += ["hashes", "hub", "interrupts", "launched", "locks", "meter", "order", "pages"]
NO_NUMBER += ["preflight", "progress", "provenance", "record", "resume", "unchanged"]
"""Modules that no cached number depends on: they name, keep, time or report it."""


@cache
def code(method="mse") -> str:
    """sha256 of what decides the numbers of a method, its own file aside, by default of the one
    that trains SAEs.

    `NO_NUMBER` is kept by hand and all else is found: a module that is missing there makes a
    number anew too often, never too seldom.
    """
    return digest([_path(module).read_text(encoding="utf-8") for module in deciding(method)])


def deciding(method="mse") -> list[str]:
    """The modules `BEGIN` and what they and a method import, however far; sorted."""
    left, found = [*BEGIN, *_imports(source(method))], set()
    while left:
        module = left.pop()
        if module not in found and module.removeprefix("bench.") not in NO_NUMBER:
            found.add(module)
            left += _imports(_path(module).read_text(encoding="utf-8"))
    return sorted(found)


@cache
def _imports(content):
    """The modules of this package that a file imports, at its top or inside a function."""
    found = []
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in found if name.startswith("bench.") and _path(name).exists()]


def _path(module):
    return TOP / (module.replace(".", "/") + ".py")
