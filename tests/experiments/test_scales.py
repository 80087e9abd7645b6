"""The scales of a GPU and their rehearsals: what they run, and what they have not.

Whatever step sizes a sweep has chosen in this checkout.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.experiments import plans, scales
from bench.experiments.scales import SCALES, chosen

ROOT = Path(__file__).resolve().parents[2]
GPU = ("gpu-smollm2", "gpu-gemma3")


@pytest.mark.parametrize("name", GPU)
def test_a_run_on_a_gpu_adapts_on_ten_million_tokens(name):
    scale = SCALES[name]()
    assert (scale.seeds, scale.shares) == ((0, 1, 2), (0.1, 0.5, 1.0))
    for job in [*plans.jobs("timing", name), *plans.jobs("rivals", name)]:
        assert (job.spec.device, job.spec.dtype) == ("cuda", "bfloat16")
        assert 10e6 <= job.spec.steps * job.spec.batch_size * job.spec.seq_len <= 50e6


@pytest.mark.parametrize("name", GPU)
def test_a_rehearsal_is_the_same_plan(name):
    """One seed, fewer shares, and otherwise the same roles in the same order."""
    for experiment in ("timing", "rivals"):
        real = [job for job in plans.jobs(experiment, name) if job.seed == 0]
        rehearsal = plans.jobs(experiment, name.replace("gpu", "rehearsal"))
        kept = [job for job in real if job.at.get("share") != 0.1]
        assert [(j.role, j.at) for j in rehearsal] == [(j.role, j.at) for j in kept]
        for one, other in zip(rehearsal, kept, strict=True):
            assert one.spec.model == other.spec.model and one.spec.site == other.spec.site
            assert one.spec.device == "cpu" and one.spec.sae_tokens < 5_000


def test_all_is_what_a_scale_has(command):
    assert plans.expanded(["all"], "gpu-gemma3") == list(
        name for name in plans.EXPERIMENTS if name in SCALES["gpu-gemma3"]().has
    )
    code, _, err = command("experiment", "width", "--scale", "gpu-gemma3")
    assert code == 2
    said = "experiment 'width': not at the scale gpu-gemma3, only with --scale laptop or full"
    assert said in err


def test_step_sizes_that_a_sweep_chose_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(scales, "__file__", str(tmp_path / "bench" / "experiments" / "scales.py"))
    (tmp_path / "results" / "gpu").mkdir(parents=True)
    sizes = json.dumps({"lora": "lr=4e-4", "affine": "lr=1e-2", "sae": "lr=4e-3"})
    (tmp_path / "results" / "gpu" / "sizes-gpu-smollm2.json").write_text(sizes)
    assert chosen("gpu-smollm2") == scales.SIZES | json.loads(sizes)
    assert chosen("gpu-gemma3") == scales.SIZES
    scale = SCALES["gpu-smollm2"]()
    assert (scale.lora, scale.spec.sae_lr) == ("lr=4e-4", 4e-3)
    assert scale.rivals["affine"] == "affine:lr=1e-2" and scale.finetune == "e2e:lr=2.5e-4"


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"lora": 4}', '{"sae": "4e-3x"}', "\udcff"])
def test_damaged_step_sizes_are_one_line_and_only_where_they_are_asked_for(
    tmp_path, monkeypatch, command, content
):
    monkeypatch.setattr(scales, "__file__", str(tmp_path / "bench" / "experiments" / "scales.py"))
    path = tmp_path / "results" / "gpu" / "sizes-gpu-smollm2.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode(errors="surrogateescape"))
    code, out, err = command("experiment", "timing", "--scale", "gpu-smollm2")
    assert code == 3 and err.startswith(f"bench: {path}: damaged: expected a JSON object")
    assert err.count("\n") == 1 and not out
    assert plans.jobs("timing", "laptop") and plans.jobs("timing", "gpu-gemma3")


def test_no_file_of_results_is_read_on_import():
    """What somebody's file there holds can end no command that does not ask for it."""
    watch = (
        "import sys\nopened = []\n"
        "sys.addaudithook(lambda event, given: event == 'open' and opened.append(str(given[0])))\n"
        "import bench.cli.commands, bench.experiments.plans, bench.runs.setup\n"
        "import bench.experiments.sweep\n"
        "print(*opened, sep='\\n')"
    )
    python = [sys.executable, "-c", watch]
    found = subprocess.run(python, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    inside = {Path(name).suffix for name in found.split() if name.startswith(f"{ROOT}/results/")}
    assert inside <= {".py", ".pyc"} and "plans" in found
