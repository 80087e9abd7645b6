"""The files of the methods: where they are, what they say, what they import.

The file name is the method's name; there is no registry. A file elsewhere is named by its path.
"""

import ast
import dataclasses
import importlib.util
import os
import pkgutil
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import methods
from bench.errors import Fault, Unavailable, Usage, unknown


def names() -> list[str]:
    """The method files there are; a leading underscore hides a helper."""
    return [name for name in _files() if name[0] != "_" and _is_method(name)]


def _files() -> list[str]:
    return sorted({module.name for module in pkgutil.iter_modules(methods.__path__)})


def _is_method(name: str) -> bool:
    """Whether a file speaks of what a method has; beside one of one's own lies anything."""
    try:
        return {"Config", "train"} <= set(re.findall(r"\w+", _text(name)))
    except (OSError, ValueError, Usage):
        return False


def from_path(label: str) -> str:
    """`PATH.py:lr=1` -> `NAME:lr=1`, and methods are looked for beside that file from now on, also
    by processes that are started; another label as it is. `Usage` for a file that cannot be one."""
    path, colon, settings = label.partition(":")
    if not path.endswith(".py"):
        return label
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise Usage(f"--methods {path}: no such file: expected one with a Config and a train")
    if not file.stem.isidentifier() or file.stem[0] == "_":
        name = re.sub(r"\W", "_", file.stem).lstrip("_") or "own"
        raise Usage(f"--methods {path}: expected a name such as {name}.py")
    if str(file.parent) not in methods.__path__:
        methods.__path__.append(str(file.parent))
        before = os.environ.get(methods.FOLDERS, "")
        os.environ[methods.FOLDERS] = os.pathsep.join(filter(None, [before, str(file.parent)]))
    spec = importlib.util.find_spec(f"methods.{file.stem}")
    if spec is None or spec.origin is None or not file.samefile(spec.origin):
        raise Usage(f"--methods {path}: another method has that name: give the file its own")
    if not _is_method(file.stem):
        raise Usage(f"--methods {path}: expected a Config and a train in it")
    _typed[file.stem] = path
    return f"{file.stem}{colon}{settings}"


_typed: dict[str, str] = {}
"""Method -> the path that it was named by."""


def as_typed(label: str) -> str:
    """A label as it has to be typed: with the path, where the method was named by one."""
    name, colon, settings = label.partition(":")
    return f"{_typed.get(name, name)}{colon}{settings}"


def imported(name: str) -> ModuleType:
    """The module of a method, whose `Config` is a dataclass.

    Raises `Usage` for a file that does not load, `Unavailable` where it imports a package that is
    not installed.
    """
    try:
        module = importlib.import_module(f"methods.{name}")
        get_type_hints(module.Config), dataclasses.fields(module.Config)
    except ModuleNotFoundError as error:
        raise _missing(name, error) from None
    except Fault:
        raise
    except Exception as error:  # whatever a file of one's own does when it is imported
        raise Usage(f"methods/{name}.py does not load: {type(error).__name__}: {error}") from None
    return module


def _missing(name: str, error: ModuleNotFoundError) -> Fault:
    """The fault of a method's file that imports `error.name`, which is not there."""
    package = (error.name or "").partition(".")[0]
    if error.name == f"methods.{name}":
        where = f"a file of your own is found where {methods.FOLDERS} names its folder"
        return Usage(f"no method '{name}': {where}")
    if package in ("", "bench", "methods") or importlib.util.find_spec(package):
        return Usage(f"methods/{name}.py does not load: {type(error).__name__}: {error}")
    return Unavailable(
        f"methods/{name}.py needs '{package}', which is not installed: pip install {package}"
    )


def summary(name: str) -> str:
    """The first line of the method's file, read without importing it."""
    try:
        text = ast.get_docstring(ast.parse(_text(name))) or "(its file says nothing of it)"
    except (SyntaxError, ValueError) as error:
        return f"does not load: {type(error).__name__}: {error}"
    return text.partition("\n")[0]


def source(name: str) -> str:
    """The text of a method's file, and of the methods that it imports, without importing any."""
    content = _text(name)
    return content + "".join(map(source, _methods_of(content)))


def _text(name: str) -> str:
    """The text of the file itself."""
    spec = importlib.util.find_spec(f"methods.{name}")
    if spec is None or spec.origin is None:
        raise unknown("method", name, _files())
    return Path(spec.origin).read_text(encoding="utf-8")


@cache
def _methods_of(content: str) -> list[str]:
    """The methods that a method's file imports."""
    return [other for node in ast.parse(content).body for other in _methods_in(node)]


def _methods_in(statement: ast.stmt) -> list[str]:
    """The methods that one statement of a method's file imports, however it does."""
    if isinstance(statement, ast.ImportFrom) and statement.module == "methods":
        return [alias.name for alias in statement.names]
    modules = [alias.name for alias in getattr(statement, "names", ()) if hasattr(alias, "name")]
    if isinstance(statement, ast.ImportFrom):
        modules = [statement.module or ""]
    return [m.removeprefix("methods.") for m in modules if m.startswith("methods.")]


def same_code(text: str, other: str) -> bool:
    """Whether two texts of a method do the same: imports, docstrings, types, comments aside.

    Where a name is imported from, and how it is annotated, decides no number.
    """
    return text == other or _code(text) == _code(other)


@cache
def _code(text: str) -> str:
    try:
        return ast.dump(_Bare().visit(ast.parse(text)))
    except SyntaxError:
        return text


class _Bare(ast.NodeTransformer):
    """A tree without imports, docstrings and annotations."""

    def _no_import(self, node: ast.stmt) -> None:
        return None

    visit_Import = visit_ImportFrom = _no_import

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        return node.value and self.generic_visit(ast.Assign([node.target], node.value))
