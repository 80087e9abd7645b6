"""Transcoders: read at one point of a block, written to another, by every command and method."""

import json

import pytest
import torch
from sae_lens import SAE, JumpReLUTranscoder, SkipTranscoder, Transcoder
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig,
    JumpReLUTranscoderConfig,
    SkipTranscoderConfig,
    TranscoderConfig,
)

import bench as library
from bench.config import method
from bench.errors import Rejected
from bench.evals import guard, measures, probing
from bench.harness.evaluate import ablated, measure
from bench.io.record import read
from bench.loading import saes
from bench.loading.text import Windows
from bench.problem import LOSSES
from bench.problem.batches import Batches
from bench.problem.clean_cache import CleanCache
from bench.problem.objectives import Seen
from bench.problem.problem import Adapted, Problem, copy_of
from methods import lora
from tests.export.test_export import validation_tokens
from tests.helpers import tiny
from tests.test_methods import check_promises, hold_out

READ, WRITTEN = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
SITE = f"{READ}:{WRITTEN}"
KINDS = {
    "transcoder": (Transcoder, TranscoderConfig),
    "skip_transcoder": (SkipTranscoder, SkipTranscoderConfig),
    "jumprelu_transcoder": (JumpReLUTranscoder, JumpReLUTranscoderConfig),
    "jumprelu_skip_transcoder": (JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig),
}
METHODS = ["none", "lora", "lora:keep=1", "e2e", "e2e:loss=kl+mse", "joint", "full", "sae_lora"]
MAPS = ["linear", "affine", "ridge"]


def transcoder(kind="transcoder", width=tiny.WIDTH, d_out=None, **metadata):
    """A random one, every parameter away from its start."""
    made, config = KINDS[kind]
    torch.manual_seed(0)
    about = SAEMetadata(**{"hook_name": READ, "hook_name_out": WRITTEN, **metadata})
    own = {"apply_b_dec_to_input": False, "metadata": about}
    one = made(config(d_in=width, d_out=d_out or width, d_sae=4 * width, **own))
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            parameter.normal_(std=0.1)
            if name == "threshold":
                parameter.uniform_(0.0, 0.1)
    return one


def problem(family="llama", kind="transcoder", **settings):
    lent = torch.nn.ModuleList([transcoder(kind)])
    return Problem(
        tiny.bridge(family), lent, [SITE], tiny.windows(24), **{"batch_size": 2, **settings}
    )


def dense(family, tokens, put, at=READ, before=()):
    """Logits of a plain bridge in which `put(read, given)` is written after the first position;
    `before` are hooks that come first."""
    bridge, seen = tiny.bridge(family), {}

    def write(value, hook):
        return torch.cat([value[:, :1], put(seen["read"], value)[:, 1:]], 1)

    hooks = [*before, (at, lambda value, hook: seen.update(read=value)), (WRITTEN, write)]
    with torch.no_grad():
        return bridge.run_with_hooks(tokens, fwd_hooks=hooks), seen["read"]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_spliced_model_is_that_of_a_plain_bridge(family, kind):
    ours = problem(family, kind)
    held_out, lent = hold_out(ours), ours.saes[0]
    score = measure(ours, held_out, Adapted(saes=ours.saes))
    given = {}

    def put(read, value):
        given["written"] = value
        return lent(read)

    logits, read = dense(family, held_out.tokens, put)
    assert score.ce == pytest.approx(tiny.ce_by_document(logits, held_out.tokens, 2), abs=1e-5)
    x, y = (value[:, 1:].flatten(0, 1).double() for value in (read, given["written"]))
    with torch.no_grad():
        made = lent(x.float()).double()
    fvu = (made - y).square().sum() / (y - y.mean(0)).square().sum()
    assert score.fvu[0] == pytest.approx(fvu.item(), rel=1e-4)
    assert score.l0[0] == pytest.approx((lent.encode(x.float()) > 0).sum(-1).double().mean().item())


