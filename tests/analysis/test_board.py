"""`bench submit`: what belongs on the board, and what it makes of it."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from analysis import board
from analysis.records.comparison import load
from analysis.stats.gap import closed_at_end
from bench.errors import Rejected, Usage
from tests.helpers.records import make, rivals, write

BOARD = Path(__file__).parents[2] / "results/board"
GOOD = {"commit": "c0ffee", "dirty": False, "versions": {"sae-lens": "6.54.12"}}


@pytest.fixture
def submitted(tmp_path):
    """The board after one submission."""
    folder = write(tmp_path / "mine", *rivals(**GOOD))
    paths = board.submit(folder, tmp_path / "board")
    assert all(path.exists() for path in paths)
    return tmp_path / "board"


def test_what_lies_on_the_board_is_what_submit_makes():
    """A pull request that adds to it passes here, or this says why not."""
    folders = sorted(path for path in BOARD.iterdir() if path.is_dir())
    assert folders
    for folder in folders:
        comparisons = load(folder)
        assert [fault for each in comparisons for fault in board.faults(each)] == []
        made = {path.name: path.read_text() for path in folder.glob("*_eval_results.json")}
        assert made == board.evaluations(comparisons), folder
        hub = (folder / ".eval_results/splicebench.yaml").read_text()
        assert hub == board.hub_results(comparisons), folder
    assert (BOARD / "README.md").read_text() == board.table(BOARD)


def test_records_are_copied_and_the_table_has_their_shares(submitted):
    page = (submitted / "README.md").read_text()
    assert page.count("\n| ") >= 4 and "20.0% [" in page and "10.0% [" in page
    assert len(list(submitted.glob("mine/*.jsonl"))) == 9


def test_what_the_hub_reads_has_the_shares_of_the_records(submitted):
    """The numbers are those of the statistics; the files read as YAML and as SAEBench's JSON."""
    (comparison,) = load(submitted / "mine")
    lora = closed_at_end(comparison.runs["lora"])
    entries = yaml.safe_load((submitted / "mine/.eval_results/splicebench.yaml").read_text())
    (entry,) = [e for e in entries if e["notes"].startswith("lora ")]
    assert entry["value"] == round(lora.value, 6) and entry["date"] == "2026-11-22"
    assert entry["dataset"]["task_id"] == "ce_closed"
    files = sorted(submitted.glob("mine/*_eval_results.json"), reverse=True)
    made = [json.loads(file.read_text()) for file in files]
    assert [each["eval_config"]["method"] for each in made] == ["lora", "e2e"]
    metrics = made[0]["eval_result_metrics"]
    assert metrics["loss_recovered"]["ce_closed"] == float(f"{lora.value:.9g}")
    assert metrics["loss_recovered"]["kl_closed"] is None
    assert metrics["cost"]["tokens"] == 20 * 512
    assert [run["seed"] for run in made[0]["eval_result_details"]] == [0, 1, 2]
    assert made[0]["sae_lens_version"] == "6.54.12"


def test_a_second_submission_replaces_the_first(submitted, tmp_path):
    for path in (tmp_path / "mine").glob("*.jsonl"):
        path.unlink()
    gains = [0.1, 0.08, 0.06, 0.1]
    again = [make("lora", seed, gains=gains, **GOOD) for seed in (4, 5, 6)]
    board.submit(write(tmp_path / "mine", *again), submitted)
    assert len(list(submitted.glob("mine/*.json*"))) == 3 + 1
    assert "e2e" not in (submitted / "README.md").read_text()
    before = (submitted / "README.md").read_text()
    board.submit(submitted / "mine", submitted)  # in its place
    assert (submitted / "README.md").read_text() == before


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (lambda: rivals((0, 1), **GOOD), "lora has 2 of at least 3 seeds"),
        (lambda: rivals(**{**GOOD, "dirty": True}), "is of code that is no commit"),
        (lambda: rivals(**{**GOOD, "commit": None}), "is of code that is no commit"),
        (lambda: rivals(**GOOD, weights="random"), "is of random weights"),
        (
            lambda: [make("lora", s, end="diverged", **GOOD) for s in range(3)],
            "is not finished (diverged)",
        ),
        (
            lambda: rivals(**GOOD, ce_full_spliced=[3.0, 3.6, 3.3, 3.2]),
            "the gap is not two of its errors above 0",
        ),
    ],
)
def test_what_does_not_belong_is_refused_by_name(runs, said, tmp_path):
    folder = write(tmp_path / "mine", *runs())
    with pytest.raises(Rejected) as fault:
        board.submit(folder, tmp_path / "board")
    assert said in str(fault.value) and "\n" not in str(fault.value)
    assert not (tmp_path / "board").exists()


def test_a_name_stays_on_the_board(tmp_path):
    folder = write(tmp_path / "mine", *rivals(**GOOD))
    with pytest.raises(Usage, match="--name '../x'"):
        board.submit(folder, tmp_path / "board", "../x")


def test_the_command_checks_the_records_first(command, tmp_path):
    folder = shutil.copytree(BOARD / "compare-three", tmp_path / "mine")
    code, out, _ = command("submit", folder, "--board", tmp_path / "board")
    assert code == 0 and "verified 11 records" in out and "written: " in out
    path = next(folder.glob("lora*.jsonl"))
    path.write_text(path.read_text().replace('"ce": 3.', '"ce": 3.1', 1))
    code, _, err = command("submit", folder, "--board", tmp_path / "board")
    assert code == 3 and "sha256" in err
