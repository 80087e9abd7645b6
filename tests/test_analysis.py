"""Analysis: curves with known answers in, the same answers out; and what must not be drawn."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import figures
from analysis.__main__ import main
from analysis.load import Comparison, load
from analysis.notes import notes
from analysis.report import experiments, report
from analysis.speedup import (
    ce_difference,
    closed_at_end,
    closed_share,
    cost,
    cost_to_reach,
    curve,
    largest_share,
    median_cost,
    speedup,
    speedups_by_seed,
    targets,
    total_speedup,
)
from bench.errors import Rejected, Usage
from bench.record import Run, Writer

CLEAN, SPLICED = 3.6, 4.0
DOUBLING = (0, 1, 2, 4, 8, 16, 20)
SPACINGS = {
    "doubling": [0, *(2**i for i in range(9))],
    "root": sorted({0, *(round(2 ** (i / 2)) for i in range(17))}),
    "even": list(range(0, 257, 8)),
}


def make(
    method="lora",
    seed=0,
    shares=(0.0, 0.1, 0.2),
    steps=None,
    step_seconds=1.0,
    backwards=1,
    end="finished",
    gains=None,
    **header,
):
    """A run that closes `shares` of the gap at `steps`; `gains` is its CE drop per document."""
    steps = steps or range(len(shares))
    rows = [
        {
            "step": step,
            "ce": None if share is None else SPLICED - share * (SPLICED - CLEAN),
            "seconds": step * step_seconds,
            "forwards": 2 * step,
            "backwards": backwards * step,
            "tokens": 512 * step,
        }
        for step, share in zip(steps, shares, strict=True)
    ]
    defaults = {
        "schema": 1,
        "method": method,
        "label": method,
        "config": {},
        "spec": {"model": "m", "site": "s", "seq_len": 128, "batch_size": 4, "steps": 20},
        "seed": seed,
        "sae": {"source": "own", "sha256": "a" * 64, "run": "mse-00000000", "share": 1.0},
        "sae_cost": {"seconds": 100.0, "backwards": 0, "tokens": 5120, "device": "cpu"},
        "ce_clean": CLEAN,
        "ce_spliced": SPLICED,
        "ce_full_clean": [3.0, 3.5, 3.4, 3.1],
        "ce_full_spliced": [3.5, 3.9, 3.7, 3.6],
        "weights": "pretrained",
        "device": "cpu",
        "machine": "box",
        "threads": 2,
        "started": f"2026-11-22T15:00:{seed:02d}Z",
    }
    header = {**defaults, **header}
    if header["sae_cost"]:
        header["sae_cost"] = {"threads": header["threads"], **header["sae_cost"]}
    last = {"end": end} if end else None
    if gains:
        pairs = zip(header["ce_full_spliced"], gains, strict=True)
        last["ce_full"] = [spliced - gain for spliced, gain in pairs]
    path = Path(f"{header['label'].replace(':', '-')}-{seed:08x}.jsonl")
    return Run(path, header, rows, last)


def write(folder, *runs):
    """Runs -> records in a folder, through the harness's own writer."""
    for number, run in enumerate(runs):
        writer = Writer(folder / run.path)
        writer.write({**run.header, "started": f"2026-11-22T15:{number:02d}:00Z"})
        for row in run.rows:
            writer.write(row)
        if run.end:
            writer.write(run.end)
        writer.close()
    return folder


def rivals(seeds=(0, 1, 2), **header):
    """none, lora and e2e, over seeds; lora closes 20 % and e2e half of it at every step."""
    lora = [0, 0.04, 0.08, 0.12, 0.16, 0.19, 0.20]
    gains = [0.1, 0.08, 0.06, 0.1]
    found = []
    for seed in seeds:
        shift = 1 + 0.01 * seed
        found += [
            make("none", seed, [0.0], gains=[0.0] * 4, **header),
            make("lora", seed, [x * shift for x in lora], DOUBLING, gains=gains, **header),
            make(
                "e2e",
                seed,
                [x * shift / 2 for x in lora],
                DOUBLING,
                gains=[g / 2 for g in gains],
                **header,
            ),
        ]
    return found


def test_closed_share():
    assert closed_share(SPLICED, CLEAN, SPLICED) == 0
    assert closed_share(CLEAN, CLEAN, SPLICED) == 1
    assert closed_share(4.1, CLEAN, SPLICED) < 0
    assert math.isnan(closed_share(3.5, 3.6, 3.6))


