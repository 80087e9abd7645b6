"""Safetensors whose tensors are missing, too many, torn or not finite: one line that names them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.config import method
from bench.errors import Rejected
from bench.loading import peft_format, saes, weights
from tests.export.test_export import an_adapter
from tests.helpers import tiny


@pytest.fixture
def model(folder, tmp_path):
    """A copy of the tiny model, to be spoilt."""
    return shutil.copytree(folder / "model", tmp_path / "model")


def edit(path, change):
    """Change the tensors of a .safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


UP = "model.layers.2.mlp.up_proj.weight"


def spoil_missing(tensors):
    del tensors[UP]


def spoil_extra(tensors):
    tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)
    tensors["a\nb"] = torch.zeros(2)


def spoil_shape(tensors):
    tensors[UP] = torch.zeros(3, 4)


def spoil_nan(tensors):
    tensors[UP][0, :2] = torch.tensor([torch.nan, -torch.inf])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing, f"(missing: {UP})"),
        (spoil_extra, "(unexpected: 'a\\nb', model.layers.9.mlp.up_proj.weight)"),
        (spoil_shape, f"(of another shape: {UP} [3, 4] for [48, 32])"),
        (spoil_nan, f"its weights are not all finite: {UP} has 2 of 1,536 NaN or infinite"),
    ],
)
def test_a_model_whose_weights_are_not_its_own(small, spoil, message, model):
    edit(model / "model.safetensors", spoil)
    code, out, err = small("check", model=model, sae="fresh")
    assert code == 3 and message in err, err
    assert err.count("\n") == 1 and "Traceback" not in out + err


def test_a_torn_model_says_how_much_is_there(small, model):
    path = model / "model.safetensors"
    whole = path.read_bytes()
    for n in (len(whole) - 1, 500, 0):
        path.write_bytes(whole[:n])
        code, _, err = small("check", model=model, sae="fresh")
        assert code == 3 and "model.safetensors: truncated, or not a safe" in err
        assert f"(has {n:,} bytes)" in err and err.count("\n") == 1
    path.write_bytes(b"PK" * 500)
    with pytest.raises(Rejected, match="model.safetensors: truncated, or not a safetensors file"):
        weights.check_files(model)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_whole_model_is_let_in(family, tmp_path):
    """Tied weights are not missing, and the masks of old GPT-2 files are not unexpected."""
    tiny.write_model(tmp_path, family)

    def masks(tensors):
        head = {"lm_head.weight", "model.embed_tokens.weight", "transformer.wte.weight"}
        assert len(head & set(tensors)) == (2 if family == "llama" else 1)
        if family == "gpt2":
            for block in range(tiny.BLOCKS):
                tensors[f"transformer.h.{block}.attn.bias"] = torch.ones(1, 1, 32, 32)
                tensors[f"transformer.h.{block}.attn.masked_bias"] = torch.tensor(-1e4)

    edit(tmp_path / "model.safetensors", masks)
    loaded = weights.load(tmp_path, {"dtype": torch.float32})
    for name, value in tiny.hf_model(family).state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_a_large_value_is_finite():
    weights.check_finite([("a", torch.full((9,), 3e38)), ("b", torch.tensor([1]))], "x")
    with pytest.raises(Rejected, match="x: its weights are not all finite: a has 1 of 2"):
        weights.check_finite([("a", torch.tensor([torch.inf, -3e38]))], "x")


NORM = "model.norm.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
THIRD = "model-00003-of-00003.safetensors"


@pytest.fixture
def sharded(model):
    """The tiny model in two shards: the second holds the last norm alone."""
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    parts = {FIRST: {k: v for k, v in tensors.items() if k != NORM}, SECOND: {NORM: tensors[NORM]}}
    for name, part in parts.items():
        save_file(part, model / name, metadata={"format": "pt"})
    places = {name: file for file, part in parts.items() for name in part}
    write_index(model, places)
    return model


def write_index(model, places):
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
    (model / weights.INDEX).write_text(text)


