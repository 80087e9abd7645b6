"""What names the caches changes with the code that decides what is in them."""

import shutil

import pytest

from bench.runs import code_hash


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the project -> what its code hashes to with a line more in one of its files."""
    shutil.copytree(code_hash.BENCH, tmp_path / "bench", ignore=lambda *_: ["__pycache__"])
    monkeypatch.setattr(code_hash, "BENCH", tmp_path / "bench")

    def changed(file, line):
        path = tmp_path / "bench" / file
        kept = path.read_text(encoding="utf-8")
        path.write_text(kept + line, encoding="utf-8")
        code_hash.code.cache_clear()
        found = code_hash.code()
        path.write_text(kept, encoding="utf-8")
        return found

    yield changed
    code_hash.code.cache_clear()


DECIDING = ["problem/batches.py", "loading/tokens.py", "config/spec.py", "problem/training.py"]
DECIDING += ["loading/saes.py", "loading/sae_sources.py", "distributed/shares.py", "runs/setup.py"]
DECIDING += ["devices.py"]


@pytest.mark.parametrize("file", DECIDING)
def test_a_change_of_what_decides_a_number_is_another_hash(copied, file):
    assert copied(file, "\nMORE = 1\n") != copied(file, "") == copied(file, "")


@pytest.mark.parametrize("file", ["errors.py", "experiments/plans.py", "speed/floor.py"])
def test_wording_and_the_wings_are_not_hashed(copied, file):
    assert copied(file, "\nMORE = 1\n") == copied(file, "")


def test_each_method_has_a_hash_of_its_own():
    assert code_hash.code("lora") != code_hash.code("affine") != code_hash.code()
