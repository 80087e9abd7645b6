"""`bench.load(RUN)`: the adapted model as a plain bridge gives the CE that the record has."""

import shutil

import pytest
import torch

import bench
from bench.config.method_files import names
from bench.errors import Rejected, Usage
from bench.export import reload
from bench.export.export import pairs_of, write_adapter
from bench.io.record import read
from bench.loading import peft_format, saes
from tests.export.test_export import run_of, validation_tokens
from tests.helpers import tiny
from tests.test_lora import spliced_logits


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_ce_of_the_record(small, family, tmp_path):
    tiny.write_model(tmp_path / "model", family)
    rules = {"spliced": "not-special", "prepend_bos": "true"}
    methods = (
        "lora:lr=0.01,e2e,mse,linear:lr=0.01,affine,ridge,joint,full:lr=0.001,sae_lora:lr=0.01"
    )
    arguments = ("--methods", methods, "--out", tmp_path)
    code, _, err = small("compare", *arguments, model=tmp_path / "model", **rules)
    assert code == 0, err
    tokens = validation_tokens(run_of(tmp_path, "lora"))
    runs = [run for run in map(read, tmp_path.glob("*.jsonl")) if run.header["seed"] == 0]
    assert {run.header["method"] for run in runs} == set(names())
    for run in runs:
        if pairs := pairs_of(run):
            (tmp_path / run.name / "peft").mkdir()
            write_adapter(run, pairs, tmp_path / run.name / "peft")
            assert peft_format.load(tmp_path / run.name / "peft").keys() == pairs.keys()
        bridge = bench.load(run.path)
        with torch.no_grad():
            logits = bridge(tokens, use_cache=False)
        documents = tiny.ce_by_document(logits, tokens, 4)
        assert documents == pytest.approx(run.end["ce_full"], rel=1e-5), run.name
        if run.header["method"] == "full":  # which changed the model itself
            continue
        bridge.reset_hooks()
        clean = tiny.ce_by_document(bridge(tokens), tokens, 4)
        assert clean == pytest.approx(run.header["ce_full_clean"], rel=1e-5)


def test_latents_are_hook_points_of_the_bridge(small, tmp_path):
    tokens = tiny.windows(3, seed=3)
    code, _, err = small("compare", "--methods", "lora:lr=0.01", "--out", tmp_path)
    assert code == 0, err
    run = run_of(tmp_path, "lora")
    (sae,) = reload.restore(run.path)[0].saes
    bridge = bench.load(run.path)
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(tokens, use_cache=False)
    latents = cache[f"{tiny.SITE}.hook_sae_acts_post"]
    assert latents.shape == (*tokens.shape, sae.cfg.d_sae)
    assert (latents != 0).sum(-1).max() == sae.cfg.k
    torch.testing.assert_close(cache[f"{tiny.SITE}.hook_sae_recons"], sae.decode(latents))

    # What is done to the latents is done to the model: here all are 0, and the SAE gives its bias.
    # Where nothing is spliced, at the first position, nothing changes.
    name, seen = f"{tiny.SITE}.hook_sae_acts_post", {}
    keep = ("blocks.2.hook_in", lambda value, hook: seen.update(after=value.clone()))
    cut = (name, lambda value, hook: torch.zeros_like(value))
    with torch.no_grad():
        bridge.run_with_hooks(tokens, fwd_hooks=[cut, keep], use_cache=False)
        again = bridge(tokens, use_cache=False)
    torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-4)  # and it is undone
    bias = sae.b_dec.expand_as(seen["after"][:, 1:])
    torch.testing.assert_close(seen["after"][:, 1:], bias)
    torch.testing.assert_close(seen["after"][:, 0], cache["blocks.2.hook_in"][:, 0])


def test_another_sae_or_model_in_the_same_place_is_refused(small, tmp_path):
    tiny.write_model(tmp_path / "model")
    saes.save(tiny.sae()[0], tmp_path / "sae")
    arguments = ("compare", "--methods", "lora", "--out", tmp_path / "o", "--force")
    code, _, err = small(*arguments, model=tmp_path / "model", sae=tmp_path / "sae")
    assert code == 0, err
    run = run_of(tmp_path / "o", "lora")
    bench.load(run.path)
    saes.save(tiny.sae(seed=1)[0], tmp_path / "sae")
    with pytest.raises(Rejected, match="the SAE '.*' is not the one that it ran with"):
        bench.load(run.path)
    tiny.write_model(tmp_path / "model", "gpt2")
    with pytest.raises(Rejected, match="the model '.*' is not the one that it ran with"):
        bench.load(run.path)


def test_a_text_that_has_changed_is_not_measured_on(small, folder, tmp_path):
    shutil.copytree(folder / "text", tmp_path / "text")
    arguments = ("--methods", "none", "--out", tmp_path / "out")
    code, _, err = small("compare", *arguments, text=tmp_path / "text")
    assert code == 0, err
    run = run_of(tmp_path / "out", "none")
    problem, _ = reload.restore(run.path)
    held_out = reload.validation(run, problem)
    assert len(set(held_out.documents)) == len(run.end["ce_full"]) == 4
    (tmp_path / "text" / "another.txt").write_text("abc " * 200)
    with pytest.raises(Rejected, match="text '.*' is not the one that it ran with"):
        reload.validation(run, problem)


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(Usage, match="no run at"):
        bench.load(tmp_path / "nope")


def test_each_model_of_a_run_and_the_bridge_as_it_was(small, tmp_path):
    tokens = tiny.windows(2, seed=3)
    arguments = ("--methods", "full:lr=0.01,e2e,none", "--out", tmp_path)
    code, _, err = small("compare", *arguments)
    assert code == 0, err
    plain = tiny.hf_model("llama")
    for name, n_models in (("full", 4), ("e2e", 3), ("none", 2)):
        run = run_of(tmp_path, name)
        problem, adapted = reload.restore(run.path)
        models = reload.there_are(problem, adapted)
        assert models == reload.MODELS[:n_models]
        logits = {}
        with torch.no_grad():
            for which in models:
                with reload.placed(problem, adapted, which) as bridge:
                    logits[which] = bridge(tokens, use_cache=False)
            after = problem.bridge(tokens, use_cache=False)
        torch.testing.assert_close(logits["clean"], plain(tokens).logits, rtol=1e-4, atol=1e-4)
        spliced = spliced_logits(plain, "llama", problem.saes[0], tokens)
        torch.testing.assert_close(logits["spliced"], spliced, rtol=1e-4, atol=1e-4)
        assert torch.equal(after, logits["clean"])
        for one, other in zip(models, models[1:], strict=False):
            assert not torch.allclose(logits[one], logits[other]), (name, one, other)
    with (
        pytest.raises(Usage, match="unknown model 'splice': did you mean 'spliced'"),
        reload.placed(problem, adapted, "splice"),
    ):
        pass
