"""The floors of pyproject.toml are the versions that `make test-floors` runs the tests with."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
UNSEEN = "torch"
"""Its floor is that of machines which CI does not have; CI's own version is tested instead."""


def requirements():
    """What the package and its extras ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]


def pinned(name):
    """The versions of a constraints file by canonical name; its lines say `==` and nothing else."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith("#"):
            package, version = line.split("==")
            assert canonicalize_name(package) not in found, f"{package} is there twice"
            found[canonicalize_name(package)] = Version(version)
    return found


def floor(requirement):
    """The lowest version that a requirement admits."""
    (found,) = (one.version for one in requirement.specifier if one.operator in (">=", "=="))
    return Version(found)


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_a_floor_is_what_is_tested(requirement):
    tested = pinned("constraints-floor.txt")[canonicalize_name(requirement.name)]
    if requirement.name == UNSEEN:
        assert floor(requirement) < tested == pinned("constraints.txt")[UNSEEN]
    else:
        assert floor(requirement) == tested


def test_what_ci_uses_is_admitted_and_no_older_than_the_floors():
    used, floors = pinned("constraints.txt"), pinned("constraints-floor.txt")
    for requirement in requirements():
        assert used[canonicalize_name(requirement.name)] in requirement.specifier
    assert {name for name in floors if used[name] < floors[name]} == set()
