"""The hub: one try, a clear answer within seconds, and what its cache must do without it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from bench.errors import Rejected, Unavailable, Usage
from bench.loading import hub
from tests.helpers import tiny

ROOT = Path(__file__).parents[2]
JB = "gpt2-small-res-jb:blocks.8.hook_resid_pre"
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "", "HF_HUB_OFFLINE": "0"}

pytestmark = pytest.mark.runs


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--spec", "gpt2-small"], {}, "cannot reach the hub for 'openai-community/gpt2'"),
        (["--spec", "gemma-2-2b"], {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set and"),
        (["--text", "pile-uncopyrighted"], {}, "cannot reach the hub for 'monology/pile"),
        (["--sae", "sparsify:a/b:layers.3"], {}, "cannot reach the hub for 'a/b'"),
        (["--sae", f"saelens:{JB}"], {}, "cannot reach the hub for 'jbloom/GPT2-Small-SAEs"),
    ],
)
def test_no_hub_is_said_at_once(arguments, environment, message, tmp_path):
    tiny.write_model(tmp_path / "model")
    if "--spec" not in arguments:
        arguments = [*arguments, "--model", str(tmp_path / "model")]
    command = [sys.executable, "-m", "bench", "compare", "--out", str(tmp_path / "o"), *arguments]
    cache = {"HF_HOME": str(tmp_path / "hf"), "SPLICEBENCH_CACHE": str(tmp_path / "cache")}
    environment = {**os.environ, **NO_HUB, **cache, **environment}
    settings = {"capture_output": True, "text": True, "cwd": ROOT, "env": environment}
    done = subprocess.run(command, **settings, timeout=30)
    assert done.returncode == 4, done.stderr
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_gated_and_missing_repositories(online, monkeypatch):
    import httpx2 as httpx

    def refusing(error):
        def repo_info(self, *args, **kwargs):
            request = httpx.Request("GET", "https://hub")
            raise error("no", response=httpx.Response(403, request=request))

        return repo_info

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refusing(GatedRepoError))
    with pytest.raises(Unavailable, match="licence at https://huggingface.co/a/b and set HF_TOKEN"):
        hub.reach("a/b")
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refusing(RepositoryNotFoundError))
    with pytest.raises(Usage, match="'a/b': neither a folder here nor a model that the hub shows"):
        hub.reach("a/b")


def test_a_part_of_a_repository_in_the_cache(online, monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **b: str(tmp_path))
    for there, fault in ((False, Unavailable), (True, Rejected)):
        monkeypatch.setattr(hub, "reach", lambda name, kind="model", there=there: there)
        assert hub.fetch("a/b", ["*"], ["config.json"]) == tmp_path
        with pytest.raises(fault, match=r"no \*.safetensors"):
            hub.fetch("a/b", ["*"], ["config.json", "*.safetensors"])


def test_a_hub_that_takes_the_call_and_never_answers(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code = "from bench.loading import hub; hub.reach('a/b')"
        places = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **places},
            timeout=30,
        )
    assert "Unavailable: cannot reach the hub for 'a/b' (" in done.stderr


def test_what_may_be_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_id("google/gemma-2-2b")
    (tmp_path / "models").mkdir()
    assert hub.is_id("models/nope")  # there is none, so it may be on the hub
    (tmp_path / "models" / "mine").mkdir()
    for path in ("models/mine", "./a/b", "/a/b", "gpt2", "a/b/c", "../a"):
        assert not hub.is_id(path)
