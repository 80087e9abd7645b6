"""The experiments of a folder in, one figure each and a table of all out; the papers' numbers."""

import json
import math

import pytest

from analysis import figures
from analysis.records import manifest
from analysis.records.paper import FOLDER, find, numbers, one
from analysis.report import report, report_experiments
from analysis.tables.experiments import tables
from bench.errors import Rejected, Usage
from tests.helpers import worlds
from tests.helpers.records import experiment, make

SITE = {**make().header["spec"], "site": "blocks.15.hook_resid_post"}


def rank(folder):
    entries = []
    for number in (1, 4, 16, 64, 256):
        for kind in ("fixed", "scaled"):
            gain = 0.06 + 0.01 * math.log(number) * (1 if kind == "fixed" else 1.4)
            alpha = 16 if kind == "fixed" else number
            header = {"label": f"lora:{number}-{kind}", "config": {"alpha": alpha}, "spec": SITE}
            run = make("lora", gains=[gain, 1.2 * gain, 0.9 * gain, gain], **header)
            entries.append(("lora", 0, {"rank": number, "alpha": kind}, run))
    return experiment(folder, "rank", entries)


METHODS = {
    "lora": 0.2,
    "e2e": 0.16,
    "joint": 0.24,
    "linear": 0.09,
    "affine": 0.1,
    "ridge": -0.02,
    "full": 0.19,
    "mse": 0.04,
}


def all_rivals(folder, seeds=(0, 1, 2), missing=(), **header):
    entries = []
    for share in (0.1, 0.5, 1.0):
        for seed in seeds:
            sae = {**make().header["sae"], "sha256": f"{seed}-{share}"}
            for n, (role, most) in enumerate(METHODS.items()):
                closed = [most * (1 + 0.1 * seed) * part for part in (0, 0.3, 0.5, 0.7, 0.9, 1)]
                run = make(
                    role,
                    seed,
                    closed,
                    worlds.STEPS,
                    step_seconds=1.5 + 0.3 * n,
                    label=f"{role}:{share}",
                    gains=[closed[-1] * 0.4 * part for part in (1.1, 0.8, 1.0, 1.3)],
                    ce_spliced=4.0 + 0.1 * seed,
                    sae=sae,
                    **header,
                )
                place = role, seed, {"share": share}
                entries.append((*place, None if (role, seed) in missing else run))
    return experiment(folder, "rivals", entries)


def several(folder):
    entries = []
    for number in (1, 2, 3, 5):
        full = [3.4 + 0.3 * number + part for part in (0, 0.2, 0.1, 0.3)]
        for role, closed in (("none", 0), ("lora", 0.3), ("e2e", 0.25)):
            gains = [closed * (after - before) for after, before in zip(full, CLEAN, strict=True)]
            header = {"label": f"{role}:saes-{number}", "ce_full_spliced": full}
            entries.append((role, 0, {"saes": number}, make(role, gains=gains, **header)))
    return experiment(folder, "multi-sae", entries)


CLEAN = make().header["ce_full_clean"]


def measured(folder, name, values, roles=("lora", "e2e"), seeds=(0, 1, 2)):
    """An experiment of measurements; `values` makes those of a role and seed."""
    entries = []
    for role in roles:
        for seed in seeds:
            told = {"schema": 1, "name": f"{name}-{role}-{seed}", "measure": name, "spec": SITE}
            told |= {"machine": "box", "device": "cpu", "threads": 2, "method": role}
            told["values"] = values(role, seed)
            entries.append((role, seed, {"share": 1.0}, told))
    return experiment(folder, name, entries)


EDGES = [10 ** (-5 + tenth / 10) for tenth in range(61)]


def changes(role, seed):
    """Log-normal changes of loss; more get better than worse."""

    def counts(number, centre):
        return [round(number * math.exp(-((n - centre) ** 2) / 60)) for n in range(60)]

    better, worse = counts(520 + 20 * seed, 38), counts(400 - 10 * seed, 37)
    told = {"edges": EDGES, "improved": better, "degraded": worse, "below": 40, "above": 0}
    told |= {"n_improved": sum(better), "n_degraded": sum(worse), "ce_clean": 3.3}
    told["n_tokens"] = sum(better) + sum(worse) + 40
    return told | {"ce_spliced": 3.6, "ce_adapted": 3.5}


def distances(role, seed):
    layers = list(range(15, 30))
    l2 = [-(n**1.5) * (0.1 + 0.01 * seed) * (1 if role == "lora" else 0.8) for n in range(15)]
    told = {"l2": l2, "l2_error": [0.05 + 0.03 * n for n in range(15)]}
    told |= {"cosine": [-value / 200 for value in l2], "cosine_error": [0.001] * 15}
    return {"layers": layers, "difference": told}


def taken_out(role, seed):
    losses = {"clean": 0.0, "spliced": 0.3, "adapted": 0.24, "without_sae": 0.05 + 0.01 * seed}
    parts = (0.9, 1.2, 1.0, 0.8)
    return {
        f"ce_{name}": [ce + above * part for ce, part in zip(CLEAN, parts, strict=True)]
        for name, above in losses.items()
    }


