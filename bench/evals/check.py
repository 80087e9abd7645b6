"""`python -m bench check`: does this SAE belong here, and if not, what is wrong."""

from bench.config import method
from bench.errors import Rejected
from bench.io.console import say
from bench.loading import peft_format, sae_sources
from bench.runs import process
from bench.runs.preflight import asks_the_hub, check_inputs, check_model, set_environment


def check(spec):
    """Measure the SAE of `spec` on the validation windows and print what is right and wrong.

    Raises `Rejected` with the first line of what is wrong.
    """
    check_inputs(spec)
    set_environment(online=asks_the_hub(spec))
    process.call(examine, spec)


def examine(spec):
    """`check` in the process that loads and computes."""
    from bench.evals import diagnose
    from bench.runs import own_sae, setup
    from bench.runs.loaded import load

    folder, _ = check_model(spec)
    loaded = load(spec, folder)
    bench = setup.bench(loaded, own_sae.folders(loaded, method.of_own_saes(spec)))
    problem, held_out = bench.harness.problem, bench.harness.validation
    wrong = list(bench.doubts)
    for index, sae in enumerate(problem.saes):
        say(describe(spec, index, sae, statistics(problem, index, held_out)))
        wrong += diagnose.findings(problem, index, held_out.tokens)
    say(losses(bench))
    say(fired(problem))
    for line in wrong:
        say(f"WRONG  {line}")
    if wrong:
        raise Rejected(f"{len(wrong)} of what was checked is wrong: {wrong[0]}")
    say("ok     nothing found that speaks against it")


def statistics(problem, index, held_out):
    """What one SAE makes of its clean activations at the spliced positions of held-out windows."""
    import torch

    from bench.harness.evaluate import Gauge, parts
    from bench.problem.objectives import flat

    sae, alive, cosines = problem.saes[index], 0, []
    gauge = Gauge(sae)
    with torch.no_grad():
        for part in parts(held_out.tokens):
            tokens = held_out.tokens[part]
            clean = problem.sites(tokens, known=held_out.entry[part])
            given = flat(clean.sites[index])[problem.rows(tokens, problem.spliced)].float()
            cosines.append(torch.cosine_similarity(given, gauge(given), dim=-1))
            alive = alive + sae.encode(given).count_nonzero(0)
    return {
        "fvu": gauge.fvu,
        "cosine": torch.cat(cosines).mean().item(),
        "l0": gauge.l0,
        "dead": (alive == 0).double().mean().item(),
        "tokens": gauge.n,
    }


def expected_points(problem):
    """The points that something may be put on: the sites, and both ends of every linear map."""
    ends = [
        f"blocks.{block}.{linear}.{end}"
        for block in range(problem.n_blocks)
        for linear in peft_format.NAMES
        for end in ("hook_in", "hook_out")
    ]
    return [*problem.site_names, *(name for name in ends if name in problem.points)]


def describe(spec, index, sae, found):
    """Two lines on the SAE of site number `index`."""
    told = sae_sources.expected_l0(spec.saes[index])
    against = f" (its release says {told:.0f})" if told else ""
    return (
        f"{sae.cfg.architecture()} SAE {spec.saes[index]} at {spec.sites[index]}: "
        f"{sae.cfg.d_in:,} -> {sae.cfg.d_sae:,}; spliced {spec.spliced}, scored {spec.scored}, "
        f"{'BOS put first' if spec.prepend_bos else 'no BOS put first'}\n"
        f"       FVU {found['fvu']:.3f}, cosine {found['cosine']:.3f}, "
        f"L0 {found['l0']:.1f}{against}, {found['dead']:.1%} of latents never fire "
        f"on {found['tokens']:,} tokens"
    )


def losses(bench):
    """CE clean, spliced and ablated, and the share of the way from ablated to clean."""
    from bench.harness.evaluate import mean

    if bench.spec.weights == "random":
        return "       random weights: no CE means anything"
    curve = bench.measured
    clean, spliced, ablated = (curve[f"ce_{which}"] for which in ("clean", "spliced", "ablated"))
    gap = mean(curve["ce_full_spliced"]) - mean(curve["ce_full_clean"])
    share = f": {(ablated - spliced) / (ablated - clean):.1%} recovered" if ablated > clean else ""
    return (
        f"       CE clean {clean:.4f}, spliced {spliced:.4f}, ablated {ablated:.4f} nats on the "
        f"curve set{share}; gap {gap:.4f} on the validation set"
    )


def fired(problem):
    """Raise `Rejected` where a hook point fires more than once in a pass; says how many fire.

    The points that adapters and SAEs go to must fire. Others need not: some that the bridge
    names no pass ever reaches.
    """
    names = [name for name in problem.points.widths if name.startswith("blocks.")]
    counts = dict.fromkeys([*names, *expected_points(problem)], 0)

    def counter(name):
        def count(value, hook):
            counts[name] += 1

        return count

    with problem.points.attached([(n, counter(n)) for n in counts], all_fire=False):
        problem.bridge(problem.train[:1], use_cache=False, logits_to_keep=1)
    for name, n in counts.items():
        if n != 1:
            raise Rejected(f"hook point '{name}' fired {n} times in one pass")
    return f"       each of {len(counts):,} hook points fired once in a pass"