def test_interpolation_is_exact_on_straight_lines():
    costs, shares = [0, 1, 3, 10], [0, 0.1, 0.3, 1.0]
    for share in (0.0, 0.05, 0.1, 0.2, 0.77, 1.0):
        assert cost_to_reach(costs, shares, share) == pytest.approx(10 * share)
    assert cost_to_reach(costs, shares, 1.01) == math.inf
    assert cost_to_reach([], [], 0.1) == math.inf


def test_first_crossing_counts():
    assert cost_to_reach([0, 1, 2, 3], [0, 0.2, 0.1, 0.3], 0.15) == pytest.approx(0.75)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("true", [1.3, 3.0])
def test_known_speedup_comes_back(spacing, true):
    """The rival needs `true` times the seconds for the same path."""
    steps = SPACINGS[spacing]
    shares = [0.3 * (1 - math.exp(-step / 40)) for step in steps]
    runs = [make("lora", seed, shares, steps, step_seconds=1.0) for seed in range(3)]
    rival = [make("e2e", seed, shares, steps, step_seconds=true) for seed in range(3)]
    for share in targets({"lora": runs, "e2e": rival}):
        assert speedup(rival, runs, share, "seconds") == pytest.approx(true, rel=0.05)
        assert speedup(rival, runs, share, "backwards") == pytest.approx(1)


@pytest.mark.parametrize("spacing", ["root", "even"])
def test_known_speedup_in_steps_comes_back(spacing):
    """The rival learns at a third of the pace, so its curve is sampled elsewhere on its path."""
    steps = SPACINGS[spacing]
    runs = [make("lora", 0, [0.3 * (1 - math.exp(-step / 60)) for step in steps], steps)]
    rival = [make("e2e", 0, [0.3 * (1 - math.exp(-step / 180)) for step in steps], steps)]
    for share in targets({"lora": runs, "e2e": rival}):
        assert speedup(rival, runs, share, "backwards") == pytest.approx(3, rel=0.05)


def test_direction_and_total():
    fast = [make("lora", step_seconds=1.0)]
    slow = [make("e2e", step_seconds=4.0)]
    assert speedup(slow, fast, 0.1, "seconds") == pytest.approx(4)
    assert speedup(fast, slow, 0.1, "seconds") == pytest.approx(0.25)
    assert total_speedup(slow, fast, 0.1, "seconds") == pytest.approx(104 / 101)
    assert total_speedup(slow, fast, 0.1, "tokens") == pytest.approx(1)
    assert cost(fast[0], 0.1, "tokens", total=True) == pytest.approx(5120 + 512)


def test_miss_is_not_a_speedup():
    reaches, misses = [make("lora")], [make("e2e", shares=(0, 0.01, 0.02))]
    assert median_cost(misses, 0.1, "seconds") == math.inf
    assert speedup(misses, reaches, 0.1, "seconds") is None
    assert speedup(reaches, misses, 0.1, "seconds") is None
    assert speedups_by_seed(misses, reaches, 0.1, "seconds") == []


def test_method_without_backward_passes_has_no_speedup_in_them():
    free, paid = [make("mse", backwards=0)], [make("e2e")]
    assert speedup(paid, free, 0.1, "backwards") is None
    assert speedup(free, paid, 0.1, "backwards") is None
    assert speedup(paid, free, 0.1, "seconds") == pytest.approx(1)


def test_miss_counts_as_infinite_in_the_median():
    runs = [make("lora", seed, step_seconds=1 + seed) for seed in range(3)]
    runs[2] = make("lora", 2, (0, 0.01, 0.02))
    assert median_cost(runs, 0.1, "seconds") == pytest.approx(2)
    runs[1] = make("lora", 1, (0, 0.01, None), end="diverged")
    assert median_cost(runs, 0.1, "seconds") == math.inf


@pytest.mark.parametrize("end", ["interrupted", "error", None])
def test_run_cut_short_is_not_ranked(end):
    assert median_cost([make("lora", end=end)], 0.1, "seconds") is None
    assert median_cost([make("lora", end=end), make("lora", 1)], 0.1, "seconds") == pytest.approx(1)