WORLDS = {
    "timing": lambda folder: worlds.timing(folder, spec=SITE),
    "rivals": all_rivals,
    "rank": rank,
    "sparsity": worlds.on("sparsity", "k", (8, 32, 128), (0.2, 0.1, 0.05)),
    "width": worlds.on("width", "width", (1152, 2304, 4608), (0.2, 0.15, 0.1)),
    "layer": worlds.on("layer", "layer", (5, 15, 25), (0.1, 0.12, 0.11)),
    "size": worlds.size,
    "one-layer": worlds.one_layer,
    "multi-sae": several,
    "additivity": worlds.additivity,
    "token-loss": lambda folder: measured(folder, "token-loss", changes),
    "distance": lambda folder: measured(folder, "distance", distances),
    "no-sae": lambda folder: measured(folder, "no-sae", taken_out, roles=("lora",)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every experiment, complete."""
    folder = tmp_path_factory.mktemp("laptop")
    for make_world in WORLDS.values():
        make_world(folder)
    return folder


@pytest.mark.parametrize("name", WORLDS)
def test_each_experiment_has_a_figure_with_axes_that_say_what_they_are(name, folder):
    figure = figures.draw(manifest.load(folder)[name])
    assert figure.axes[0].get_ylabel()
    for axes in figure.axes:
        assert axes.get_xlabel() or axes.get_xticklabels()
        assert axes.has_data()


def test_figures_and_table_are_written_and_the_same_each_time(folder, tmp_path):
    small = tmp_path / "in"
    small.mkdir()
    worlds.one_layer(small)
    first = report(small, tmp_path / "a")[1]
    second = report(small, tmp_path / "b")[1]
    assert [p.name for p in first] == ["one-layer.png", "one-layer.pdf", "experiments.txt"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_the_table_gives_the_share_of_the_gap_and_counts_the_seeds(folder):
    text = tables(manifest.load(folder))
    run = manifest.load(folder)["rivals"].runs("lora", share=1.0)[0]
    gap = [
        a - b
        for a, b in zip(run.header["ce_full_spliced"], run.header["ce_full_clean"], strict=True)
    ]
    gains = [
        sum(a - b for a, b in zip(one.header["ce_full_spliced"], one.end["ce_full"], strict=True))
        for one in manifest.load(folder)["rivals"].runs("lora", share=1.0)
    ]
    share = sum(gains) / 3 / sum(gap)
    line = next(line for line in text.splitlines() if line.startswith("lora    share 1.0"))
    assert f"{100 * share:.1f}%" in line and line.endswith(" 3")


def test_seconds_of_several_clocks_are_not_drawn(tmp_path):
    all_rivals(tmp_path, seeds=(0,))
    path = next(tmp_path.glob("e2e-*.jsonl"))
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(head), "threads": 4}), *rows]))
    text, _ = report_experiments(tmp_path)
    assert "No seconds: timed on several machines" in text
    figure = figures.draw(manifest.load(tmp_path)["rivals"])
    assert not figure.axes[1].lines and "not compared" in figure.axes[1].texts[0].get_text()


def test_an_incomplete_experiment_is_drawn_and_said_to_be(tmp_path):
    all_rivals(tmp_path, seeds=(0, 1), missing=[("full", 0), ("full", 1)])
    text, _ = report_experiments(tmp_path)
    assert "42 of 48 runs" in text and "full" not in text
    assert figures.draw(manifest.load(tmp_path)["rivals"])


def test_random_weights_draw_no_loss(tmp_path):
    all_rivals(tmp_path, seeds=(0,), weights="random")
    text, paths = report_experiments(tmp_path)
    assert "random weights: a CE means nothing" in text
    assert [path.name for path in paths] == ["experiments.txt"]


def test_every_number_of_the_papers_has_a_source(tmp_path):
    for path in FOLDER.glob("*.csv"):
        if path.stem != "claims":
            assert all(number.source for number in numbers(path.stem))
    assert one("timing", "CE", model="Gemma-2-2B", curve="clean") == 2.476
    row = find("scaling", "closed", layer=12, width=16, l0=82)
    assert [number.value for number in row] == [34.9, 38.6, 42.2, 44.9, 46.1]
    (tmp_path / "bad.csv").write_text("quantity,value\nCE,3\n")
    with pytest.raises(Rejected, match="expected columns"):
        numbers("bad", tmp_path)


def test_folders_without_experiments_are_one_line(tmp_path):
    with pytest.raises(Usage, match="no folder"):
        report_experiments(tmp_path / "nope")
    with pytest.raises(Rejected, match="no experiments"):
        report_experiments(tmp_path)
    (tmp_path / "timing.json").write_text('{"experiment": "timing"}')
    with pytest.raises(Rejected, match="no manifest"):
        report_experiments(tmp_path)