def places_of(model):
    return json.loads((model / weights.INDEX).read_text())["weight_map"]


def spoil_twice(model):
    edit(model / SECOND, lambda t: t.update({UP: torch.zeros(48, 32)}))


def spoil_place(model):
    write_index(model, places_of(model) | {UP: SECOND})


def spoil_left_out(model):
    write_index(model, {k: v for k, v in places_of(model).items() if k != UP})


def spoil_lacking(model):
    edit(model / FIRST, spoil_missing)


def spoil_file(model):
    shutil.copy(model / SECOND, model / THIRD)


def spoil_no_file(model):
    (model / SECOND).unlink()


def spoil_both_kinds(model):
    shutil.copy(model / FIRST, model / "model.safetensors")


def spoil_no_index(model):
    spoil_both_kinds(model)
    (model / weights.INDEX).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_twice, f"{UP} is in {FIRST} and {SECOND}, the index says {FIRST}"),
        (spoil_place, f"{UP} is in {FIRST}, the index says {SECOND}"),
        (spoil_left_out, f"{UP} is in {FIRST}, the index says nothing of it"),
        (spoil_lacking, f"{UP} is in no file, the index says {FIRST}"),
        (spoil_file, f"{NORM} is in {SECOND} and {THIRD}, the index says {SECOND}"),
        (spoil_no_file, f"{NORM} is in no file, the index says {SECOND}"),
        (spoil_both_kinds, f" is in {FIRST} and model.safetensors, the index says {FIRST}"),
        (spoil_no_index, f"{FIRST} is there beside model.safetensors, and no index names it"),
        (lambda model: (model / weights.INDEX).write_text("{}"), "expected a weight_map of names"),
        (lambda model: (model / weights.INDEX).write_text("{"), "expected a weight_map of names"),
        (lambda model: write_index(model, {"a": 1}), "expected a weight_map of names"),
        (lambda model: write_index(model, {"a": "../x"}), "'../x', expected a file beside it"),
    ],
)
def test_an_index_and_shards_that_do_not_agree(sharded, spoil, message):
    weights.check_files(sharded)
    spoil(sharded)
    with pytest.raises(Rejected) as caught:
        weights.load(sharded, {"dtype": torch.float32})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_shards_that_agree_are_the_model(sharded):
    loaded = weights.load(sharded, {"dtype": torch.float32}).state_dict()
    for name, value in tiny.hf_model("llama").state_dict().items():
        assert torch.equal(loaded[name], value)
    write_index(sharded, {})
    with pytest.raises(Rejected, match=f" is in {FIRST}, the index says nothing of it"):
        weights.check_files(sharded)


def test_an_index_of_torch_files_is_held_against_them_too(sharded):
    for name in (FIRST, SECOND):
        torch.save(load_file(sharded / name), sharded / as_torch(name))
        (sharded / name).unlink()
    places = {name: as_torch(file) for name, file in places_of(sharded).items()}
    (sharded / weights.INDEX).unlink()
    index = sharded / weights.TORCH_INDEX
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    weights.load(sharded, {"dtype": torch.float32})
    index.write_text(json.dumps({"metadata": {}, "weight_map": places | {UP: as_torch(SECOND)}}))
    with pytest.raises(Rejected, match=f"{UP} is in {as_torch(FIRST)}, the index says"):
        weights.load(sharded, {"dtype": torch.float32})


def as_torch(name):
    return name.replace("model", "pytorch_model").replace("safetensors", "bin")


@pytest.fixture
def sae(tmp_path):
    """A SAELens folder."""
    saes.save(tiny.sae()[0], tmp_path / "sae")
    return tmp_path / "sae"


