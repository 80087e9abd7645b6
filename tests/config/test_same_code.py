"""Records keep the text of their method: what decides no number does not make it another one."""

import pytest

from bench.config.method_files import same_code

METHOD = '''
"""Train a bias."""

from dataclasses import dataclass

from bench.problem import copy_of


@dataclass(frozen=True)
class Config:
    lr: float = 1e-2
    """Step size."""


def train(problem, batches, config):
    saes = copy_of(problem.saes)  # its own
    yield saes
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("from bench.problem import copy_of", "from bench.problem.problem import copy_of"),
        ('"""Train a bias."""', '"""Train the bias alone."""'),
        ('"""Step size."""', ""),
        ("  # its own", ""),
        ("lr: float", "lr: 'float'"),
        ("(problem, batches, config):", "(problem: Problem, batches: Batches, config: Config):"),
        ("config):", "config) -> Iterator[Adapted]:"),
        ("    saes = copy_of", "    saes: ModuleList = copy_of"),
    ],
)
def test_where_names_come_from_and_what_they_are_annotated_with(old, new):
    assert old in METHOD and same_code(METHOD, METHOD.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1e-2", "1e-3"),
        ("copy_of(problem.saes)", "problem.saes"),
        ("lr:", "rate:"),
        ("batches, config", "config, batches"),
        ("def train", "def trains"),
        ("frozen=True", "frozen=False"),
        ("yield saes", "yield saes +"),
    ],
)
def test_anything_else_is_another_method(old, new):
    assert old in METHOD and not same_code(METHOD, METHOD.replace(old, new))
