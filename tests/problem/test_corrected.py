"""Corrections of an SAE's output: folded they are a plain SAE; ridge is ridge regression."""

import dataclasses
from functools import partial
from typing import get_args

import pytest
import torch
from sae_lens import SAE, SAEConfig

from bench.config import method
from bench.errors import Rejected
from bench.loading import saes
from bench.problem.objectives import reconstruction
from bench.problem.sae import Corrected, correct
from methods.linear import LowRankResidual
from methods.ridge import Ridge
from tests.helpers import tiny
from tests.test_kinds import NORMALISED, last

X = torch.randn(50, tiny.WIDTH, generator=torch.Generator().manual_seed(8))


def any_map(d_in):
    """A linear map with a bias, far from the identity."""
    torch.manual_seed(4)
    return torch.nn.Linear(d_in, d_in).requires_grad_(False)


@pytest.mark.parametrize("on_input", [True, False])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_folded_correction_is_a_plain_sae(kind, on_input, tmp_path):
    lent = tiny.sae_of_kind(kind)
    lent[0].cfg.apply_b_dec_to_input = on_input
    before = {name: value.clone() for name, value in lent.state_dict().items()}
    _, (corrected,) = correct(lent, any_map)
    saes.save(corrected, tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert type(loaded) is type(lent[0])
    torch.testing.assert_close(loaded(X), reconstruction(corrected, X), rtol=1e-4, atol=1e-4)
    assert torch.equal(loaded.encode(X) != 0, corrected.encode(X) != 0)
    expected = any_map(tiny.WIDTH)(reconstruction(lent[0], X))
    torch.testing.assert_close(reconstruction(corrected, X), expected)
    assert all(torch.equal(value, before[name]) for name, value in lent.state_dict().items())


def test_an_sae_that_normalises_each_token_is_refused():
    (sae,) = tiny.sae()
    sae.cfg.normalize_activations = "layer_norm"
    with pytest.raises(Rejected, match="normalises each token"):
        Corrected(sae, any_map(tiny.WIDTH))
    assert "layer" in NORMALISED


MAPS = {"shifts": any_map, "does not": partial(LowRankResidual, rank=4)}
BY_TEXT = ("none", "expected_average_only_in", "covariance_whitening")
"""Scalings that an SAE does not do by itself."""
NORMALISATIONS = (*BY_TEXT, "layer_norm", "constant_norm_rescale")


def test_every_normalisation_that_there_is_has_been_tried():
    (field,) = [one for one in dataclasses.fields(SAEConfig) if one.name == "normalize_activations"]
    older = {"constant_norm_rescale"}  # which SAELens still does where a config asks for it
    assert {*NORMALISATIONS} == {*get_args(field.type)} | older


@pytest.mark.parametrize("make", MAPS)
@pytest.mark.parametrize("scaled", NORMALISATIONS)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_correction_folds_or_is_refused_before_it_is_trained(kind, scaled, make):
    config = {**tiny.sae_of_kind(kind)[0].cfg.to_dict(), "normalize_activations": scaled}
    lent = SAE.from_dict(config)
    lent.load_state_dict(tiny.sae_of_kind(kind)[0].state_dict())
    folds = scaled in BY_TEXT or (scaled == "constant_norm_rescale" and "not" in make)
    if not folds:
        with pytest.raises(Rejected, match=f"normalises each token|activations '{scaled}'"):
            correct([lent], MAPS[make])
        return
    maps, (corrected,) = correct([lent], MAPS[make])
    with torch.no_grad():
        for values in maps.parameters():
            values.add_(torch.randn_like(values))
    made = reconstruction(corrected, 30 * X)
    torch.testing.assert_close(corrected.folded()(30 * X), made, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("shrink", [1e-3, 0.5])
def test_ridge_is_least_squares_with_rows_for_the_pull(shrink):
    y, x = X[:40], torch.randn(40, tiny.WIDTH, generator=torch.Generator().manual_seed(9))
    ridge = Ridge(tiny.WIDTH)
    even = torch.ones(len(y), 1)
    ridge.add(y[:15], x[:15], even[:15])
    ridge.add(y[15:], x[15:], even[15:])
    ridge.solve(shrink)
    centred_y, centred_x = (v.double() - v.double().mean(0) for v in (y, x))
    pull = (shrink * centred_y.square().mean() * len(y)).sqrt()
    eye = torch.eye(tiny.WIDTH, dtype=torch.float64)
    rows = torch.cat([centred_y, pull * eye]), torch.cat([centred_x, pull * eye])
    expected = torch.linalg.lstsq(*rows).solution
    torch.testing.assert_close(ridge.w[:-1].double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ridge(y).mean(0), x.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("label", ["linear:lr=0.05", "affine:lr=0.05", "ridge"])
def test_what_was_trained_is_what_is_saved(label, tmp_path):
    adapted = last(tiny.problem(), label)
    saes.save(adapted.saes[0], tmp_path)
    loaded = saes.load(tmp_path, tiny.WIDTH)
    made = reconstruction(adapted.saes[0], X)
    torch.testing.assert_close(loaded(X), made, rtol=1e-4, atol=1e-4)
    assert (made - reconstruction(tiny.sae()[0], X)).abs().max() > 0.01


def test_joint_carries_the_source_of_lora():
    entry = method.entry("joint")
    assert entry.source.startswith('"""LoRA on the model') and "class LowRank" in entry.source
