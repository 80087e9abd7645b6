"""Several SAEs at once, each at the block it was trained on: every method, records, export."""

import json

import pytest
import torch
from sae_lens import SAE

import bench
from bench.config import method
from bench.config.method_files import names
from bench.io.record import read
from bench.problem.problem import Problem
from bench.runs import setup
from tests.export.test_export import run_of, validation_tokens
from tests.helpers import tiny
from tests.test_methods import check_promises, hold_out

SITES = ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")
BOTH = "+".join(SITES)


@pytest.fixture(scope="module")
def problem():
    saes = torch.nn.ModuleList([tiny.sae(seed=0)[0], tiny.sae(seed=1)[0]])
    return Problem(tiny.bridge("llama"), saes, SITES, tiny.windows(24), batch_size=2)


@pytest.mark.parametrize("label", [*names(), "lora:layers=all"])
def test_every_method_keeps_its_promises(problem, label):
    check_promises(problem, hold_out(problem), method.entry(label))


def spliced_ce(model, saes, tokens):
    """CE by document of a plain Hugging Face model with SAEs after blocks 0 and 2."""
    handles = []
    for block, sae in zip((0, 2), saes, strict=True):

        def splice(module, inputs, output, sae=sae):
            value = output[0] if isinstance(output, tuple) else output
            out = torch.cat([value[:, :1], sae(value[:, 1:])], dim=1)
            return (out, *output[1:]) if isinstance(output, tuple) else out

        handles.append(model.model.layers[block].register_forward_hook(splice))
    try:
        with torch.no_grad():
            return tiny.ce_by_document(model(tokens).logits, tokens, 4)
    finally:
        for handle in handles:
            handle.remove()


def test_from_training_to_export_and_back(small, command, tmp_path):
    methods = ("--methods", "lora:lr=0.01,e2e,ridge,full:lr=0.001")
    code, out, err = small("compare", *methods, "--out", tmp_path / "a", site=BOTH)
    assert code == 0, err
    tokens = validation_tokens(run_of(tmp_path / "a", "lora"))
    for path in (tmp_path / "a").glob("*.jsonl"):
        run = read(path)
        assert [len(row["l0_by_site"]) for row in run.rows] == [2] * len(run.rows)
        assert run.rows[0]["fvu"] == pytest.approx(sum(run.rows[0]["fvu_by_site"]) / 2)
        if run.header["seed"] == 0:
            assert len(run.header["sae"]["cached"]) == 2 and run.header["sae_cost"]["tokens"] == 480
            with torch.no_grad():
                logits = bench.load(path)(tokens, use_cache=False)
            assert tiny.ce_by_document(logits, tokens, 4) == pytest.approx(run.end["ce_full"])
    for name in ("lora", "e2e"):
        run = run_of(tmp_path / "a", name)
        code, _, err = command("export", run.path, "--to", tmp_path / name)
        assert code == 0, err
        saes = [SAE.load_from_disk(tmp_path / name / f"sae-{index}") for index in (0, 1)]
        assert [sae.cfg.metadata.hook_name for sae in saes] == list(SITES)
        told = json.loads((tmp_path / name / "splicebench.json").read_text())
        assert told["site"] == BOTH and told["sae"]["folder"] == ["sae-0", "sae-1"]
        expected = run.header["ce_full_spliced"] if name == "lora" else run.end["ce_full"]
        assert spliced_ce(tiny.hf_model("llama"), saes, tokens) == pytest.approx(expected, rel=1e-5)
    given = "+".join(str(tmp_path / "e2e" / f"sae-{index}") for index in (0, 1))
    code, out, err = small(
        "compare", "--methods", "none", "--out", tmp_path / "b", site=BOTH, sae=given
    )
    assert code == 0, err
    again = run_of(tmp_path / "b", "none").header
    assert again["ce_full_spliced"] == pytest.approx(run_of(tmp_path / "a", "e2e").end["ce_full"])
    code, out, err = small("check", site=BOTH, sae=given)
    assert f"at {SITES[0]}: 32" in out and f"at {SITES[1]}: 32" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": BOTH, "sae": "a+b+c"}, "--sae names 3 SAEs, --site 2 sites"),
        ({"site": BOTH, "sae": "a"}, "--sae names 1 SAEs, --site 2 sites"),
        ({"site": f"{SITES[0]}+{SITES[0]}"}, "a site is named twice"),
        ({"site": f"{SITES[0]}+blocks.9.hook_resid_post"}, "did you mean 'blocks.3.hook"),
        ({"site": f"{SITES[0]}+nonsense"}, "--site 'nonsense'"),
    ],
)
def test_what_does_not_go_together(small, changes, message):
    code, _, err = small("check", **changes)
    assert code == 2 and message in err and err.count("\n") == 1


def test_what_saes_of_several_runs_have_cost(tmp_path):
    for name, tokens, run in (("a", 5, "one"), ("b", 7, "two"), ("c", 7, "two")):
        (tmp_path / name).mkdir()
        told = {"run": run, "share": 1.0, "cost": {"tokens": tokens, "threads": 2, "device": "cpu"}}
        (tmp_path / name / "cost.json").write_text(json.dumps(told))
    (tmp_path / "d").mkdir()
    a, b, c, d = (tmp_path / name for name in "abcd")
    assert setup.training_of([b, c])["cost"]["tokens"] == 7  # trained together
    assert setup.training_of([a, b]) == {"cost": {"tokens": 12, "threads": 2, "device": "cpu"}}
    assert setup.training_of([a, d]) == {}