def test_an_sae_whose_tensors_are_not_its_own(small, sae):
    def spoil(tensors):
        tensors["W_extra"] = tensors.pop("b_dec")

    whole = (sae / saes.WEIGHTS).read_bytes()
    edit(sae / saes.WEIGHTS, spoil)
    code, _, err = small("check", sae=sae)
    assert code == 3 and "its tensors are not those of its cfg.json" in err
    assert 'Missing key(s) in state_dict: "b_dec"' in err and err.count("\n") == 1
    assert 'Unexpected key(s) in state_dict: "W_extra"' in err
    (sae / saes.WEIGHTS).write_bytes(whole)
    edit(sae / saes.WEIGHTS, lambda tensors: tensors.update(W_dec=torch.zeros(5, tiny.WIDTH)))
    with pytest.raises(Rejected, match="size mismatch for W_dec: .* torch.Size"):
        saes.load(sae, tiny.WIDTH)
    (sae / saes.WEIGHTS).write_bytes(whole[:-10])
    code, _, err = small("check", sae=sae)
    assert code == 3 and "sae_weights.safetensors: truncated, or not" in err


def test_the_tensor_of_an_sae_that_is_not_finite_is_named(small, sae):
    edit(sae / saes.WEIGHTS, lambda tensors: tensors["b_enc"].fill_(torch.inf))
    code, _, err = small("check", sae=sae)
    assert code == 3 and "its weights are not all finite: b_enc has 128 of 128 NaN" in err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_sae_of_another_precision_is_float32_here(dtype, sae):
    # Copies: safetensors before 0.8 writes over the file that loaded tensors are mapped to.
    before = {name: value.clone() for name, value in load_file(sae / saes.WEIGHTS).items()}
    save_file({name: value.to(dtype) for name, value in before.items()}, sae / saes.WEIGHTS)
    config = json.loads((sae / "cfg.json").read_text())
    for name in ("float32", str(dtype).removeprefix("torch.")):
        (sae / "cfg.json").write_text(json.dumps({**config, "dtype": name}))
        loaded = saes.load(sae, tiny.WIDTH)
        assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, before[name].to(dtype).float())
        assert loaded(torch.randn(3, tiny.WIDTH)).dtype == torch.float32


Q2 = "base_model.model.model.layers.2.self_attn.q_proj.lora"


def spoil_pair(tensors):
    del tensors[f"{Q2}_A.weight"]


def spoil_both(tensors):
    del tensors[f"{Q2}_A.weight"], tensors[f"{Q2}_B.weight"]


def spoil_rank(tensors):
    tensors[f"{Q2}_A.weight"] = torch.zeros(5, 32)


def spoil_layer(tensors):
    for letter in "AB":
        name = f"{Q2}_{letter}.weight"
        tensors[name.replace("layers.2", "layers.1")] = tensors[name].clone()


def spoil_name(tensors):
    tensors["x.lora_B.weight"] = torch.zeros(2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_pair, "layer 2 self_attn.q_proj has {'B': [32, 2]}, expected A [rank, d_in] and B"),
        (spoil_both, "those of adapter_config.json (missing: layer 2 "),
        (
            spoil_rank,
            "has {'A': [5, 32], 'B': [32, 2]}, expected A [rank, d_in] and B [d_out, rank]",
        ),
        (spoil_layer, "(unexpected: layer 1 self_attn.q_proj)"),
        (spoil_name, "'x.lora_B.weight' is no low-rank pair"),
        (dict.clear, "no tensors in it"),
        (lambda t: t[f"{Q2}_B.weight"].fill_(torch.nan), "lora_B.weight has 64 of 64 NaN"),
    ],
)
def test_an_adapter_whose_tensors_are_not_its_own(spoil, message, tmp_path):
    adapter = an_adapter(tmp_path / "adapter")
    entry = method.entry(f"lora:rank=2:alpha=4:targets=q+v:init={adapter}")
    method.check_fits(entry, [tiny.SITE], tiny.BLOCKS)
    edit(adapter / peft_format.WEIGHTS, spoil)
    with pytest.raises(Rejected) as caught:
        method.check_fits(entry, [tiny.SITE], tiny.BLOCKS)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    (adapter / peft_format.WEIGHTS).write_bytes(b"{")
    with pytest.raises(Rejected, match="adapter_model.safetensors: truncated"):
        peft_format.load(adapter)
