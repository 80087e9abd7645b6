"""Whether a record was made from what is there now: method's file, torch, model, text.

Nothing here imports torch, so that what is done is known at once.
"""

import ast
import importlib.util
from functools import cache
from importlib.metadata import version
from pathlib import Path

from bench import documents, hub, models
from bench.errors import Usage


def now(spec, name):
    """The fields of a header that can be told without loading; None where one cannot."""
    return {
        "method": name,
        "source": source(name),
        "versions": {"torch": version("torch")},
        "model": {"sha256": _model(spec.model)},
        "text_sha256": documents.source_sha256(spec),
    }


def check_unchanged(header, present, path):
    """Raise `Usage` where a record's `header` differs from the `present` in what it was made of."""
    changed = []
    if _differ(header, present, "source"):
        changed.append(f"methods/{header['method']}.py")
    if _differ(header.get("versions"), present["versions"], "torch"):
        changed.append("torch")
    if _differ(header.get("model"), present["model"], "sha256"):
        changed.append("model")
    if _differ(header, present, "text_sha256"):
        changed.append("text")
    if changed:
        raise Usage(f"{path}: made with another {' and '.join(changed)}; --fresh runs it again")


def _differ(before, after, field):
    values = [(before or {}).get(field), after.get(field)]
    return None not in values and values[0] != values[1]


def source(name):
    """The text of a method's file, and of the methods that it imports, without importing any."""
    content = Path(importlib.util.find_spec(f"methods.{name}").origin).read_text(encoding="utf-8")
    return content + "".join(map(source, _methods_of(content)))


@cache
def _methods_of(content):
    """The methods that a method's file imports."""
    return [other for node in ast.parse(content).body for other in _methods_in(node)]


def _methods_in(statement):
    """The methods that one statement of a method's file imports, however it does."""
    if isinstance(statement, ast.ImportFrom) and statement.module == "methods":
        return [alias.name for alias in statement.names]
    modules = [alias.name for alias in getattr(statement, "names", ()) if hasattr(alias, "name")]
    if isinstance(statement, ast.ImportFrom):
        modules = [statement.module or ""]
    return [m.removeprefix("methods.") for m in modules if m.startswith("methods.")]


def _model(model):
    """The model's hash, where it is a folder of the user's: packages and the hub's do not move."""
    folder = Path(model).expanduser()
    if model.startswith("package:") or hub.is_id(model) or not folder.is_dir():
        return None
    return models.fingerprint(folder)