@pytest.mark.parametrize("where", ["header", "timing", "end"])
def test_resumed_run_is_not_ranked_on_seconds(where):
    marks = {"header": {"segments": 2}, "timing": {"timing": "resumed"}}
    run = make("lora", **marks.get(where, {}))
    if where == "end":
        run.end["segments"] = 2
    assert cost(run, 0.1, "seconds") is None
    assert cost(run, 0.1, "backwards") == pytest.approx(1)


def test_seconds_of_two_clocks_are_not_compared():
    here, there = [make("lora")], [make("e2e", machine="other")]
    assert speedup(there, here, 0.1, "seconds") is None
    assert speedup(there, here, 0.1, "tokens") == pytest.approx(1)


def test_seconds_of_an_sae_from_another_clock_are_not_added():
    cost_elsewhere = {"seconds": 9.0, "tokens": 5, "device": "cuda", "threads": 2}
    run = make("lora", sae_cost=cost_elsewhere)
    assert cost(run, 0.1, "seconds", total=True) is None
    assert cost(run, 0.1, "tokens", total=True) == pytest.approx(517)
    assert cost(make("lora", sae_cost=None), 0.1, "tokens", total=True) is None
    fresh = make("lora", sae_cost=None, sae={"source": "fresh", "sha256": "f"})
    assert cost(fresh, 0.1, "seconds", total=True) == pytest.approx(1)


def test_curve_ends_before_a_loss_that_is_not_finite():
    assert curve(make(shares=(0.0, 0.1, None)), "tokens")[0] == [0, 512]


def test_targets_are_even_shares_of_what_two_labels_reach():
    best = make("lora", shares=(0, 0.9))
    second = make("e2e", shares=(0, 0.2))
    third = make("mse", shares=(0, 0.1))
    runs = {"lora": [best], "e2e": [second], "mse": [third]}
    assert targets(runs) == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert targets(runs, count=2) == pytest.approx([0.1, 0.2])
    assert all(median_cost([second], share, "tokens") < math.inf for share in targets(runs))
    assert targets({"lora": [best]}) == pytest.approx([0.225, 0.45, 0.675, 0.9])
    assert targets({"none": [make("none", shares=[0.0])]}) == []
    assert targets({"lora": [make(shares=(0, -0.1))], "e2e": [second]}) == []


def test_targets_use_what_most_seeds_reach():
    lora = [make("lora", seed, (0, best)) for seed, best in enumerate((0.4, 0.2, 0.1))]
    assert largest_share({"lora": lora, "e2e": [make("e2e", shares=(0, 0.9))]}) == pytest.approx(
        0.2
    )
    two = {"lora": lora[:2], "e2e": [make("e2e", shares=(0, 0.9))]}
    assert median_cost(lora[:2], largest_share(two) - 1e-9, "tokens") < math.inf


def test_standard_error_of_the_closed_share_agrees_with_a_bootstrap():
    drawn = random.Random(0)
    clean = [drawn.gauss(3.5, 0.4) for _ in range(60)]
    gaps = [abs(drawn.gauss(0.3, 0.1)) for _ in clean]
    gains = [0.2 * gap + drawn.gauss(0, 0.02) for gap in gaps]
    spliced = [c + gap for c, gap in zip(clean, gaps, strict=True)]
    closed = closed_at_end(
        [make(gains=gains, ce_full_clean=clean, ce_full_spliced=spliced)],
    )
    shares = []
    for _ in range(4000):
        at = drawn.choices(range(60), k=60)
        shares.append(sum(gains[i] for i in at) / sum(gaps[i] for i in at))
    mean = sum(shares) / len(shares)
    spread = math.sqrt(sum((share - mean) ** 2 for share in shares) / len(shares))
    assert closed.share == pytest.approx(sum(gains) / sum(gaps))
    assert closed.error == pytest.approx(spread, rel=0.1)


def test_closed_share_averages_seeds_within_documents():
    """Seeds that err in opposite directions on a document leave no error over documents."""
    up = make(seed=0, gains=[0.15, 0.10, 0.08, 0.14])
    down = make(seed=1, gains=[0.05, 0.06, 0.04, 0.06])
    closed = closed_at_end([up, down])
    # spliced - clean is 0.5, 0.4, 0.3, 0.5; the mean gain is a fifth of each
    assert closed.share == pytest.approx(0.2)
    assert closed.error == pytest.approx(0, abs=1e-12)
    assert (closed.low, closed.high) == pytest.approx((0.21 / 1.7, 0.47 / 1.7))


