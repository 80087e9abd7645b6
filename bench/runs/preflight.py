"""What can be found wrong with a command before anything is loaded."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.config.method import MethodRequest, check_fits, load
from bench.config.spec import Spec, check_site
from bench.errors import Unavailable
from bench.loading import documents, hub, models, sae_sources


def check_inputs(spec: Spec, out: Path | None = None) -> None:
    """Raise what is wrong with the sources of the spec or the folder to write to."""
    models.check_source(spec.model, spec.weights)
    for sae in spec.saes:
        sae_sources.check_source(sae)
    documents.check_source(spec)
    if out:
        check_writable(out)


def check_model(spec: Spec, methods: Iterable[MethodRequest] = ()) -> tuple[Path, dict[str, Any]]:
    """(folder, config) of the model, once spec and methods are seen to fit it.

    Fetches and converts what is not in the cache: only for a process that nothing is forked from.
    """
    set_environment(online=asks_the_hub(spec))
    quiet_libraries()
    from bench import devices  # torch, which takes a second

    devices.check(spec.device)
    folder = fetch(spec)
    config = models.read_config(folder)
    models.check_config(config, spec)
    n_blocks = models.n_blocks(config)
    check_site(spec, n_blocks)
    for asked in methods:
        check_fits(load(asked), spec.sites, n_blocks)
    return folder, config


def fetch(spec: Spec) -> Path:
    """Bring what only the network has into the caches -> the model's folder."""
    folder = models.locate(spec.model, spec.weights)
    for sae in filter(sae_sources.from_hub, spec.saes):
        sae_sources.locate(sae)
    for text in _streamed(spec):
        documents.fetch(text, spec.stream_tokens)
    return folder


def _streamed(spec: Spec) -> list[str]:
    """The streamed ones among the sources of the spec's text."""
    return [one.text for one in documents.by_source(spec) if one.text in documents.STREAMS]


def asks_the_hub(spec: Spec) -> bool:
    """Whether a source of the spec is one that only the network has."""
    model = hub.is_id(spec.model) and spec.weights == "pretrained"
    saes = any(map(sae_sources.from_hub, spec.saes))
    return model or saes or bool(_streamed(spec))


def check_writable(out: Path) -> None:
    """Make the folder and write to it, or raise `Unavailable`: before anything is loaded."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write-probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise Unavailable(f"cannot write --out {out}: {error.strerror or error}") from None


def set_environment(online: bool = False) -> None:
    """What libraries read when they are imported: unless `online`, none may ask the hub."""
    if not online:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def quiet_libraries() -> None:
    """No warnings or progress bars from the libraries under this: ours are the ones to read."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # What it says of an SAE's model is compared with the setting (`sae_metadata`).
    warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty model_from_pretrained")
    # What a transcoder reads inside a norm makes the bridge compute that norm by itself.
    warnings.filterwarnings("ignore", message="A forward hook edited hook_scale/hook_normalized")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger().setLevel(logging.ERROR)
