"""`python -m bench check`: does this SAE belong here, and if not, what is wrong."""

from typing import TYPE_CHECKING

from bench.config import method
from bench.config.spec import Spec
from bench.errors import Rejected
from bench.io.console import say
from bench.loading import sae_sources
from bench.runs import process
from bench.runs.preflight import asks_the_hub, check_inputs, check_model, set_environment

if TYPE_CHECKING:  # both import torch, which the process that checks the inputs does without
    from sae_lens import SAE

    from bench.runs.setup import Bench


def check(spec: Spec) -> None:
    """Measure the SAEs of `spec` on its `held_out` windows and print the findings.

    Raises `Rejected` with the first finding.
    """
    check_inputs(spec)
    set_environment(online=asks_the_hub(spec))
    process.call(examine, spec)


def examine(spec: Spec) -> None:
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
        say(describe(spec, index, sae, diagnose.statistics(problem, index, held_out)))
        wrong += diagnose.findings(problem, index, held_out.tokens)
    say(losses(bench))
    say(diagnose.fired(problem))
    for line in wrong:
        say(f"WRONG  {line}")
    if wrong:
        raise Rejected(f"{wrong[0]}{f' (and {n} more, above)' if (n := len(wrong) - 1) else ''}")
    say("ok     nothing found that speaks against it")


def describe(spec: Spec, index: int, sae: "SAE", measured: dict[str, float]) -> str:
    """Two lines on the SAE of site number `index`, with its `diagnose.statistics`."""
    l0 = sae_sources.expected_l0(spec.saes[index])
    of_release = f" (its release says {l0:.0f})" if l0 else ""
    return (
        f"{sae.cfg.architecture()} SAE {spec.saes[index]} at {spec.sites[index]}: "
        f"{sae.cfg.d_in:,} -> {sae.cfg.d_sae:,}; spliced {spec.spliced}, scored {spec.scored}, "
        f"{'BOS put first' if spec.prepend_bos else 'no BOS put first'}\n"
        f"       FVU {measured['fvu']:.3f}, cosine {measured['cosine']:.3f}, "
        f"L0 {measured['l0']:.1f}{of_release}, {measured['dead']:.1%} of latents never fire "
        f"on {measured['tokens']:,} tokens"
    )


def losses(bench: "Bench") -> str:
    """CE clean, spliced and ablated, and the shares of the way from ablated to clean, which SAELens
    calls `ce_loss_score` and, of the KL, `kl_div_score`."""
    from bench.harness.evaluate import mean

    if bench.spec.weights == "random":
        return "       random weights: no CE means anything"
    curve = bench.measured
    clean, spliced, ablated = (curve[f"ce_{which}"] for which in ("clean", "spliced", "ablated"))
    gap = mean(curve["ce_full_spliced"]) - mean(curve["ce_full_clean"])
    scores = ""
    if ablated > clean and curve["kl_ablated"] > 0:
        scores = f"ce_loss_score {(ablated - spliced) / (ablated - clean):.3f}, "
        scores += f"kl_div_score {1 - curve['kl_spliced'] / curve['kl_ablated']:.3f}; "
    return (
        f"       CE clean {clean:.4f}, spliced {spliced:.4f}, ablated {ablated:.4f} nats on the "
        f"curve set\n       {scores}gap {gap:.4f} on the {bench.spec.held_out} set"
    )
