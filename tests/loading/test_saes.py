"""SAEs: identity by content, outputs kept on the way to training and to disk and back."""

import json

import pytest
import torch

from bench.errors import Rejected
from bench.loading import saes
from bench.problem import to_training
from tests.helpers import tiny


def test_an_sae_is_the_same_whatever_the_order_of_its_config(tmp_path):
    saes.save(tiny.sae()[0], tmp_path)
    before = saes.sha256(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    turned = {**dict(reversed(config.items())), "device": "elsewhere"}
    (tmp_path / "cfg.json").write_text(json.dumps(turned))
    assert saes.sha256(tmp_path) == before
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "k": 5}))
    assert saes.sha256(tmp_path) != before


def test_training_form_and_disk_keep_the_outputs(tmp_path):
    lent, x = tiny.sae()[0], torch.randn(7, tiny.WIDTH)
    training = to_training(lent)
    torch.testing.assert_close(training(x), lent(x))
    saes.save(training, tmp_path, share=1.0, run="mse-1", cost=None)
    loaded = saes.load(tmp_path, tiny.WIDTH)
    torch.testing.assert_close(loaded(x), lent(x), rtol=1e-4, atol=1e-4)
    assert saes.cost_of(tmp_path) == {"share": 1.0, "run": "mse-1", "cost": None}


def test_what_is_no_sae_is_refused(tmp_path):
    saes.save(tiny.sae()[0], tmp_path)
    (tmp_path / "cfg.json").write_text("[]")
    with pytest.raises(Rejected, match="not a SAELens config"):
        saes.load(tmp_path, tiny.WIDTH)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    sae = tiny.sae()[0]
    with torch.no_grad():
        sae.W_dec[0, 0] = torch.nan
    saes.save(sae, tmp_path)
    with pytest.raises(Rejected, match="not all finite"):
        saes.load(tmp_path, tiny.WIDTH)


def older(folder, **fields):
    """A Standard SAE as SAELens wrote it before version 6: every field at the top."""
    sae = tiny.sae_of_kind("standard")[0]
    saes.save(sae, folder)
    config = {"d_in": tiny.WIDTH, "d_sae": 4 * tiny.WIDTH, "dtype": "float32", "device": "cpu"}
    config |= {"activation_fn_str": "relu", "activation_fn_kwargs": {}, "hook_name": tiny.SITE}
    config |= {"apply_b_dec_to_input": sae.cfg.apply_b_dec_to_input, **fields}
    (folder / "cfg.json").write_text(json.dumps(config))
    return sae


def test_an_older_format_is_the_function_that_it_was(tmp_path):
    sae, x = older(tmp_path), torch.randn(7, tiny.WIDTH)
    torch.testing.assert_close(saes.load(tmp_path, tiny.WIDTH)(x), sae(x))
    older(tmp_path / "topk", activation_fn_str="topk", activation_fn_kwargs={"k": 3})
    loaded = saes.load(tmp_path / "topk", tiny.WIDTH)
    assert loaded.cfg.architecture() == "topk" and (loaded.encode(x) > 0).sum(1).max() <= 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_fn_str": "tanh-relu"}, "activation 'tanh-relu', expected relu or topk"),
        ({"activation_fn_str": None, "activation_fn": "gelu"}, "activation 'gelu', expected relu"),
        ({"activation_fn_str": "topk"}, "activation 'topk' without a k"),
        ({"activation_fn_kwargs": {"postact_fn": "abs"}}, "activation_fn_kwargs .*postact_fn"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor 'True', expected none"),
        ({"hook_head_index": 0}, "hook_head_index '0', expected none"),
        ({"hook_point_head_index": 3}, "hook_point_head_index '3', expected none"),
    ],
)
def test_an_older_format_that_would_load_as_another_function_is_refused(fields, message, tmp_path):
    older(tmp_path, **fields)
    with pytest.raises(Rejected, match=message):
        saes.load(tmp_path, tiny.WIDTH)
