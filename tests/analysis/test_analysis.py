"""Records in, tables and figures out; and what must not be drawn."""

import json
import re
from pathlib import Path

import pytest
from matplotlib import rc_context

from analysis.__main__ import main
from analysis.figures import comparison as figures
from analysis.figures.comparison import columns
from analysis.figures.style import COLUMN
from analysis.records.comparison import Comparison, load
from analysis.report import experiments, report
from analysis.tables.notes import notes
from bench.errors import Rejected, Usage
from bench.io.record import Run
from tests.helpers.records import CLEAN, SPLICED, experiment, make, rivals, write


def test_report_writes_figures_and_a_table_with_the_right_numbers(tmp_path):
    text, paths = report(write(tmp_path, *rivals()))
    names = ["curves.png", "curves.pdf", "table.txt", "report.html"]
    assert [path.name for path in paths] == names
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF")
    assert paths[2].read_text(encoding="utf-8") == text
    lines = [line.split() for line in text.splitlines()]
    results = {line[0]: line for line in lines[3:10] if line}
    assert results["none"][1:3] == ["3.6750", "0.0%"]
    assert results["lora"][1:5] == ["3.5900", "20.0%", "[20.0,", "20.0]"]
    assert results["e2e"][1:3] == ["3.6325", "10.0%"]
    assert "KL" not in results["method"]
    took = lines[lines.index(["What", "it", "took:"]) :]
    assert next(line for line in took if line[:1] == ["lora"])[-1] == "3"
    # the middle seed of e2e closes 10.1 %: targets are multiples of 2.5 %
    first = next(line for line in lines if line[:2] == ["2.5%", "lora"])
    reached = 0.025 / (0.04 * 1.01)
    theirs = 1 + (0.025 - 0.0202) / 0.0202
    assert float(first[2]) == pytest.approx(reached, abs=0.01)
    assert first[3] == f"{100 + reached:.0f}"
    assert float(first[-3][:-1]) == pytest.approx(theirs / reached, abs=0.01)
    # -0.05, -0.04, -0.03, -0.05 in every seed: 0.0048 times the t of 3 degrees of freedom, 3.18
    assert text.endswith(
        "lora and e2e: lora is better (difference -0.0425 [-0.0577, -0.0273] nats CE; 3\n"
        "  seeds, 4 documents).\n"
        "All seeds are around one SAE: nothing is said of another.\n"
    )
    assert "The SAE itself has cost 100 seconds, 0 backwards, 5,120 tokens" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "At the end, on the validation set:\n" in text and ", on the curve set:\n" in text


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


def test_methods_of_ones_own_differ_in_colour_and_marker(tmp_path):
    names = [f"own{n}" for n in range(6)]
    (comparison,) = load(write(tmp_path, *(make(name) for name in ("lora", *names))))
    styles = figures.line_styles(comparison.trained).values()
    for field in ("color", "marker"):
        assert len({style[field] for style in styles}) == 7
    alone = figures.line_styles({"own0": comparison.runs["own0"]})
    assert alone["own0"] == figures.line_styles(comparison.trained)["own0"]


@pytest.mark.parametrize("step_seconds", [0.004, 0.3, 700.0])
def test_costs_are_written_plainly(tmp_path, step_seconds):
    run = make("lora", step_seconds=step_seconds)
    (comparison,) = load(write(tmp_path, run))
    figure = figures.draw(comparison)
    figure.canvas.draw()
    seconds, passes = (
        [label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes[:2]
    )
    # "5m" would be read as minutes, and no pass is done by halves.
    assert not any(text.endswith(("m", "µ")) for text in seconds + passes)
    assert all(float(text).is_integer() for text in passes)
    read = [float(text.replace("k", "e3")) for text in seconds]
    assert run.rows[-1]["seconds"] <= max(read) and len(set(read)) == len(read) >= 3


def test_a_long_label_stays_beside_its_axis(tmp_path):
    labels = [f"mse:adam=kept:warmup=0.03:decay=1:steps=818:lr={lr}" for lr in (9.6e-05, 0.00024)]
    (comparison,) = load(write(tmp_path, *(make("mse", label=label) for label in labels)))
    figure = figures.draw(comparison)
    figure.canvas.draw()
    axes = figure.axes[3]
    assert labels[0] in axes.get_ylabel().replace("\n", "")
    assert axes.yaxis.label.get_window_extent().height < axes.get_window_extent().height


def test_random_weights_are_not_drawn_as_losses(tmp_path):
    text, paths = report(write(tmp_path, *rivals(weights="random")))
    assert [path.name for path in paths] == ["table.txt", "report.html"]
    assert "Random weights" in text and "20.0%" not in text and "3.59" not in text


def test_record_that_was_cut_off_still_reads(tmp_path):
    write(tmp_path, *rivals(seeds=(0,)), make("affine", end=None))
    path = tmp_path / "affine-00000000.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "ce": 3.')
    text, paths = report(tmp_path)
    assert "affine seed 0: cut off after step 2, drawn, not ranked" in text
    assert len(paths) == 4


def test_record_without_a_row_still_reads(tmp_path):
    text, paths = report(write(tmp_path, make("lora", shares=(), end=None)))
    assert "lora seed 0: cut off before any step" in text and len(paths) == 4


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
    assert len(paths) == 4 and "The SAE starts fresh" in text


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
        "report.html",
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


def test_panels_for_a_paper_are_as_wide_as_a_column_and_nothing_runs_over(tmp_path):
    write(tmp_path, *rivals())
    assert main([str(tmp_path), "--style", "paper"]) == 0
    for name in ("seconds", "backwards", "tokens", "speedup"):
        pdf = (tmp_path / f"curves-{name}.pdf").read_bytes()
        [box] = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", pdf)
        assert float(box[0]) == pytest.approx(3.35 * 72, abs=1)
        assert b"/Subtype /Type3" not in pdf and b"/FontFile2" in pdf  # text stays text
    for figure in columns(load(tmp_path)[0]).values():
        with rc_context(COLUMN):
            figure.draw_without_rendering()
            inside, drawn = figure.bbox, figure.get_tightbbox()
        assert drawn.x0 >= -0.02 and drawn.x1 * figure.dpi <= inside.x1 + 2


def test_a_paper_s_style_is_for_comparisons(tmp_path, capsys):
    experiment(tmp_path, "rivals", [("lora", 0, {}, make())])
    assert main([str(tmp_path), "--style", "paper"]) == 2
    assert "has experiments" in capsys.readouterr().err