@pytest.mark.parametrize("at", ["ln2.hook_normalized", "hook_resid_mid"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_it_reads_before_the_norm_and_inside_it(family, at):
    ours, at = problem(family), f"blocks.1.{at}"
    ours = Problem(ours.bridge, ours.saes, [f"{at}:{WRITTEN}"], ours.train)
    held_out, lent = hold_out(ours), ours.saes[0]
    score = measure(ours, held_out, Adapted(saes=ours.saes))
    logits, _ = dense(family, held_out.tokens, lambda read, _: lent(read), at)
    assert score.ce == pytest.approx(tiny.ce_by_document(logits, held_out.tokens, 2), abs=1e-5)


def test_beside_an_sae_it_reads_what_the_sae_has_put_there():
    ours, sae = problem(), tiny.sae(seed=1)[0]
    lent = torch.nn.ModuleList([ours.saes[0], sae])
    both = Problem(ours.bridge, lent, [SITE, "blocks.1.hook_resid_pre"], ours.train)
    held_out = hold_out(both)
    score = measure(both, held_out, Adapted(saes=both.saes))
    bridge, seen = tiny.bridge("llama"), {}

    def put(value, made):
        return torch.cat([value[:, :1], made[:, 1:]], 1)

    hooks = [
        ("blocks.1.hook_resid_pre", lambda value, hook: put(value, sae(value))),
        (READ, lambda value, hook: seen.update(read=value)),
        (WRITTEN, lambda value, hook: put(value, lent[0](seen["read"]))),
    ]
    with torch.no_grad():
        logits = bridge.run_with_hooks(held_out.tokens, fwd_hooks=hooks)
    assert score.ce == pytest.approx(tiny.ce_by_document(logits, held_out.tokens, 2), abs=1e-5)


def test_an_adapter_where_it_reads_changes_what_it_reads():
    ours = problem()
    held_out, lent = hold_out(ours), ours.saes[0]
    doubled = Adapted(saes=ours.saes, hooks=[(READ, lambda value, hook: 2 * value)])
    score = measure(ours, held_out, doubled)
    logits, _ = dense("llama", held_out.tokens, lambda read, _: lent(read), before=doubled.hooks)
    assert score.ce == pytest.approx(tiny.ce_by_document(logits, held_out.tokens, 2), abs=1e-5)


def test_in_bfloat16_it_computes_in_its_own_format():
    ours = Problem(
        tiny.bridge("llama", dtype=torch.bfloat16),
        torch.nn.ModuleList([transcoder("skip_transcoder")]),
        [SITE],
        tiny.windows(24),
    )
    (seen,) = ours.look(ours.train[:2], Adapted(saes=ours.saes))
    assert seen.final.dtype == torch.bfloat16 and seen.kl.isfinite()


@pytest.mark.parametrize("micro", [1, 2])
def test_a_step_trains_all_of_it_but_thresholds(micro):
    ours = problem(kind="jumprelu_skip_transcoder", micro_batch=micro)
    own = copy_of(ours.saes)
    loss = ours.backward(ours.train[:2], Adapted(saes=own, state={"saes": own}))
    without = {name for name, p in own[0].named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {"threshold"}
    whole = problem(kind="jumprelu_skip_transcoder")
    assert loss.item() == pytest.approx(
        whole.backward(ours.train[:2], Adapted(saes=copy_of(whole.saes))).item(), abs=1e-6
    )


def test_ablated_is_what_is_written_set_to_0():
    ours = problem()
    held_out = hold_out(ours)
    bridge = tiny.bridge("llama")
    zero = [(WRITTEN, lambda value, hook: torch.zeros_like(value))]
    with torch.no_grad():
        logits = bridge.run_with_hooks(held_out.tokens, fwd_hooks=zero)
    expected = tiny.ce_by_document(logits, held_out.tokens, 2)
    assert ablated(ours, held_out)[0] == pytest.approx(expected, abs=1e-5)


def test_a_loss_sees_what_is_read_and_what_should_be_written():
    ours = problem()
    tokens = ours.train[:2]
    seen = Seen(ours, tokens, Adapted(saes=ours.saes))
    _, cache = tiny.bridge("llama").run_with_cache(tokens, names_filter=[READ, WRITTEN])
    for values, name in ((seen.sites, READ), (seen.targets, WRITTEN)):
        torch.testing.assert_close(values[0], cache[name][:, 1:].flatten(0, 1))
    plain = tiny.problem()
    seen = Seen(plain, tokens, Adapted(saes=plain.saes))
    assert seen.targets is seen.sites  # nothing is computed twice for an SAE


@pytest.mark.parametrize("label", METHODS)
@pytest.mark.parametrize("kind", ["transcoder", "jumprelu_skip_transcoder"])
def test_every_method_keeps_its_promises(kind, label):
    ours = problem(kind=kind)
    check_promises(ours, hold_out(ours), method.entry(label))


@pytest.mark.parametrize("label", MAPS)
def test_a_map_behind_it_folds_or_is_refused(label):
    ours = problem(kind="jumprelu_transcoder")
    check_promises(ours, hold_out(ours), method.entry(label))
    skips, entry = problem(kind="skip_transcoder"), method.entry(label)
    with pytest.raises(Rejected, match="a transcoder that skips its latents takes no correction"):
        next(entry.module.train(skips, iter([]), entry.config))


def test_measures_of_a_run_take_it():
    """Without the skip connection, which alone is changed, the two would be the same."""
    ours = problem(kind="jumprelu_skip_transcoder")
    held_out, own = hold_out(ours), copy_of(ours.saes).requires_grad_(False)
    own[0].W_skip.mul_(3)
    adapted = Adapted(saes=own)
    ce = measures.no_sae(ours, held_out, adapted)
    assert ce["ce_without_sae"] == pytest.approx(ce["ce_clean"])
    assert ce["ce_adapted"] == pytest.approx(measure(ours, held_out, adapted).ce)
    assert ce["ce_adapted"] != pytest.approx(ce["ce_spliced"], abs=1e-3)
    values = guard.latents(ours, held_out, adapted)[SITE]
    scores = [measure(ours, held_out, Adapted(saes=saes)) for saes in (ours.saes, own)]
    assert values["fvu"] == pytest.approx([score.fvu[0] for score in scores])
    assert values["jaccard"] == 1 and abs(values["fvu"][1] - values["fvu"][0]) > 0.01
    effects = guard.effects(ours, held_out, adapted)[SITE]
    assert effects["before"]["latents"] == effects["adapted"]["latents"]
    assert effects["before"]["with_effect"] == effects["adapted"]["with_effect"] > 0
    assert effects["before"]["ratio"] != effects["adapted"]["ratio"]


def test_effects_are_those_of_full_passes():
    """A latent's vector is taken from what the transcoder writes, not from what it reads."""
    ours = problem()
    held_out, tokens = hold_out(ours), tiny.windows(6, seed=3)
    held_out = measures.hold_out(ours, Windows(tokens, ["one"] * 6))
    adapted = next(lora.train(ours, Batches(ours.train), lora.Config(rank=2)))
    torch.manual_seed(0)
    with torch.no_grad():
        for adapter in adapted.state["adapters"].values():
            adapter.b.normal_(std=0.3)
    found = guard.effects(ours, held_out, adapted)[SITE]
    for name, hooks in (("before", []), ("adapted", adapted.hooks)):
        values = found[name]
        assert values["with_effect"] > 20
        for n in range(0, 20, 7):
            got = [values[f"{kind}_by_latent"][n] for kind in ("correlation", "ratio")]
            want = effect(ours, hooks, tokens, values["latents"][n])
            assert got == pytest.approx(want, rel=2e-3, abs=2e-3)
    assert found["adapted"]["correlation"]["mean"] < found["before"]["correlation"]["mean"]


def effect(ours, hooks, windows, latent):
    """(correlation, ratio) of a latent's effect in the adapted and the clean model, by plain
    passes over the window where it is most active."""
    lent, bridge, seen = ours.saes[0], tiny.bridge("llama"), {}

    def logits(tokens, put, others=()):
        def write(value, hook):
            return torch.cat([value[:, :1], put(seen["read"], value)[:, 1:]], 1)

        read = (READ, lambda value, hook: seen.update(read=value))
        with torch.no_grad():
            return bridge.run_with_hooks(tokens, fwd_hooks=[*others, read, (WRITTEN, write)])

    def less(read):
        latents = lent.encode(read)
        latents[..., latent] = 0
        return lent.decode(latents)

    logits(windows, lambda read, given: lent(read), hooks)
    acts = lent.encode(seen["read"])[:, 1:, latent]
    best = int(acts.sum(1).argmax())
    tokens, first = windows[best : best + 1], int(acts[best].nonzero()[0]) + 1
    whole = logits(tokens, lambda read, given: lent(read), hooks)
    own = logits(tokens, lambda read, given: less(read), hooks) - whole
    removed = (lent(seen["read"]) - less(seen["read"])).detach()
    clean = logits(tokens, lambda read, given: given - removed)
    clean = clean - logits(tokens, lambda read, given: given)
    pair = [change[0, first:-1].double() for change in (own, clean)]
    pair = [(change - change.mean(-1, keepdim=True)).flatten() for change in pair]
    correlation = torch.corrcoef(torch.stack(pair))[0, 1].item()
    return correlation, (pair[0].norm() / pair[1].norm()).item()


def test_distances_are_those_of_full_passes():
    ours = problem()
    held_out = hold_out(ours)
    found = measures.distance(ours, held_out, Adapted(saes=ours.saes))
    assert found["layers"][0] == 0 and found["difference"]["l2"] == [0.0] * len(found["layers"])
    bridge, lent, seen = tiny.bridge("llama"), ours.saes[0], {}

    def write(value, hook):
        return torch.cat([value[:, :1], lent(seen["read"])[:, 1:]], 1)

    spliced = [(READ, lambda value, hook: seen.update(read=value)), (WRITTEN, write)]
    outputs = []
    for hooks in ([], spliced):
        with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
            _, cache = bridge.run_with_cache(held_out.tokens)
        outputs.append([cache[f"blocks.{layer}.hook_out"][:, 1:] for layer in found["layers"]])
    apart = [(a - b).norm(dim=-1).mean().item() for a, b in zip(*outputs, strict=True)]
    assert found["spliced"]["l2"] == pytest.approx(apart, rel=1e-4, abs=1e-6) and apart[-1] > 0.01


def test_probes_see_what_it_makes_of_what_it_reads():
    ours = problem()
    tokens = tiny.windows(4, seed=3)
    found = probing.features(ours, tokens, torch.tensor([0, 0, 1, 1]), Adapted(saes=ours.saes))
    _, cache = tiny.bridge("llama").run_with_cache(tokens, names_filter=[READ])
    read = cache[READ][:, 1:]
    for name, values in (("residual", read), ("before", ours.saes[0].encode(read))):
        want = values.detach().unflatten(0, (2, 2)).mean((1, 2)).double()
        torch.testing.assert_close(found[SITE][name], want, rtol=1e-5, atol=1e-6)


def test_the_clean_side_from_disk_is_the_same(tmp_path):
    """A point that is read and another that is written: both come from the restart."""
    losses = []
    for cache in (None, CleanCache(tmp_path), CleanCache(tmp_path)):
        ours = problem(kind="skip_transcoder", clean_cache=cache)
        own = copy_of(ours.saes)
        adapted = Adapted(saes=own, state={"saes": own})
        loss = ours.backward(ours.train[:2], adapted, LOSSES["kl+mse"])
        losses.append((loss.item(), own[0].W_enc.grad.norm().item()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[1] == losses[2]


def fitted():
    """One that explains much of what the MLP writes: by regression on its latents and its input."""
    ours, one = problem(), transcoder("skip_transcoder")
    letters = torch.tensor(tiny.tokenizer()("abcdefgh ", add_special_tokens=False).input_ids)
    windows = letters[tiny.windows(800, seed=5) % len(letters)]  # as in the tiny text
    seen = Seen(ours, windows, Adapted(saes=ours.saes))
    read, written = seen.sites[0], seen.targets[0]
    with torch.no_grad():
        one.W_enc.normal_(std=1.0)
        inputs = torch.cat([one.encode(read), read, torch.ones(len(read), 1)], 1)
        x = inputs.double()
        pull = 1e-3 * len(x) * torch.eye(x.shape[1], dtype=x.dtype)  # some latents never fire
        weights = torch.linalg.solve(x.T @ x + pull, x.T @ written.double())
        for part, values in zip(
            (one.W_dec, one.W_skip.T, one.b_dec[None]),
            weights.split([one.cfg.d_sae, tiny.WIDTH, 1]),
            strict=True,
        ):
            part.copy_(values)
    return one


def test_from_the_command_line_to_the_bridge(small, command, tmp_path):
    saes.save(fitted(), tmp_path / "lent")
    place = {"sae": tmp_path / "lent", "site": SITE, "out": tmp_path / "runs"}
    code, out, err = small("check", sae=place["sae"], site=SITE)
    assert code == 0, err
    assert "skip_transcoder SAE" in out and "ce_loss_score" in out
    code, _, err = small("compare", "--methods", "lora,e2e,sae_lora,full", **place)
    assert code == 0, err
    paths = sorted((tmp_path / "runs").glob("*.jsonl"))
    assert len(paths) == 5  # with `none`
    for path in paths:
        header, *_, end = (json.loads(line) for line in path.read_text().splitlines())
        assert header["sae"]["kind"] == "skip_transcoder"
        bridge, tokens = library.load(path), validation_tokens(read(path))
        logits, cache = bridge.run_with_cache(tokens, use_cache=False)
        latents = cache[f"{WRITTEN}.hook_sae_acts_post"]
        assert latents.shape == (*tokens.shape, 4 * tiny.WIDTH)
        assert end["ce_full"] == pytest.approx(tiny.ce_by_document(logits, tokens, 4), rel=1e-5)
    (lora,) = (tmp_path / "runs").glob("lora-*.jsonl")
    code, _, err = command("export", lora, "--to", tmp_path / "exported")
    assert code == 0, err
    trained = next((tmp_path / "runs").glob("e2e-*/sae-100"))
    assert isinstance(SAE.load_from_disk(trained), SkipTranscoder)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"site": tiny.SITE}, "a transcoder: expected --site READ:WRITTEN, two points"),
        ({"site": f"{READ}:blocks.2.hook_mlp_out"}, "expected two points of one block"),
        ({"site": f"blocks.1.mlp.hook_inn:{WRITTEN}"}, f"did you mean '{SITE}'?"),
        ({"site": f"{READ}:blocks.1.hook_mlp_outt"}, f"did you mean '{SITE}'?"),
        ({"site": f"blocks.1.hook_resid_post:{WRITTEN}"}, "did you mean 'blocks.1.hook_resid_mid:"),
        ({"site": f":{WRITTEN}"}, "expected a hook point such as"),
        ({"site": f"{SITE}+{WRITTEN}", "sae": "lent+topk"}, "a site is named twice"),
        ({"sae": "own"}, "none is made for"),
        ({"sae": "topk"}, "no transcoder: expected a --site of one point"),
        ({"sae": "wide"}, "d_in 40, the model's site has width 32"),
        ({"sae": "wider"}, "d_out 40, the model's site has width 32"),
        ({"site": f"blocks.2.mlp.hook_in:{WRITTEN[:7]}2.hook_mlp_out"}, "wrong layer"),
        ({"sae": "gives"}, "was trained to give blocks.2.hook_mlp_out, --site writes"),
        ({"sae": "folded"}, "trained with fold_ln=True of its model"),
    ],
)
def test_what_does_not_fit_is_one_line(small, tmp_path, changes, line):
    saes.save(transcoder(), tmp_path / "lent")
    saes.save(transcoder(hook_name_out="blocks.2.hook_mlp_out"), tmp_path / "gives")
    folded = {"model_from_pretrained_kwargs": {"fold_ln": True}}
    saes.save(transcoder(**folded), tmp_path / "folded")
    saes.save(tiny.sae()[0], tmp_path / "topk")
    saes.save(transcoder(width=40), tmp_path / "wide")
    saes.save(transcoder(d_out=40), tmp_path / "wider")
    arguments = {"sae": "lent", "site": SITE, **changes}
    if arguments["sae"] != "own":
        names = arguments["sae"].split("+")
        arguments["sae"] = "+".join(str(tmp_path / name) for name in names)
    code, _, err = small("compare", "--methods", "none", out=tmp_path / "runs", **arguments)
    assert code in (2, 3) and line in err and err.count("\n") == 1