def test_closed_share_without_its_measurements():
    assert closed_at_end([make(end="diverged")]) is None
    assert closed_at_end([make(gains=[0.1] * 4, ce_full_spliced=[3.0, 3.5, 3.4, 3.1])]) is None
    one = make(gains=[0.1], ce_full_clean=[3.0], ce_full_spliced=[3.5])
    assert closed_at_end([one]).error is None


def test_difference_is_paired_by_document():
    ours = [make("lora", gains=[0.10, 0.08, 0.06, 0.10])]
    theirs = [make("e2e", gains=[0.08, 0.06, 0.04, 0.08])]
    found = ce_difference(ours, theirs)
    assert found.mean == pytest.approx(-0.02)
    assert found.error == pytest.approx(0, abs=1e-12)
    assert (found.lower, found.seeds) == (1, 1)
    assert found.distinguishable
    noisy = ce_difference(ours, [make("e2e", gains=[0.0, 0.2, 0.0, 0.12])])
    # differences -0.1, 0.12, -0.06, 0.02: mean -0.005, sd 0.0971, standard error 0.0486
    assert noisy.error == pytest.approx(0.0486, abs=1e-4)
    assert not noisy.distinguishable
    assert ce_difference(ours, [make("e2e", end="error")]) is None


def test_report_writes_figures_and_a_table_with_the_right_numbers(tmp_path):
    text, paths = report(write(tmp_path, *rivals()))
    assert [path.name for path in paths] == ["curves.png", "curves.pdf", "table.txt"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF")
    assert paths[2].read_text(encoding="utf-8") == text
    lines = [line.split() for line in text.splitlines()]
    results = {line[0]: line for line in lines if line[-1:] == ["finished"]}
    assert results["none"][1:3] == ["3.6750", "0.0%"]
    assert results["lora"][1:3] == ["3.5900", "20.0%"]
    assert results["e2e"][1:3] == ["3.6325", "10.0%"]
    assert results["lora"][-2:] == ["3", "finished"]
    # the middle seed of e2e closes 10.1 %: targets are multiples of 2.5 %
    first = next(line for line in lines if line[:2] == ["2.5%", "lora"])
    reached = 0.025 / (0.04 * 1.01)
    theirs = 1 + (0.025 - 0.0202) / 0.0202
    assert float(first[2]) == pytest.approx(reached, abs=0.01)
    assert first[3] == f"{100 + reached:.0f}"
    assert float(first[-3][:-1]) == pytest.approx(theirs / reached, abs=0.01)
    assert "CE of lora minus e2e: -0.0425" in text
    assert "lower in 3 of 3 seeds: lora is better" in text
    assert "The SAE itself has cost 100 seconds, 0 backwards, 5,120 tokens" in text
    assert max(map(len, text.splitlines())) <= 110


def test_figure_says_what_is_drawn(tmp_path):
    (comparison,) = load(write(tmp_path, *rivals()))
    figure = figures.draw(comparison)
    left, right, _, ratios = figure.axes[:4]
    assert left.get_ylim()[0] > CLEAN, "the clean model must not squash curves that close 20 %"
    assert "clean model: 3.600" in left.texts[0].get_text()
    assert "512 tokens a step · 20 steps · 3 seeds · cpu, 2 threads" in figure.get_suptitle()
    assert right.get_xlabel() == "LM backward passes"
    assert ratios.get_ylabel() == "speedup over e2e"
    colours = {line.get_label(): line.get_color() for line in figure.legends[0].get_lines()}
    assert colours["lora"] == "#0072B2" and colours["e2e"] == "#D55E00"


def test_clean_model_is_in_view_where_the_curves_come_near(tmp_path):
    (comparison,) = load(write(tmp_path, make("lora", shares=(0, 0.3, 0.6))))
    axes = figures.draw(comparison).axes[0]
    assert axes.get_ylim()[0] < CLEAN and not axes.texts


def test_same_figure_same_bytes(tmp_path):
    write(tmp_path, *rivals(seeds=(0,)))
    first = [path.read_bytes() for path in report(tmp_path)[1]]
    assert [path.read_bytes() for path in report(tmp_path)[1]] == first


def test_variants_share_a_colour_and_get_names_of_their_own(tmp_path):
    runs = [make("lora", seed, config={"rank": 16, "lr": 0.1}) for seed in (0, 1)]
    other = make("lora", 5, config={"rank": 64, "lr": 0.1})
    (comparison,) = load(write(tmp_path, *runs, other))
    assert list(comparison.runs) == ["lora:rank=16", "lora:rank=64"]
    first, second = figures.line_styles(comparison.trained).values()
    assert first["color"] == second["color"] and first["linestyle"] != second["linestyle"]


def test_random_weights_are_not_drawn_as_losses(tmp_path):
    text, paths = report(write(tmp_path, *rivals(weights="random")))
    assert [path.name for path in paths] == ["table.txt"]
    assert "Random weights" in text and "20.0%" not in text and "3.59" not in text


def test_record_that_was_cut_off_still_reads(tmp_path):
    write(tmp_path, *rivals(seeds=(0,)), make("affine", end=None))
    path = tmp_path / "affine-00000000.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "ce": 3.')
    text, paths = report(tmp_path)
    assert "affine seed 0: cut off after step 2, drawn, not ranked" in text
    assert len(paths) == 3


def test_record_without_a_row_still_reads(tmp_path):
    text, paths = report(write(tmp_path, make("lora", shares=(), end=None)))
    assert "lora seed 0: cut off before any step" in text and len(paths) == 3


def test_diverged_run_is_shown(tmp_path):
    runs = [make("lora"), make("e2e", shares=(0, -9.0, None), end="diverged")]
    (comparison,) = load(write(tmp_path, *runs))
    axes = figures.draw(comparison).axes[0]
    (cross,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert axes.get_ylim()[0] <= cross.get_ydata()[0] <= axes.get_ylim()[1]
    assert "e2e seed 0: diverged after step 2, counts as a miss" in report(tmp_path)[0]


def test_mixed_machines_refuse_the_seconds_panel_only(tmp_path):
    runs = [make("lora"), make("e2e", threads=8)]
    (comparison,) = load(write(tmp_path, *runs))
    seconds, backwards = figures.draw(comparison).axes[:2]
    assert not seconds.lines and "not compared" in seconds.texts[0].get_text()
    assert backwards.lines
    text, _ = report(tmp_path)
    assert "Seconds are not compared" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("  5.0%"))
    assert row[1:5] == ["lora", "-", "-", "0.50"]
    assert row[-3:] == ["-", "-", "1.00x"]


def training(name="mse-00000000", **header):
    """The record of the training of the SAE that `make` starts from."""
    header = {"sae": {"source": "fresh", "sha256": "f"}, "sae_cost": None, **header}
    run = make("mse", 1000, (0, 0.5, 0.9), ce_spliced=11.0, backwards=0, **header)
    return Run(Path(f"{name}.jsonl"), run.header, run.rows, run.end)


def test_training_of_the_sae_is_not_a_rival(tmp_path):
    (comparison,) = load(write(tmp_path, training(), *rivals()))
    assert list(comparison.runs) == ["none", "lora", "e2e"]
    assert comparison.rival == "e2e"


def test_training_of_saes_alone_is_drawn(tmp_path):
    text, paths = report(write(tmp_path, training()))
    assert len(paths) == 3 and "The SAE starts fresh" in text


def test_one_sae_per_seed_is_one_comparison(tmp_path):
    def on(seed):
        return {"source": "own", "sha256": str(seed), "run": f"mse-0000000{seed}", "share": 1.0}

    spec = make().header["spec"]
    trainings = [training(f"mse-0000000{s}", spec={**spec, "sae_seed": s}) for s in (0, 1)]
    runs = [
        make("lora", s, sae=on(s), ce_spliced=SPLICED + s, spec={**spec, "sae_seed": s})
        for s in (0, 1)
    ]
    (comparison,) = load(write(tmp_path, *trainings, *runs))
    assert comparison.seeds == [0, 1] and not comparison.one_sae
    assert comparison.ce_spliced == pytest.approx(SPLICED + 0.5)
    assert "each seed has its own SAE" in report(tmp_path)[0]
    other = make("e2e", 0, sae=on(1), ce_spliced=SPLICED + 1, spec={**spec, "sae_seed": 1})
    assert len(load(write(tmp_path, other))) == 2, "two SAEs at one seed are two problems"


def test_problems_in_one_folder_are_drawn_apart(tmp_path):
    spec = {**make().header["spec"], "site": "elsewhere"}
    other = make("lora", 9, spec=spec)
    text, paths = report(write(tmp_path, *rivals(), other))
    assert [path.name for path in paths if path.suffix == ".png"] == ["curves.png", "curves-2.png"]
    assert "SAE at elsewhere" in text


def test_rival_is_e2e_or_the_first_named():
    lora, mse, e2e = [make("lora")], [make("mse")], [make("e2e", label="e2e:lr=1")]
    assert Comparison({"none": [make("none")], "mse": mse, "lora": lora}).rival == "mse"
    assert Comparison({"lora": lora, "e2e:lr=1": e2e}).rival == "e2e:lr=1"
    assert Comparison({"none": [make("none")]}).rival is None


def test_saved_states_are_not_experiments(tmp_path):
    write(tmp_path, make("lora"))
    (tmp_path / "lora-00000000").mkdir()
    write(tmp_path / "lora-00000000", make("e2e"))
    (tmp_path / "timing").mkdir()
    write(tmp_path / "timing", make("e2e"))
    assert experiments(tmp_path) == [tmp_path, tmp_path / "timing"]


def test_command_writes_to_out_and_leaves_the_records_alone(tmp_path, capsys):
    source, out = tmp_path / "results", tmp_path / "out"
    write(source / "timing", *rivals(seeds=(0,)))
    before = sorted(source.rglob("*"))
    assert main([str(source), "--out", str(out)]) == 0
    assert sorted(path.name for path in (out / "timing").iterdir()) == [
        "curves.pdf",
        "curves.png",
        "table.txt",
    ]
    assert sorted(source.rglob("*")) == before
    assert "gap closed" in capsys.readouterr().out


def test_missing_folder_and_empty_folder(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith(f"analysis: no folder '{tmp_path / 'nowhere'}'")
    assert main([str(tmp_path)]) == 3
    with pytest.raises(Usage):
        report(tmp_path / "nowhere")
    with pytest.raises(Rejected):
        report(tmp_path)


BAD = {
    "a list": "[1, 2]\n",
    "a number": "7\n",
    "nothing": "",
    "other JSON": '{"text": "a document"}\n',
    "not UTF-8": b"\xff\xfe\n",
    "no clean loss": json.dumps({**make().header, "ce_clean": None}) + "\n",
    "lists of unequal length": json.dumps({**make().header, "ce_full_clean": [1.0]}) + "\n",
    "a step that is text": json.dumps(make().header)
    + '\n{"step": "1", "ce": 1, "seconds": 1, "forwards": 1, "backwards": 1, "tokens": 1}\n',
    "a row that is a number": json.dumps(make().header) + "\n3\n4\n",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_record_is_rejected_by_name(kind, tmp_path):
    content = BAD[kind]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Rejected, match=str(tmp_path)):
        load(tmp_path)


def test_bad_record_is_one_line_and_does_not_stop_the_others(tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jsonl").write_text("7\n")
    write(tmp_path / "good", make("lora"))
    assert main([str(tmp_path)]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert (tmp_path / "good" / "curves.png").exists()


def test_analysis_never_imports_torch():
    code = "import analysis.report, analysis.__main__, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_who_filled_the_cache_is_said():
    spec = {"model": "m", "site": "s", "cache_clean": True}
    first, second = make("lora", spec=spec), make("e2e", spec=spec)
    first.rows[-1]["cache_filled_tokens"] = 1_024
    text = " ".join(notes(Comparison({"lora": [first], "e2e": [second]})))
    assert "not of the same work" in text
    assert "lora seed 0: the clean side of 1,024 of its 1,024 tokens" in text
    second.rows[-1]["cache_filled_tokens"] = 1_024
    assert "not of the same work" not in " ".join(
        notes(Comparison({"lora": [first], "e2e": [second]}))
    )


def test_another_matrix_product_is_another_clock():
    here, there = make("lora", matmul="oneDNN"), make("e2e", matmul="blas")
    comparison = Comparison({"lora": [here], "e2e": [there]})
    assert not comparison.one_clock
    assert "box, cpu, 2 threads, blas" in " ".join(notes(comparison))
