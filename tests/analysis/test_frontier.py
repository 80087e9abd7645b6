"""The frontier's records in; its table and what may be concluded out."""

import json
from dataclasses import replace
from statistics import fmean, median

import pytest
from scipy import stats

from analysis import figures
from analysis.records import manifest
from analysis.report import report
from analysis.stats.crossed import crossed, holm, ratio
from analysis.stats.frontier import Arm, closed, left, maturity, tuning_seconds, verdicts
from analysis.tables.experiments import tables
from analysis.tables.frontier import markdown
from bench.errors import Rejected
from bench.io.record import read_folder
from tests.helpers.frontier import (
    CLEAN,
    CLOSES,
    ONTO_CURVES,
    SPEC,
    T,
    arm,
    changed,
    elsewhere,
    loaded,
    planned,
    trunk,
    trunk_kl,
)
from tests.helpers.records import experiment, write


def cells(text, name):
    """The words of an arm's first line in the table."""
    return next(line for line in text.splitlines() if line.startswith(f"{name}  "))


def row_of(page, arm_name):
    """Head -> cell of an arm's row in Markdown."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    heads = next(line for line in lines if line[0] == "arm")
    row = next(line for line in lines if line[0].endswith(f"(`{arm_name}`)"))
    return dict(zip(heads, row, strict=True))


def page_of(folder, entries):
    experiment(folder, "frontier", entries)
    return markdown(manifest.load(folder), "frontier")


def test_numbers_of_the_table_are_those_of_the_records(tmp_path):
    entries = planned(roles=("mse", "lora", "e2e"))
    runs = {(role, seed, at.get("fork"), at["sae"]): run for role, seed, at, run in entries}
    gaps, gains, more = [], [], []
    for seed in (0, 1, 2):
        mse, lora = (runs[role, seed, 0.25, "own"] for role in ("mse", "lora"))
        before, after = mse.header["kl_full_spliced"], lora.end["kl_full"]
        gaps.append(before)
        gains.append([x - y for x, y in zip(before, after, strict=True)])
        more.append([x - y for x, y in zip(mse.end["kl_full"], after, strict=True)])
    row = row_of(page_of(tmp_path, entries), "lora")
    share = ratio(gains, gaps)
    by_hand = sum(map(fmean, gains)) / sum(map(fmean, gaps))
    assert share.value == pytest.approx(by_hand) and by_hand == pytest.approx(0.32, abs=0.01)
    interval = f"[{100 * share.low:.1f}, {100 * share.high:.1f}]"
    assert row["KL closed, %"] == f"{100 * by_hand:.1f} {interval}"
    points = 100 * sum(map(fmean, more)) / sum(map(fmean, gaps))
    assert row["KL against mse"].startswith(f"{points:+.1f} better (")
    ends = [fmean(runs["lora", seed, 0.25, "own"].end["kl_full"]) for seed in (0, 1, 2)]
    assert row["KL left"] == f"{fmean(ends):.3f}" and row["CE left"] == f"{1.05 * fmean(ends):.3f}"
    assert row["CE closed, %"] == row["KL closed, %"], "the made-up CE is 1.05 KL above the clean"
    assert row["seconds"] == "1,800" and row["seeds"] == "3"


def test_the_family_is_judged_by_holm_and_by_equivalence(tmp_path):
    whole = loaded(tmp_path, planned())
    found = verdicts(whole)
    pairs = {(arm.role, than.role) for _, arm, than in found}
    against_mse = {(role, "mse") for role in CLOSES if role != "mse"}
    assert pairs == against_mse | {("lora", "e2e")} and len(found) == 2 * len(pairs)
    raw = {str(n): verdict.more.p() for n, verdict in enumerate(found.values())}
    open_yet = {f"planned {n}": 1.0 for n in range(26 - len(raw))}
    assert len(raw) < 26, "what was planned and is not there yet counts"
    assert [v.p for v in found.values()] == list(holm(raw | open_yet).values())[: len(raw)]
    words = {arm.role: v.word for (outcome, arm, than), v in found.items() if than.role == "mse"}
    assert words["joint"] == "better" and words["ridge"] == words["e2e-scratch"] == "worse"
    assert words["mse-weighted"] == "the same"
    assert found["KL", Arm("lora"), Arm("e2e")].more.value < 0, "lora closes less than e2e"


def test_arms_of_a_seed_that_fork_from_two_saes_are_refused(tmp_path):
    def another(run):
        return replace(run, header={**run.header, "sae": {**run.header["sae"], "sha256": "f" * 64}})

    entries = planned(roles=("mse", "lora"), controls=())
    with pytest.raises(Rejected, match="seed 0 forks from another SAE"):
        verdicts(loaded(tmp_path, changed(entries, another, "lora", fork=0.25)))


def test_an_arm_with_fewer_seeds_is_placed_by_its_difference_from_mse(tmp_path):
    """Else an easy seed that it lacks makes it look worse."""
    entries = planned(roles=("mse", "lora"), controls=())
    fewer = [e for e in entries if (e[0], e[1]) not in (("lora", 0), ("lora", 1))]
    whole, part = (loaded(tmp_path / n, e) for n, e in (("a", entries), ("b", fewer)))
    mse = left(whole, Arm("mse"), "KL")
    assert left(part, Arm("mse"), "KL") == mse
    ends = [part.runs(role, fork=0.25, sae="own") for role in ("lora", "mse")]
    lora, others = ({run.header["seed"]: fmean(run.end["kl_full"]) for run in of} for of in ends)
    placed = mse + lora[2] - others[2]
    assert list(lora) == [2] and left(part, Arm("lora"), "KL") == pytest.approx(placed)
    assert abs(lora[2] - placed) > 0.001


def test_what_cannot_be_told_apart_is_not_called_the_same(tmp_path):
    entries = planned(roles=("mse", "lora"))
    noisy = {seed: 0.21 + 0.08 * (seed - 1) for seed in (0, 1, 2)}
    entries = [
        (role, seed, at, arm(role, seed, **at, share=noisy[seed]) if role == "lora" else run)
        for role, seed, at, run in entries
    ]
    verdict = verdicts(loaded(tmp_path, entries))["KL", Arm("lora"), Arm("mse")]
    assert verdict.word == "not told apart" and verdict.p > 0.05


def test_one_seed_has_numbers_and_no_verdict(tmp_path):
    page = page_of(tmp_path, planned(seeds=(0,)))
    row = row_of(page, "lora")
    assert float(row["KL closed, %"]) == pytest.approx(32, abs=1)
    assert float(row["KL against mse"]) == pytest.approx(12, abs=1)
    assert "no verdict (one seed): lora" in page and "better:" not in page
    assert "No arm is shown to be better than mse" in page
    assert figures.draw(manifest.load(tmp_path)["frontier"])


def test_what_is_missing_is_blank_or_counted(tmp_path):
    entries = planned(roles=("mse", "lora", "e2e"))
    entries = [
        (*at, None if at[:2] == ["e2e", 2] or at[:2] == ("e2e", 2) else run) for *at, run in entries
    ]

    def cut(run):
        return replace(run, end={"end": "diverged"}) if run.header["seed"] == 1 else run

    page = page_of(tmp_path, changed(entries, cut, "lora", fork=0.25, sae="own"))
    assert row_of(page, "e2e")["seeds"] == "2 of 3" and row_of(page, "lora")["seeds"] == "2 of 3"
    assert "lora seed 1 is not finished (diverged): left out." in page
    row = row_of(page, "mse")
    assert {row[head] for head in ("CE, no SAE", "kept", "effects, change", "+ tuning")} == {"-"}
    assert row["KL against mse"] == "-"


def test_without_mse_nothing_is_compared_and_the_figure_says_so(tmp_path):
    whole = loaded(tmp_path, planned(roles=("lora", "e2e")))
    assert {than.role for _, _, than in verdicts(whole)} == {"e2e"}
    assert "against going on with reconstruction (mse): nothing to compare" in tables(
        manifest.load(tmp_path)
    )
    axes = figures.draw(whole).axes[0]
    assert not axes.lines and "going on with reconstruction" in axes.texts[0].get_text()


def test_records_without_kl_are_older_ones(tmp_path):
    def older(run):
        del run.header["kl_full_spliced"], run.end["kl_full"]
        return run

    page = page_of(tmp_path, changed(planned(roles=("mse",), forks=(), controls=()), older, "mse"))
    row = row_of(page, "mse")
    assert row["KL closed, %"] == row["KL left"] == "-" and row["CE closed, %"] != "-"
    assert not figures.draw(manifest.load(tmp_path)["frontier"]).axes[0].lines


def test_no_gap_no_share(tmp_path):
    def no_gap(run):
        header = {**run.header, "ce_full_spliced": [ce - 0.01 for ce in CLEAN]}
        return replace(run, header=header)

    entries = planned(seeds=(0, 1), roles=("mse",), forks=(), controls=())
    row = row_of(page_of(tmp_path, changed(entries, no_gap, "mse")), "mse")
    assert row["CE closed, %"] == "-" and row["KL closed, %"] != "-"


def test_no_share_of_a_gap_that_is_less_than_two_errors(tmp_path):
    """A gap of 0.2 nats that differs by document from -1.3 to 1.7 may be none."""

    def unsure(run):
        signs = [0.2 + 1.5 * (-1) ** n for n in range(len(CLEAN))]
        header = {
            **run.header,
            "ce_full_spliced": [c + s for c, s in zip(CLEAN, signs, strict=True)],
        }
        return replace(run, header=header)

    entries = planned(seeds=(0, 1), roles=("mse",), forks=(), controls=())
    row = row_of(page_of(tmp_path, changed(entries, unsure, "mse")), "mse")
    assert row["CE closed, %"] == "-" and row["KL closed, %"] != "-"


def resumed(run):
    return replace(run, end={**run.end, "timing": "resumed", "segments": 2})


def test_the_clock_is_that_of_most_runs_of_the_base(tmp_path):
    """Controls and other forks, however many, do not move it."""
    entries = planned(roles=("mse", "lora"))
    entries = [
        e
        if e[0] in ("mse", "trunk") and e[2] == {"fork": 0.25, "sae": "own"}
        else (*e[:3], elsewhere(e[3]))
        for e in entries
    ]
    entries = changed(entries, elsewhere, "mse", fork=0.5)
    page = page_of(tmp_path, entries)
    assert row_of(page, "mse")["seconds"] == "1,800" and row_of(page, "lora")["seconds"] == "-"


@pytest.mark.parametrize("change", [resumed, elsewhere])
def test_a_run_that_was_not_timed_alike_keeps_its_loss_and_has_no_place_on_seconds(
    tmp_path, change
):
    entries = planned(roles=("mse", "lora", "e2e"), controls=())
    plain = row_of(page_of(tmp_path, entries), "lora")
    page = page_of(tmp_path, changed(entries, change, "lora", fork=0.25))
    row = row_of(page, "lora")
    assert row["seconds"] == "-" and row_of(page, "e2e")["seconds"] == "1,800"
    assert {k: v for k, v in row.items() if k != "seconds"} == {
        k: v for k, v in plain.items() if k != "seconds"
    }
    figure = figures.draw(manifest.load(tmp_path)["frontier"])
    assert not any(text.get_text().startswith("LoRA") for text in figure.axes[1].texts)
    missing = "not timed in one go here: LoRA on the model (25%)"
    assert missing in figure.get_supxlabel() and "another" not in figure.get_suptitle()


@pytest.mark.parametrize(("power", "mature"), [(0.4, False), (0.1, True)])
def test_maturity_is_what_the_last_doubling_of_tokens_did(tmp_path, power, mature):
    entries = planned(roles=("mse",), forks=(), controls=())
    entries = changed(entries, lambda run: trunk(run.header["seed"], power), "trunk")
    found = maturity(loaded(tmp_path, entries))
    assert found.change == pytest.approx(1 - 2**-power, rel=1e-3) and found.mature == mature
    gap = ONTO_CURVES * trunk_kl(0.75 * T, power) * 1.03
    assert found.gap == pytest.approx(gap, rel=1e-3)
    assert found.slope == pytest.approx(power * gap / (0.75 * T), rel=1e-3)
    stamp = figures.draw(manifest.load(tmp_path)["frontier"]).axes[0].texts[-1].get_text()
    assert stamp.startswith("mature SAE" if mature else "immature SAE")
    assert ("- Mature SAE" if mature else "- Immature SAE") in tables(manifest.load(tmp_path))


def test_maturity_is_not_known_without_a_trunk_that_got_to_the_fork(tmp_path):
    def short(run):
        return replace(run, rows=run.rows[:10])

    entries = planned(roles=("mse",), forks=(), controls=())
    assert maturity(loaded(tmp_path, changed(entries, short, "trunk"))) is None
    assert "How mature the SAE is, is not known" in tables(manifest.load(tmp_path))


def test_an_arm_of_two_stages_is_held_against_the_fork(tmp_path):
    def annealed(run):
        halfway = [0.9 * kl for kl in run.header["kl_full_spliced"]]
        return replace(run, header={**run.header, "kl_full_spliced": halfway})

    entries = planned(roles=("mse-lora", "mse"), forks=(), controls=())
    share = closed(loaded(tmp_path, changed(entries, annealed, "mse-lora")), Arm("mse-lora"), "KL")
    assert share.value == pytest.approx(CLOSES["mse-lora"], abs=0.01)


def measured(folder, kind, values, roles=("lora", "e2e")):
    """An experiment of measurements; `values` makes those of a role and seed."""
    entries = []
    for role in roles:
        for seed in (0, 1, 2):
            told = {"schema": 1, "name": f"{kind}-{role}-{seed}", "measure": kind, "spec": SPEC}
            told["values"] = values(role, seed)
            entries.append((role, seed, {"fork": 0.25, "sae": "own"}, told))
    return experiment(folder, f"frontier-{kind}", entries)


def test_measurements_are_columns_and_no_tables_of_their_own(tmp_path):
    site = "blocks.15.hook_resid_post"
    measured(
        tmp_path,
        "no-sae",
        lambda role, seed: {
            "ce_clean": [3.0, 3.2],
            "ce_without_sae": [3.1 + 0.03 * seed, 3.2] if role == "lora" else [3.0, 3.2],
        },
    )
    measured(tmp_path, "latents", lambda role, seed: {site: {"jaccard": 0.6 + 0.1 * seed}})
    fell = [0.13, 0.15, 0.17]

    def effects(role, seed):
        was = 0.9 + 0.05 * seed
        now = was - fell[seed]
        before = {"latents": [7, 1, 2, 3, 4], "correlation_by_latent": [0.1, was, was, None, 0.5]}
        after = {"latents": [3, 2, 9, 4, 1], "correlation_by_latent": [0.2, now, 0.3, None, now]}
        return {site: {"before": before, "adapted": after}}

    measured(tmp_path, "effects", lambda role, seed: effects(role, seed) if role == "lora" else {})
    probes = {
        "party": {"before": {"5": {"mean": 0.7}}, "after": {"5": {"mean": 0.6}, "1": {"mean": 0}}},
        "era": {"before": {"5": {"mean": 0.9}}, "after": {"5": {"mean": 0.8}}},
    }
    measured(tmp_path, "probing", lambda role, seed: {"tokens_each": 512, "sites": {site: probes}})
    page = page_of(tmp_path, planned(roles=("mse", "lora", "e2e")))
    lora, e2e, mse = (row_of(page, role) for role in ("lora", "e2e", "mse"))
    harm = crossed([[0.1 + 0.03 * seed, 0.0] for seed in (0, 1, 2)])
    assert lora["CE, no SAE"] == f"+0.065 [{harm.low:+.3f}, {harm.high:+.3f}]"
    assert e2e["CE, no SAE"] == "+0.000", "no interval where all are alike"
    ends = stats.ttest_1samp([0.6, 0.7, 0.8], 0).confidence_interval()
    assert lora["kept"] == f"0.70 [{ends.low:.2f}, {ends.high:.2f}]" and mse["kept"] == "-"
    ends = stats.ttest_1samp([-change for change in fell], 0).confidence_interval()
    effects_of_lora = f"0.80: -0.150 [{ends.low:+.3f}, {ends.high:+.3f}]"
    assert lora["effects, change"] == effects_of_lora and e2e["effects, change"] == "-"
    assert lora["probing, change"] == "0.70: -0.100", "no interval where all are alike"
    text = report(tmp_path)[0]
    assert "frontier-" not in text and effects_of_lora in text


def tuned(folder, searches, model=SPEC["model"]):
    """FOLDER/tuned.json; a search is label -> (the step size chosen, rates tried, steps)."""
    methods = {
        label: {
            "method": label.partition(":")[0],
            "label": label,
            "choice": {"lr": choice},
            "seconds": 1.0,
            "tried": [{}] * tried,
            "steps": steps,
        }
        for label, (choice, tried, steps) in searches.items()
    }
    folder.mkdir(exist_ok=True)
    told = json.dumps({"spec": {"model": model}, "methods": methods})
    (folder / "tuned.json").write_text(told)


CONFIGS = {
    "mse": {"lr": 0.5},
    "lora": {"lr": 0.0025, "keep": 0.0},
    "lora-keep": {"lr": 0.0025, "keep": 1.0},
    "e2e": {"lr": 0.001, "loss": "kl", "weighted": False},
    "e2e-mse": {"lr": 0.001, "loss": "kl+mse", "weighted": True},
}
SEARCHES = {
    "lora:steps=64": (0.0025, 5, 64),
    "lora:steps=200": (0.0025001, 4, 256),
    "e2e": (0.001, 6, 256),
    "e2e:loss=kl+mse:weighted=true": (0.001, 8, 256),
    "mse": (0.002, 4, 256),
}


def configured(entries):
    return [
        (role, *at, replace(run, header={**run.header, "config": CONFIGS.get(role, {})}))
        for role, *at, run in entries
    ]


@pytest.mark.parametrize("place", ["frontier/tuning", "frontier-tuning"])
def test_seconds_with_tuning_are_of_the_search_that_the_run_rests_on(tmp_path, place):
    folder = tmp_path / "frontier"
    folder.mkdir()
    tuned(tmp_path / place, SEARCHES)
    others = {"mse": (0.5, 9, 256), "lora": (0.0025, 9, 256)}
    tuned(tmp_path / "frontier-gemma-tuning", others, "package:gemma3-270m")
    entries = configured(planned(roles=tuple(CONFIGS), forks=(), controls=()))
    for _, seed, _, run in entries:  # the seeds have paces of their own, the slowest is no median
        run.rows[-1]["seconds"] *= (1.3, 1.0, 1.1)[seed]
    page = page_of(folder, entries)
    costs = {role: row_of(page, role)["+ tuning"] for role in CONFIGS}
    whole, expected = manifest.load(folder)["frontier"], {"mse": "-"}
    for role, tried in {"lora": 4, "lora-keep": 4, "e2e": 6, "e2e-mse": 8}.items():
        of_seeds = [
            1350 + run.rows[-1]["seconds"] * (1 + 256 * tried / run.rows[-1]["step"])
            for run in whole.runs(role)
        ]
        expected[role] = f"{median(of_seeds):,.0f}"
    assert costs == expected, "mse did not run with what was chosen"
    (tmp_path / place / "tuned.json").write_text("[1]")
    run = manifest.load(folder)["frontier"].runs("lora")[0]
    with pytest.raises(Rejected, match="tuned.json: not a file of"):
        tuning_seconds(run)


def test_an_arm_that_goes_on_with_another_rests_on_both_searches(tmp_path):
    """`mse-lora`: half of its time is `mse`, which was tuned too."""
    folder = tmp_path / "frontier"
    folder.mkdir()
    tuned(tmp_path / "frontier-tuning", {"lora": (0.0025, 5, 64), "mse": (0.0015, 6, 256)})
    half = arm("mse", 0, step_seconds=0.1, config={"lr": 0.0015}, label="half")
    lora = arm("lora", 0, step_seconds=2.0, config={"lr": 0.0025})
    lora.header["sae"]["run"] = half.name
    write(folder, half, lora)
    found = read_folder(folder)
    assert [tuning_seconds(run) for run in found] == [6 * 256 * 0.1, 5 * 64 * 2.0 + 6 * 256 * 0.1]
    tuned(tmp_path / "frontier-tuning", {"lora": (0.0025, 5, 64)})
    assert [tuning_seconds(run) for run in found] == [None, None]


def test_texts_and_controls_have_tables_of_their_own(tmp_path):
    def better_on_novels(run):
        start = run.header["kl_full_spliced"]
        kl = [0.9 * k for k in start[:8]] + [0.5 * k for k in start[8:]]
        return replace(run, end={**run.end, "kl_full": kl})

    entries = planned(roles=("mse", "lora", "e2e"))
    page = page_of(tmp_path, changed(entries, better_on_novels, "lora", fork=0.25, sae="own"))
    assert "| KL closed, % of the gap on | sotu (8 documents) | novels95 (8 documents) |" in page
    name = "LoRA on the model (`lora`)"
    assert f"| {name} | 10.0 | 50.0 |" in page, "no interval where all are alike"
    assert "| closed, %, around an SAE |  | trained | random directions |" in page
    gap = fmean(trunk_kl(0.75 * T) * (1 + 0.03 * seed) for seed in (0, 1, 2))
    assert f"| the gap, nats | KL | {gap:.3f} | {gap:.3f} |" in page
    both = (0.1 * sum(range(70, 100, 4)) + 0.5 * sum(range(102, 132, 4))) / 16  # in percent
    row = next(
        line for line in page.splitlines() if line.startswith(f"| {name} | KL | {both:.1f} [")
    )
    assert row.split("|")[4].startswith(" 3"), "trained, then random directions"
    said = "around an SAE with random directions"
    assert f"KL, e2e {said}" in page and "not told apart from" in page
    assert any(f"lora {said}" in line and "not told" in line for line in page.splitlines())


def test_a_control_that_closes_less_is_said_to(tmp_path):
    entries = planned(roles=("mse", "lora"))
    entries = changed(
        entries,
        lambda run: arm("lora", run.header["seed"], sae="frozen", share=0.1),
        "lora",
        sae="frozen",
    )
    line = next(x for x in page_of(tmp_path, entries).splitlines() if "random directions:" in x)
    assert "closed, less than the 3" in line


def test_one_text_has_no_table_of_texts(tmp_path):
    def one(run):
        return replace(run, header={**run.header, "documents": [f"d{n}" for n in range(16)]})

    entries = planned(roles=("mse",), forks=(), controls=())
    assert "% of the gap on" not in page_of(tmp_path, changed(entries, one, "mse"))


def test_documents_of_unequal_number_are_refused(tmp_path):
    def fewer(run):
        return replace(run, end={**run.end, "kl_full": run.end["kl_full"][:-1]})

    entries = changed(planned(roles=("mse", "lora")), fewer, "lora")
    with pytest.raises(Rejected, match="lora seed 0: losses of unequal numbers"):
        closed(loaded(tmp_path, entries), Arm("lora"), "KL")


def test_forks_are_compared_by_what_they_leave(tmp_path):
    entries = planned(roles=("mse", "lora", "e2e"), controls=())
    page = page_of(tmp_path, entries)
    ends = {
        (at["fork"], seed): run.end["kl_full"] for role, seed, at, run in entries if role == "lora"
    }
    words = []
    for fork in (0.05, 0.5):
        pairs = [zip(ends[fork, seed], ends[0.25, seed], strict=True) for seed in (0, 1, 2)]
        more = crossed([[x - y for x, y in pair] for pair in pairs])
        words.append(f"with {fork:.0%} {more.value:+.3f} [{more.low:+.3f}, {more.high:+.3f}]")
    assert f"KL that lora leaves more than with 25% of the time: {', '.join(words)}." in page
    assert "(" not in row_of(page, "lora 50%")["KL against mse"], "not in the family"


def test_report_writes_figure_text_and_page(tmp_path):
    experiment(tmp_path, "frontier", planned())
    text, paths = report(tmp_path)
    names = [path.name for path in paths]
    assert names == ["frontier.png", "frontier.pdf", "experiments.txt", "frontier.md"]
    assert max(map(len, text.splitlines())) <= 108
    assert text == (tmp_path / "experiments.txt").read_text() == tables(manifest.load(tmp_path))
    page = (tmp_path / "frontier.md").read_text()
    tabled = [line for line in page.splitlines() if line.startswith("|")]
    widths = {}
    for line in tabled[: len(CLOSES) + 6 + 2]:
        widths[line.count("|")] = line
    assert len(widths) == 1, "every row has a cell for each head"
    assert "sae_lora" not in page and "low-rank update of the SAE (`sae-lora`)" in page


def test_a_frontier_that_was_only_planned_is_said_to_be(tmp_path):
    experiment(tmp_path, "frontier", [("mse", 0, {"fork": 0.25, "sae": "own"}, None)])
    assert "frontier: not measured (0 of 1)" in tables(manifest.load(tmp_path))
