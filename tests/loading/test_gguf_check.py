"""A GGUF file that cannot be converted is told in one line before any library reads it."""

import os
import random
import struct

import gguf
import numpy
import pytest
from transformers import Gemma2Config, Gemma3TextConfig, GPT2Config, LlamaConfig

from bench.errors import Rejected, Usage
from bench.io.files import cache_root
from bench.loading import gguf_check, models, packages
from tests.helpers import tiny

UINT8, ARRAY = 0, 9
Q8_0 = gguf.GGMLQuantizationType.Q8_0
TOKENS = ["<pad>", "<bos>", "<eos>", *(chr(i) for i in range(33, 33 + tiny.VOCABULARY - 6))]
TOKENS += ["Ġ", '!"', "#$"]
SHAPES = {
    "attn_q": (tiny.WIDTH, tiny.WIDTH),
    "attn_k": (tiny.WIDTH // 2, tiny.WIDTH),
    "attn_v": (tiny.WIDTH // 2, tiny.WIDTH),
    "attn_output": (tiny.WIDTH, tiny.WIDTH),
    "ffn_gate": (64, tiny.WIDTH),
    "ffn_up": (64, tiny.WIDTH),
    "ffn_down": (tiny.WIDTH, 64),
}


def tensors():
    """A tiny Llama's, as GGUF names them: the embedding too, which is also the head."""
    draw = numpy.random.default_rng(0)
    shapes = {"token_embd.weight": (tiny.VOCABULARY, tiny.WIDTH)}
    for block in range(tiny.BLOCKS):
        shapes |= {f"blk.{block}.{name}.weight": shape for name, shape in SHAPES.items()}
    drawn = {name: 0.2 * draw.standard_normal(shape, "float32") for name, shape in shapes.items()}
    norms = [f"blk.{b}.{n}_norm.weight" for b in range(tiny.BLOCKS) for n in ("attn", "ffn")]
    return drawn | dict.fromkeys([*norms, "output_norm.weight"], numpy.ones(tiny.WIDTH, "float32"))


def write(
    path,
    architecture="llama",
    without=(),
    extra=None,
    quantised=True,
    alignment=None,
    keys=None,
    raw=(),
):
    """A GGUF file of the tiny Llama with its tokenizer, with these tensors and keys more."""
    writer = gguf.GGUFWriter(path, architecture)
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_context_length(64)
    writer.add_embedding_length(tiny.WIDTH)
    writer.add_block_count(tiny.BLOCKS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(tiny.VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(['! "', "# $"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for key, value in (keys or {}).items():
        put_key = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        put_key[type(value)](key, value)
    for name, array in (tensors() | (extra or {})).items():
        if name in without:
            continue
        if name in raw:
            writer.add_tensor(name, raw[name][0], raw_dtype=raw[name][1])
        elif quantised and array.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(array, Q8_0), raw_dtype=Q8_0)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a good file."""
    return write(tmp_path_factory.mktemp("gguf") / "good.gguf").read_bytes()


def put(data, at, form, value):
    """The file with another number at byte `at`."""
    return data[:at] + struct.pack("<" + form, value) + data[at + struct.calcsize("<" + form) :]


def after(data, name, skip=0):
    """The byte that comes `skip` bytes after a name."""
    return data.index(name) + len(name) + skip


TYPE, SHAPE = 4 + 2 * 8, 4
"""Where the type and the shape of a tensor of two dimensions stand, after its name."""
EMBEDDING, SECOND = b"token_embd.weight", b"blk.0.attn_q.weight"
BROKEN = "its content cannot be read: truncated or corrupt ("
WRONG = {  # what is done to the good file, what the line must say
    "empty": (lambda d: b"", "not a GGUF file (it is empty)"),
    "magic": (lambda d: b"PK\3\4" + d[4:], "not a GGUF file (starts with b'PK\\x03\\x04'"),
    "version": (lambda d: put(d, 4, "I", 1), "version 1 of GGUF, expected one of (2, 3)"),
    "big-endian": (lambda d: put(d, 4, "I", 3 << 24), "big-endian, expected a little-endian"),
    "tensors": (lambda d: put(d, 8, "Q", 2**60), "(1,152,921,504,606,846,976 tensors and 16 keys"),
    "no-tensors": (lambda d: put(d, 8, "Q", 0), "(0 tensors and 16 keys, expected 1 to 65,536)"),
    "keys": (lambda d: put(d, 16, "Q", 2**63), "and 9,223,372,036,854,775,808 keys, ex"),
    "key-length": (lambda d: put(d, 24, "Q", 2**40), BROKEN),
    "same-key": (
        lambda d: d.replace(b"ggml.eos_token_id", b"ggml.bos_token_id"),
        "the key tokenizer.ggml.bos_token_id is there twice",
    ),
    "same-tensor": (
        lambda d: d.replace(b"blk.1.attn_q.weight", SECOND),
        "duplicated tensor with name blk.0.attn_q.weight",
    ),
    "array-length": (
        lambda d: put(d, after(d, b"tokenizer.ggml.tokens", 8), "Q", 2**60),
        "an array of 1,152,921,504,606,846,976 values",
    ),
    "array-torn": (
        lambda d: put(d, after(d, b"tokenizer.ggml.token_type", 8), "Q", 2**20),
        BROKEN,
    ),
    "not-text": (lambda d: d.replace(b"ggml.model", b"ggml.mod\xff\xff"), "can't decode byte 0xff"),
    "escape": (
        lambda d: d.replace(SECOND, b"\x1b" * 19).replace(b"blk.1.attn_q.weight", b"\x1b" * 19),
        r"duplicated tensor with name \x1b\x1b",
    ),
    "architecture": (
        lambda d: d.replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0qwen2", 1),
        "a 'qwen2' model, expected one of gpt2, llama, gemma2, gemma3",
    ),
    "no-architecture": (
        lambda d: d.replace(b"general.architecture", b"general.architectur_"),
        "it does not say what model it is (general.architecture)",
    ),
    "shape": (lambda d: put(d, after(d, EMBEDDING, SHAPE), "Q", 2**62), BROKEN),
    "row": (lambda d: put(d, after(d, EMBEDDING, SHAPE), "Q", 33), BROKEN),
    "type": (lambda d: put(d, after(d, EMBEDDING, TYPE), "I", 999), "999) is not a valid GGML"),
    "offset": (
        lambda d: put(d, after(d, SECOND, TYPE + 4), "Q", 32),
        "corrupt: blk.0.attn_q.weight is at byte ",
    ),
    "offset-far": (lambda d: put(d, after(d, SECOND, TYPE + 4), "Q", 2**64 - 1), BROKEN),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_file_is_one_line(name, good, tmp_path):
    change, message = WRONG[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(change(good))
    assert path.read_bytes() != good
    with pytest.raises(Rejected) as caught:
        gguf_check.read(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert str(caught.value).isprintable()


def test_one_of_several_parts(tmp_path):
    with pytest.raises(Rejected, match="one of 2 parts, expected a model in one file"):
        gguf_check.read(write(tmp_path / "model.gguf", keys={"split.count": 2}))


def test_a_truncated_file(good, tmp_path):
    path, header = tmp_path / "model.gguf", good.index(b"output_norm.weight") + 40
    for n in (9, 30, 300, header // 2, header - 9, header, len(good) - 1000, len(good) - 1):
        path.write_bytes(good[:n])
        with pytest.raises(Rejected, match="model.gguf: .*truncated or corrupt .[^\\n]*$"):
            gguf_check.read(path)


def test_counts_that_would_fill_the_memory(good, monkeypatch, tmp_path):
    """In a file that is long enough for them: of values, and of arrays in an array."""
    monkeypatch.setattr(gguf_check, "MOST_VALUES", 2**12)
    start, path = good[:8] + struct.pack("<QQQ1sI", 1, 1, 1, b"a", ARRAY), tmp_path / "model.gguf"
    arrays = (struct.pack("<IQ", UINT8, 2**12) + bytes(2**12)) * 9
    whole = struct.pack("<IQ", UINT8, 2**60), struct.pack("<IQ", ARRAY, 2**12) + arrays
    for value, message in zip(whole, ("an array of 1,152,921,", "is too long"), strict=True):
        path.write_bytes(start + value)
        os.truncate(path, 2**32)
        with pytest.raises(Rejected, match=message):
            gguf_check.read(path)


def test_whatever_the_header_holds_nothing_else_is_raised(good, tmp_path):
    path, draw = tmp_path / "model.gguf", random.Random(0)
    header = good.index(b"output_norm.weight") + 40
    refused = 0
    for _ in range(400):
        data = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(header)] = draw.randrange(256)
        path.write_bytes(bytes(data[: draw.choice([header, len(data), draw.randrange(len(data))])]))
        try:
            gguf_check.read(path)
        except Rejected as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 400
    assert 200 < refused < 400


def test_a_file_of_version_2_and_of_another_alignment(good, tmp_path):
    (tmp_path / "2.gguf").write_bytes(put(good, 4, "I", 2))
    for path in (tmp_path / "2.gguf", write(tmp_path / "64.gguf", alignment=64)):
        _, read = gguf_check.read(path)
        shapes = {one.name: tuple(one.shape[::-1]) for one in read}
        assert shapes == {name: array.shape for name, array in tensors().items()}


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))


def test_a_file_is_a_model(own_cache, small, folder, good, tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(good)
    code, out, err = small("check", model=path, sae="fresh")
    assert code in (0, 3), err  # its weights are random
    assert "converting tiny.gguf to safetensors" in out and "CE clean" in out, err
    (made,) = (cache_root() / "models").iterdir()
    assert made == models.locate(str(path)) and len(made.name) == len("tiny-") + 16
    path.write_bytes(good[:-1])
    code, out, err = small("check", model=path, sae="fresh")
    assert (
        code == 3
        and "tiny.gguf: its content cannot be read: truncated" in err
        and err.count("\n") == 1
    )
    code, _, err = small("check", model=tmp_path / "nope.gguf", sae="fresh")
    assert code == 2 and "no model at" in err and err.count("\n") == 1
    code, _, err = small("check", model=tmp_path / "nope", sae="fresh")
    assert code == 2 and "expected a folder with config.json, a .gguf file, OWNER/NAME" in err


def test_a_conversion_keeps_the_numbers(own_cache, tmp_path):
    from safetensors.torch import load_file

    made = models.locate(str(write(tmp_path / "tiny.gguf", quantised=False)))
    converted = load_file(made / "model.safetensors")
    assert (converted["model.embed_tokens.weight"].numpy() == tensors()["token_embd.weight"]).all()
    assert len(converted) == len(tensors())
    models.check_source(str(tmp_path / "tiny.gguf"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"without": ("blk.2.ffn_up.weight",)}, "missing: model.layers.2.mlp.up_proj.weight"),
        ({"extra": {"rope_freqs.weight": numpy.ones(4, "float32")}}, "the model has a place for"),
        (
            {"extra": {"blk.1.attn_v.weight": numpy.ones((64, 32), "float32")}},
            "of another shape: model.layers.1.self_attn.v_proj.weight [64, 32] for [16, 32]",
        ),
    ],
)
def test_a_model_that_is_not_whole_is_not_converted(own_cache, changes, message, tmp_path):
    path = write(tmp_path / "tiny.gguf", **changes)
    with pytest.raises(Rejected) as caught:
        packages.locate(str(path))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list((cache_root() / "models").iterdir())


def test_a_type_that_gguf_cannot_dequantise(own_cache, tmp_path):
    q8_1 = gguf.GGMLQuantizationType.Q8_1
    data = numpy.zeros((tiny.WIDTH, gguf.GGML_QUANT_SIZES[q8_1][1]), "uint8")
    path = write(tmp_path / "tiny.gguf", raw={"blk.0.attn_q.weight": (data, q8_1)})
    with pytest.raises(Rejected, match="its model cannot be converted .*Q8_1") as caught:
        packages.locate(str(path))
    assert "\n" not in str(caught.value)


def test_what_the_conversion_raises_is_one_line(own_cache, monkeypatch, tmp_path):
    def failing(path):
        raise KeyError("several\nlines")

    path = write(tmp_path / "tiny.gguf")
    monkeypatch.setattr(packages, "_read_gguf", failing)
    with pytest.raises(Rejected, match="its model cannot be converted"):
        packages.locate(str(path))


def test_the_file_is_checked_before_it_is_converted(own_cache, monkeypatch, good, tmp_path):
    def never(path):
        raise AssertionError("the library was asked")

    monkeypatch.setattr(packages, "_read_gguf", never)
    (tmp_path / "torn.gguf").write_bytes(good[:-1])
    with pytest.raises(Rejected, match="truncated"):
        packages.convert_gguf(tmp_path / "torn.gguf", tmp_path)
    with pytest.raises(Usage, match="no such file"):
        models.check_source(str(tmp_path / "nope" / "x.gguf"))


def test_what_lies_beside_a_file_is_not_read(own_cache, good, tmp_path):
    """No adapter, which transformers would take where PEFT is installed, and no config."""
    path = tmp_path / "some" / "tiny.gguf"
    path.parent.mkdir()
    path.write_bytes(good)
    (path.parent / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    (path.parent / "tokenizer_config.json").write_text('{"bos_token": "<eos>"}')
    (path.parent / "config.json").write_text('{"model_type": "gpt2"}')
    made = models.locate(str(path))
    assert models.read_config(made)["model_type"] == "llama"
    assert models.load_tokenizer(made).bos_token == "<bos>"
    assert sorted(one.name for one in made.iterdir()) == sorted(
        one.name for one in models.locate(str(write(tmp_path / "other.gguf"))).iterdir()
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            "llama.rope.scaling.type is 'linear', which would be lost, expected 'none'",
        ),
        (
            {"llama.rope.scaling.factor": 4.0},
            "llama.rope.scaling.factor is 4.0, which would be lost, expected 0 or 1",
        ),
        ({"llama.expert_count": 8.0}, "llama.expert_count is 8.0, which would be lost, expected 0"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale is 0.5, a key that is not known here"),
        ({"llama.a\nb": 1.0}, "'llama.a\\nb' is 1.0, a key that is not known here"),
        ({"general.type": "adapter"}, "general.type is 'adapter', expected 'model'"),
    ],
)
def test_a_key_that_the_conversion_would_lose(keys, message, tmp_path):
    path = write(tmp_path / "tiny.gguf", keys=keys)
    with pytest.raises(Rejected) as caught:
        gguf_check.read(path)
    assert str(caught.value) == f"{path}: {message}"


def test_keys_that_change_nothing_and_keys_that_arrive(own_cache, tmp_path):
    keys = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 1.0}
    keys |= {"llama.rope.freq_base": 5e4, "llama.expert_count": 0.0, "some.other": "key"}
    made = models.locate(str(write(tmp_path / "tiny.gguf", keys=keys)))
    config = models.read_config(made)
    assert config["rope_parameters"] == {"rope_theta": 5e4, "rope_type": "default"}
    assert (config["num_attention_heads"], config["rms_norm_eps"]) == (4, pytest.approx(1e-5))


def test_a_value_that_the_conversion_changes(own_cache, tmp_path):
    """A head's width that does not follow from the others is one that transformers does not map."""
    path = write(tmp_path / "tiny.gguf", keys={"llama.attention.key_length": 16.0})
    with pytest.raises(Rejected) as caught:
        packages.locate(str(path))
    wrong = "llama.attention.key_length is 16.0, the converted model has 8"
    assert str(caught.value) == f"{path}: {wrong}"


SAID = {  # what files of these families say, as llama.cpp's converter writes them
    "llama": {
        "attention.head_count": 32,
        "attention.head_count_kv": 8,
        "attention.key_length": 64,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "block_count": 16,
        "context_length": 131_072,
        "embedding_length": 2_048,
        "feed_forward_length": 8_192,
        "rope.dimension_count": 64,
        "rope.freq_base": 5e5,
        "vocab_size": 128_256,
    },
    "gpt2": {
        "attention.head_count": 12,
        "attention.layer_norm_epsilon": 1e-5,
        "block_count": 12,
        "context_length": 1_024,
        "embedding_length": 768,
        "feed_forward_length": 3_072,
    },
    "gemma2": {
        "attention.head_count": 8,
        "attention.head_count_kv": 4,
        "attention.key_length": 256,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": 4_096,
        "attention.value_length": 256,
        "attn_logit_softcapping": 50.0,
        "block_count": 26,
        "context_length": 8_192,
        "embedding_length": 2_304,
        "feed_forward_length": 9_216,
        "final_logit_softcapping": 30.0,
    },
    "gemma3": {
        "attention.head_count": 4,
        "attention.head_count_kv": 1,
        "attention.key_length": 256,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": 512,
        "attention.value_length": 256,
        "block_count": 18,
        "context_length": 32_768,
        "embedding_length": 640,
        "feed_forward_length": 2_048,
        "rope.freq_base": 1e6,
    },
}
CONFIGS = {  # the same models' config.json
    "llama": LlamaConfig(
        hidden_size=2_048,
        intermediate_size=8_192,
        max_position_embeddings=131_072,
        num_attention_heads=32,
        num_hidden_layers=16,
        num_key_value_heads=8,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        vocab_size=128_256,
    ),
    "gpt2": GPT2Config(),
    "gemma2": Gemma2Config(),
    "gemma3": Gemma3TextConfig(
        hidden_size=640,
        intermediate_size=2_048,
        max_position_embeddings=32_768,
        num_attention_heads=4,
        num_hidden_layers=18,
        num_key_value_heads=1,
        sliding_window=512,
    ),
}


def header(family, **changes):
    """The header of a file of this family; None leaves a key out."""
    said = SAID[family] | {key.replace("__", "."): value for key, value in changes.items()}
    short = {key: numpy.float32(v).item() if isinstance(v, float) else v for key, v in said.items()}
    return {f"{family}.{key}": value for key, value in short.items() if value is not None}


@pytest.mark.parametrize("family", SAID)
def test_a_real_header_is_let_in_and_every_value_of_it_is_compared(family):
    config = CONFIGS[family]
    assert gguf_check.lost(family, header(family)) is None
    assert gguf_check.changed(family, header(family), config) is None
    for key, value in SAID[family].items():
        other = header(family) | {f"{family}.{key}": 2 * value}
        assert f"{family}.{key} is {2 * value!r}, " in gguf_check.changed(family, other, config)
        array = header(family) | {f"{family}.{key}": None}
        assert f"{family}.{key} is an array, " in gguf_check.changed(family, array, config)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gemma2", {"final_logit_softcapping": 0.0}, "is 0.0, the converted model has 30.0"),
        ("gemma2", {"attn_logit_softcapping": 30.0}, "is 30.0, the converted model has 50.0"),
        ("gemma3", {"rope__freq_base_swa": 5e4}, "is 50000.0, the converted model has 10000.0"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "is 30.0, the converted model has None"),
    ],
)
def test_a_value_that_differs_is_named(family, changes, message):
    assert message in gguf_check.changed(family, header(family, **changes), CONFIGS[family])


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gpt2", {"attention__head_count": None}, "it does not say gpt2.attention.head_count"),
        ("gemma3", {"rope__freq_base": None}, "it does not say gemma3.rope.freq_base"),
        ("gemma3", {"attention__sliding_window": None}, "does not say gemma3.attention.sliding"),
        ("llama", {"attention__sliding_window": 512}, "would be lost, expected 0"),
        ("gemma3", {"attention__sliding_window_pattern": 4}, "would be lost, expected 6"),
    ],
)
def test_a_header_that_says_too_little_or_too_much(family, changes, message):
    assert message in gguf_check.lost(family, header(family, **changes))


def test_every_key_that_transformers_maps_is_compared():
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    assert set(gguf_check.KNOWN) == set(gguf_check.ARCHITECTURES)
    for architecture, known in gguf_check.KNOWN.items():
        compared = {key for key, meant in known.items() if not isinstance(meant, tuple)}
        assert GGUF_CONFIG_MAPPING[architecture].keys() <= compared
