"""README and docs: short enough, and every link and path in them exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PAGES += [*sorted((ROOT / "results").glob("*.md")), *sorted((ROOT / "results").glob("*/*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
SOURCE = re.compile(r"`((?:bench|methods|analysis|tests)/[\w/.-]+)`")
EXAMPLE = "methods/bias.py"
"""The file that the README's reader is to write."""


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """What GitHub names the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere, and the sources that do not exist."""
    wrong = []
    for link in LINK.findall(text_of(page)):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    named = set(SOURCE.findall(text_of(page))) - {EXAMPLE}
    return wrong + [name for name in sorted(named) if not (ROOT / name).exists()]


def test_the_readme_is_short():
    assert len(text_of(README).split()) <= 1000


def test_the_readmes_method_is_the_examples():
    (block,) = re.findall(r"```python\n(.*?)```", text_of(README), re.S)
    assert block == text_of(ROOT / "examples/bias.py")


@pytest.mark.parametrize("command", ["git clone", "make compare", "make test"])
def test_the_commands_come_first(command):
    assert command in "\n".join(text_of(README).splitlines()[:25])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_paths_exist(page):
    assert broken(page) == []


def test_broken_links_and_paths_are_found(tmp_path):
    (tmp_path / "there.md").write_text("# One heading, two\n", encoding="utf-8")
    links = "[](there.md#one-heading-two) [](gone.md) [](there.md#gone) `bench/gone.py` `bench/io`"
    (tmp_path / "page.md").write_text(links, encoding="utf-8")
    assert broken(tmp_path / "page.md") == ["gone.md", "there.md#gone", "bench/gone.py"]


def test_every_page_is_linked_from_the_readme():
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name}" in text_of(README), page.name
