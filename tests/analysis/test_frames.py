"""The end results of several folders as one table: for a spreadsheet, a page, a paper."""

import io

import pandas
import pytest

from analysis.__main__ import main
from analysis.records.comparison import load
from analysis.stats.gap import closed_at_end
from analysis.tables.frames import frame
from tests.helpers.records import make, write

GAINS = [0.1, 0.2, 0.1, 0.2]


@pytest.fixture
def folders(tmp_path):
    """Two folders: the second of another SAE, with a method whose name LaTeX would not take."""
    for name, sha, methods in (("a", "a", ("none", "lora")), ("b", "b", ("sae_lora",))):
        (tmp_path / name).mkdir()
        sae = {"source": "own", "sha256": sha * 64, "run": "mse-00000000", "share": 1.0}
        runs = [make(m, seed, gains=GAINS, sae=sae) for m in methods for seed in (0, 1)]
        write(tmp_path / name, *runs)
    return tmp_path / "a", tmp_path / "b"


def test_the_frame_has_what_the_statistics_say(folders):
    comparisons = [each for folder in folders for each in load(folder)]
    found = frame(comparisons).set_index(["sae", "method"])
    assert list(found.index) == [
        ("aaaaaaaa", "none"),
        ("aaaaaaaa", "lora"),
        ("bbbbbbbb", "sae_lora"),
    ]
    lora, closed = found.loc["aaaaaaaa", "lora"], closed_at_end(comparisons[0].runs["lora"])
    assert (lora.ce_closed, lora.ce_closed_low, lora.ce_closed_high) == (
        closed.value,
        closed.low,
        closed.high,
    )
    assert lora.ce == pytest.approx(sum([3.4, 3.7, 3.6, 3.4]) / 4)
    assert (lora.seconds, lora.tokens, lora.runs, lora.finished, lora.documents) == (
        2.0,
        1024,
        2,
        2,
        4,
    )
    assert pandas.isna(lora.kl) and pandas.isna(lora.kl_closed_low)


def test_what_is_printed_is_the_frame(folders, capsys):
    assert main([*map(str, folders), "--format", "csv"]) == 0
    again = pandas.read_csv(io.StringIO(capsys.readouterr().out))
    wanted = frame([each for folder in folders for each in load(folder)])
    pandas.testing.assert_frame_equal(again, wanted, check_dtype=False)

    assert main([*map(str, folders), "--format", "markdown"]) == 0
    heads, rule, *rows = capsys.readouterr().out.splitlines()
    assert heads.startswith("| folder | sae | method | CE |") and "model" not in heads
    assert rule.startswith("| --- | --- | --- | ---: |")
    assert len(rows) == 3 and len({row.count("|") for row in (heads, rule, *rows)}) == 1

    assert main([*map(str, folders), "--format", "latex"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(r"\begin{tabular}{lllr") and lines[-1] == r"\end{tabular}"
    assert any(r"sae\_lora" in line and r"\%" in line for line in lines)
    assert not list(folders[0].glob("*.png"))  # nothing is drawn or written


def test_problems_of_one_folder_are_told_apart(tmp_path, capsys):
    short = {**make().header["spec"], "seq_len": 64}
    write(tmp_path, make("lora", gains=GAINS), make("lora", 1, gains=GAINS, spec=short))
    assert list(frame(load(tmp_path)).seq_len) == ["128", "64"]
    assert main([str(tmp_path), "--format", "markdown"]) == 0
    heads, _, *rows = capsys.readouterr().out.splitlines()
    assert heads.startswith("| seq_len | method |")
    assert [row.split("|")[1].strip() for row in rows] == ["128", "64"]


def test_random_weights_have_costs_alone(tmp_path, capsys):
    write(tmp_path, make("lora", gains=GAINS, weights="random"))
    (row,) = frame(load(tmp_path)).itertuples()
    assert pandas.isna(row.ce) and pandas.isna(row.ce_closed) and row.tokens == 1024


def test_what_does_not_fit_is_one_line(folders, capsys):
    for words, said in (
        (["--format", "html"], "invalid choice: 'html'"),
        (["--claims"], "--claims: expected one folder"),
        (["--format", "csv", "--out", "x"], "--format prints one table"),
        (["--format", "csv", "--style", "paper"], "expected no --out, --claims, --style"),
        (["--style", "paper", "--claims"], "--claims"),
        (["--style", "poster"], "invalid choice: 'poster'"),
        (["--fromat", "csv"], "unknown argument '--fromat': did you mean '--format'? (see"),
        (["nope"], "no folder 'nope'"),
    ):
        assert main([*map(str, folders), *words]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    assert main([*map(str, [*folders, folders[0]]), "--out", "x"]) == 2
    assert "--out: two of the folders have one name" in capsys.readouterr().err


def test_several_folders_are_reported_each_under_its_name(folders, tmp_path, capsys):
    assert main([*map(str, folders), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "a" / "table.txt").exists()
    assert (tmp_path / "out" / "b" / "table.txt").exists()
