"""`python -m bench export`: what a run trained loads elsewhere, and here again as a start."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

from bench.config.spec import Spec
from bench.errors import Rejected
from bench.harness.evaluate import mean
from bench.io.record import read
from bench.loading import models, peft_format, text
from tests.helpers import tiny
from tests.test_lora import spliced_logits

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family, tmp_path):
    tiny.write_model(tmp_path / "model", family)
    return tmp_path / "model"


def run_of(folder, method):
    (path,) = folder.glob(f"{method}-*.jsonl")
    return read(path)


def validation_tokens(run):
    """The validation windows of a run."""
    spec = Spec(**run.header["spec"])
    tokenizer = models.load_tokenizer(models.locate(spec.model))
    return text.load(spec, tokenizer, tiny.VOCABULARY).validation.tokens


def test_an_adapter_goes_to_peft_and_comes_back(small, command, family, model, tmp_path):
    peft = pytest.importorskip("peft", reason="pip install 'splicebench[speed]'")
    settings = ("--methods", "lora:rank=3:alpha=6:lr=0.01")
    code, _, err = small("compare", *settings, "--out", tmp_path / "a", model=model)
    assert code == 0, err
    run = run_of(tmp_path / "a", "lora")
    code, out, err = command("export", run.path, "--to", tmp_path / "lora")
    assert code == 0, err
    assert "adapter_model.safetensors" in out and "README.md" in out

    plain = peft.PeftModel.from_pretrained(tiny.hf_model(family), tmp_path / "lora")
    sae = SAE.load_from_disk(tmp_path / "lora" / "sae")
    tokens = validation_tokens(run)
    with torch.no_grad():
        logits = spliced_logits(plain.base_model.model, family, sae, tokens)
    documents = tiny.ce_by_document(logits, tokens, 4)
    assert documents == pytest.approx(run.end["ce_full"], rel=1e-5)

    start = ("--init-adapter", tmp_path / "lora", "--set", "lora.rank=3", "--set", "lora.alpha=6")
    code, _, err = small(
        "compare", "--methods", "lora", *start, "--out", tmp_path / "b", model=model
    )
    assert code == 0, err
    again = run_of(tmp_path / "b", "lora")
    assert again.rows[0]["ce"] == pytest.approx(run.rows[-1]["ce"], rel=1e-5)

    told = json.loads((tmp_path / "lora" / "splicebench.json").read_text())
    config = json.loads((tmp_path / "lora" / "sae" / "cfg.json").read_text())
    assert config["metadata"]["model_name"] == "model"  # not a path of this machine
    assert (told["site"], told["spliced"], told["prepend_bos"]) == (tiny.SITE, "not-first", False)
    assert told["sae"]["sha256"] == run.header["sae"]["sha256"] and told["sae"]["folder"] == "sae"
    card = (tmp_path / "lora" / "README.md").read_text()
    assert card.startswith("---\nbase_model: model\nlibrary_name: peft\n")
    assert f"{mean(run.end['ce_full']):.4f}" in card and str(tmp_path) not in card.split("`")[0]


def test_an_sae_goes_to_saelens_and_comes_back(small, command, tmp_path):
    code, _, err = small("compare", "--methods", "e2e,mse", "--out", tmp_path / "a")
    assert code == 0, err
    for method in ("e2e", "mse"):
        path = next(
            p for p in (tmp_path / "a").glob(f"{method}-*.jsonl") if read(p).header["seed"] < 9
        )
        code, _, err = command("export", path.with_suffix(""), "--to", tmp_path / method)
        assert code == 0, err
        ours = SAE.load_from_disk(path.with_suffix("") / "sae-100")
        loaded = SAE.load_from_disk(tmp_path / method)
        x = torch.randn(20, tiny.WIDTH)
        torch.testing.assert_close(loaded(x), ours(x), rtol=0, atol=1e-6)
        assert "library_name: sae_lens" in (tmp_path / method / "README.md").read_text()
    run = run_of(tmp_path / "a", "e2e")
    code, _, err = small(
        "compare", "--methods", "none", "--out", tmp_path / "b", sae=tmp_path / "e2e"
    )
    assert code == 0, err
    again = run_of(tmp_path / "b", "none")
    assert mean(again.header["ce_full_spliced"]) == pytest.approx(
        mean(run.end["ce_full"]), rel=1e-5
    )


def test_what_cannot_be_exported(small, command, tmp_path):
    code, _, err = small("compare", "--methods", "lora:lr=1e30", "--out", tmp_path / "a")
    assert code == 5
    wrong = [
        ("/nope", "no run at '/nope'"),
        (run_of(tmp_path / "a", "none").path, "trained neither adapters nor an SAE"),
        (run_of(tmp_path / "a", "lora").path, "the run ended as 'diverged'"),
    ]
    for run, message in wrong:
        code, _, err = command("export", run, "--to", tmp_path / "x")
        assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "x").exists()
    (tmp_path / "c").mkdir()
    code, _, err = small("compare", "--methods", "lora", "--out", tmp_path / "d")
    copied = shutil.copy(run_of(tmp_path / "d", "lora").path, tmp_path / "c")
    code, _, err = command("export", copied, "--to", tmp_path / "x")
    assert code == 2 and "a record alone has no weights" in err
    code, _, err = small("compare", "--methods", "e2e", "--out", tmp_path / "b")
    code, _, err = command("export", run_of(tmp_path / "b", "e2e").path, "--to", tmp_path)
    assert code == 2 and "not empty, expected a new folder" in err


def test_an_older_record_is_refused(command, tmp_path):
    (old,) = (ROOT / "results" / "compare").glob("lora-e7c49a90.jsonl")
    code, _, err = command("export", old, "--to", tmp_path / "x")
    assert code == 3 and "an older record" in err and err.count("\n") == 1
    (tmp_path / "file").write_text("")
    code, _, err = command("export", old, "--to", tmp_path / "file")
    assert code in (2, 3) and err.count("\n") == 1


def test_an_adapter_to_start_from_is_checked_first(small, tmp_path):
    arguments = ("compare", "--methods", "lora", "--out", tmp_path)
    code, _, err = small(*arguments, "--init-adapter", tmp_path / "nope")
    assert code == 2 and "no adapter at" in err and err.count("\n") == 1
    code, _, err = small("compare", "--methods", "e2e", "--init-adapter", "x", "--out", tmp_path)
    assert code == 2 and "its method is not run" in err


def an_adapter(folder, linears=("attn.q", "attn.v"), blocks=(2, 3), seed=0, **changes):
    """A PEFT adapter of rank 2 for the tiny Llama."""
    generator = torch.Generator().manual_seed(seed)
    width = {"attn.q": 32, "attn.v": 16}
    pairs = {
        f"blocks.{block}.{linear}": (
            torch.randn(2, 32, generator=generator),
            torch.randn(width[linear], 2, generator=generator),
        )
        for block in blocks
        for linear in linears
    }
    folder.mkdir()
    fields = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "base_model": "model"}
    peft_format.save(folder, pairs, "llama", **fields)
    config = json.loads((folder / peft_format.CONFIG).read_text())
    (folder / peft_format.CONFIG).write_text(json.dumps({**config, **changes}))
    return folder


STARTS = ("--set", "lora.rank=2", "--set", "lora.alpha=4")


def test_an_adapter_that_does_not_fit_is_told_what_would(small, tmp_path):
    arguments = ("compare", "--methods", "lora", "--out", tmp_path / "o", *STARTS)
    fewer = an_adapter(tmp_path / "fewer")
    code, _, err = small(*arguments, "--init-adapter", fewer)
    assert code == 2 and "adapts other maps: --set lora.targets=q+v" in err
    code, _, err = small(*arguments, "--set", "lora.targets=q+v", "--init-adapter", fewer)
    assert code == 0, err
    odd = an_adapter(tmp_path / "odd", rank_pattern={"q_proj": 8})
    code, _, err = small(*arguments, "--set", "lora.targets=q+v", "--init-adapter", odd)
    assert code == 2 and "expected one rank and alpha for all, has rank_pattern" in err
    torn = an_adapter(tmp_path / "torn")
    weights = load_file(torn / peft_format.WEIGHTS)
    kept = {name: w for name, w in weights.items() if "3.self_attn.q_proj.lora_B" not in name}
    save_file(kept, torn / peft_format.WEIGHTS)
    code, _, err = small(*arguments, "--set", "lora.targets=q+v", "--init-adapter", torn)
    assert code in (2, 3) and "expected A [rank, d_in] and B" in err and err.count("\n") == 1


def test_another_adapter_in_the_same_folder_is_another_run(small, tmp_path):
    arguments = ("compare", "--methods", "lora", "--out", tmp_path / "o", *STARTS)
    arguments += ("--set", "lora.targets=q+v", "--init-adapter", tmp_path / "start")
    for seed in (0, 1):
        shutil.rmtree(tmp_path / "start", ignore_errors=True)
        an_adapter(tmp_path / "start", seed=seed)
        assert small(*arguments)[0] == 0
    assert len(list((tmp_path / "o").glob("lora-*.jsonl"))) == 2


def test_an_unknown_family_is_refused():
    pairs = {"blocks.0.attn.q": (torch.zeros(1, 2), torch.zeros(2, 1))}
    with pytest.raises(Rejected, match="'mamba' model's linear maps"):
        peft_format.tensors(pairs, "mamba")
    with pytest.raises(Rejected, match="the model is a 'mamba', expected one of gpt2, llama"):
        models.check_config({"model_type": "mamba"}, Spec())


def test_an_own_sae_inside_the_attention_works_in_saelens(small, command, tmp_path):
    site = "blocks.1.attn.hook_z"
    code, _, err = small("compare", "--methods", "e2e", "--out", tmp_path / "a", site=site)
    assert code == 0, err
    code, _, err = command("export", run_of(tmp_path / "a", "e2e").path, "--to", tmp_path / "sae")
    assert code == 0, err
    sae, heads = SAE.load_from_disk(tmp_path / "sae"), torch.randn(2, 5, 4, 8)
    assert sae(heads).shape == heads.shape  # SAELens takes the heads together by itself
