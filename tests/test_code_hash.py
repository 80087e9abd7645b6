"""What names the caches changes with the code that decides what is in them."""

import shutil

import pytest

from bench import code_hash


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the project -> what its code hashes to after a change of one of its files."""
    shutil.copytree(code_hash.TOP / "bench", tmp_path / "bench", ignore=lambda *_: ["__pycache__"])
    monkeypatch.setattr(code_hash, "TOP", tmp_path)

    def changed(file, old, new, method="mse"):
        path = tmp_path / file
        kept = path.read_text()
        assert old in kept
        path.write_text(kept.replace(old, new))
        code_hash.code.cache_clear()
        found = code_hash.code(method)
        path.write_text(kept)
        code_hash.code.cache_clear()
        return found

    yield changed
    code_hash.code.cache_clear()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("bench/batches.py", "self._seed * 1_000_003", "self._seed * 1_000_033"),
        ("bench/tokens.py", "AT_ONCE = 4_000_000", "AT_ONCE = 4_000_001"),
        ("bench/spec.py", '"sae_share": 1.0', '"sae_share": 0.9'),
        ("bench/saes.py", "import", "import os, "),
        ("bench/descent.py", "import", "import os, "),
    ],
)
def test_a_change_of_what_decides_a_number_is_another_hash(copied, file, old, new):
    before = copied(file, old, old)
    assert copied(file, old, new) != before == copied(file, old, old)


def test_wording_and_plans_are_not_hashed(copied):
    before = copied("bench/errors.py", "class", "class")
    for file in ("bench/errors.py", "bench/progress.py", "bench/plans.py", "bench/corrected.py"):
        assert copied(file, "import", "import os, ") == before


def test_a_method_has_what_it_imports_in_its_hash(copied):
    file = "bench/corrected.py"
    assert copied(file, "import", "import os, ", "affine") != copied(file, "a", "a", "affine")
    assert copied(file, "import", "import os, ", "lora") == copied(file, "a", "a", "lora")


def test_a_relative_import_in_a_method_is_no_fault():
    assert code_hash._imports("from . import lora\nfrom bench.saes import load") == ["bench.saes"]


def test_what_is_left_out_is_there():
    """A name in the list by hand that no file has would hide that a module was renamed."""
    for name in code_hash.NO_NUMBER:
        assert (code_hash.TOP / "bench" / f"{name}.py").exists(), name


def test_every_module_that_touches_tokens_weights_or_losses_is_hashed():
    named = ["tokens", "batches", "documents", "streams", "text", "gguf_keys", "sparsify"]
    assert {f"bench.{name}" for name in named} <= set(code_hash.deciding())
