"""lm-eval around a run's SAE: the same numbers as dense passes of plain models, one by one."""

import json
import random

import pytest
import torch

import bench
from bench.errors import Rejected, Unavailable, Usage
from bench.evals.downstream import downstream
from bench.export import reload
from tests.export.test_export import run_of
from tests.helpers import tiny
from tests.test_lora import spliced_logits

RULES = {"spliced": "not-first", "prepend_bos": "true"}
QUESTIONS = 12


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with a task of multiple choices and two that are refused, the data beside."""
    pytest.importorskip("lm_eval", reason="pip install -e '.[downstream]'")
    folder = tmp_path_factory.mktemp("tasks")
    draw = random.Random(0)

    def words(n):
        return " ".join("".join(draw.choices("abcdefgh", k=draw.randint(1, 5))) for _ in range(n))

    lines = [
        {
            "question": words(draw.randint(1, 4)),
            "choices": [words(draw.randint(1, 3)) for _ in range(4)],
            "answer": draw.randrange(4),
        }
        for _ in range(QUESTIONS)
    ]
    (folder / "docs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = f"""
dataset_path: json
dataset_kwargs:
  data_files: {{"validation": "{folder / "docs.jsonl"}"}}
  cache_dir: "{folder / "cache"}"
validation_split: validation
doc_to_text: "{{{{question}}}}"
metadata: {{version: 1.0}}
"""
    (folder / "choice.yaml").write_text(f"""task: tiny_choice
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
{common}""")
    (folder / "group.yaml").write_text("""group: tiny_group
task: [tiny_choice]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 1.0}
""")
    (folder / "writes.yaml").write_text(f"""task: tiny_writes
output_type: generate_until
doc_to_target: "{{{{choices[0]}}}}"
metric_list: [{{metric: exact_match}}]
{common}""")
    (folder / "broken.yaml").write_text(f"""task: tiny_broken
output_type: multiple_choice
{common.replace("docs.jsonl", "gone.jsonl")}""")
    return folder


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def made(request, tmp_path_factory, folder):
    """(family, a folder with a tiny model of it, where its run will lie)."""
    home = tmp_path_factory.mktemp("run")
    tiny.write_model(home / "model", request.param)
    return request.param, home


@pytest.fixture
def lora_run(made, small):
    """(family, the record of a run of `lora` on it), run once."""
    family, home = made
    if not list(home.glob("lora-*.jsonl")):
        arguments = ("--methods", "lora:lr=0.02", "--out", home)
        code, _, err = small("compare", *arguments, model=home / "model", **RULES)
        assert code == 0, err
    return family, run_of(home, "lora")


def documents(tasks):
    lines = (tasks / "docs.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def ids(text):
    return tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]


def dense_likelihood(logits_of, context, continuation, first=(1,)):
    """The log-likelihood of a continuation from the full logits of its own window."""
    tokens = [*first, *ids(context + continuation)]
    start = len(first) + len(ids(context))
    with torch.no_grad():
        log_p = logits_of(torch.tensor([tokens[:-1]]))[0].double().log_softmax(-1)
    return sum(log_p[at - 1, tokens[at]].item() for at in range(start, len(tokens)))


def dense_models(family, run):
    """Model -> function that gives whole logits, from the plain Hugging Face model where it can."""
    plain, problem = tiny.hf_model(family), reload.restore(run.path)[0]
    problem_again, adapted = reload.restore(run.path)
    bridge = problem_again.bridge

    def adapters_on(tokens):
        with problem_again.points.attached(adapted.hooks):
            return bridge(tokens, use_cache=False)

    loaded = bench.load(run.path)
    return {
        "clean": lambda tokens: plain(tokens).logits,
        "spliced": lambda tokens: spliced_logits(plain, family, problem.saes[0], tokens),
        "adapted": lambda tokens: loaded(tokens, use_cache=False),
        "without-sae": adapters_on,
    }


def test_scores_are_those_of_dense_passes(lora_run, tasks):
    family, run = lora_run
    record = downstream(run.path, ["tiny_choice"], include_path=tasks)
    models = dense_models(family, run)
    assert list(record["values"]) == list(models) == list(reload.MODELS)
    for which, logits_of in models.items():
        right = {"acc": [], "acc_norm": []}
        for line in documents(tasks):
            choices = line["choices"]
            found = [dense_likelihood(logits_of, line["question"], " " + c) for c in choices]
            by_length = [one / len(c) for one, c in zip(found, choices, strict=True)]
            for metric, values in (("acc", found), ("acc_norm", by_length)):
                right[metric].append(values.index(max(values)) == line["answer"])
        told = record["values"][which]["tiny_choice"]
        for metric, values in right.items():
            share = sum(values) / len(values)
            assert told[metric] == pytest.approx(share), (which, metric)
            error = (share * (1 - share) / (len(values) - 1)) ** 0.5
            assert told[f"{metric}_stderr"] == pytest.approx(error), (which, metric)
        assert told["n"] == QUESTIONS
    kept = json.loads(next(run.path.parent.glob("downstream-*.json")).read_text())
    assert kept == record and kept["of"] == run.name and kept["measure"] == "downstream"
    assert kept["spec"] == run.header["spec"] and kept["tasks"] == ["tiny_choice"]


def test_likelihoods_are_dense_ones_to_1e_4(lora_run, tasks):
    from lm_eval.api.instance import Instance

    from bench.evals.likelihood import WindowLM

    family, run = lora_run
    problem, adapted = reload.restore(run.path)
    pairs = [("ab cd", " e"), ("ab cd", " f"), ("a", "b"), ("", "hello"), ("ab cd efg", " h a.")]
    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    texts = ["", "a", "a longer text, with commas", "abc " * 20]
    rolling = [Instance("loglikelihood_rolling", {}, (t,), n) for n, t in enumerate(texts)]
    for which, logits_of in dense_models(family, run).items():
        with reload.placed(problem, adapted, which):
            lm = WindowLM(problem, tiny.tokenizer(), prepend_bos=True)
            found = lm.loglikelihood(requests)
            whole = lm.loglikelihood_rolling(rolling)
        for (context, continuation), (likelihood, greedy) in zip(pairs, found, strict=True):
            expected = dense_likelihood(logits_of, context, continuation)
            assert likelihood == pytest.approx(expected, abs=1e-4), (which, continuation)
            assert isinstance(greedy, bool)
        for text, likelihood in zip(texts, whole, strict=True):
            if len(text) < 31:  # one window
                expected = dense_likelihood(logits_of, "", text) if text else 0
                assert likelihood == pytest.approx(expected, abs=1e-4), (which, text)
        assert lm.truncated == 0


def test_a_long_context_loses_its_beginning_and_keeps_the_bos(lora_run, tasks):
    from lm_eval.api.instance import Instance

    from bench.evals.likelihood import WindowLM

    family, run = lora_run
    if family != "gpt2":  # whose context is 32 tokens
        pytest.skip("the tiny Llama's context is longer than any test's text")
    problem, adapted = reload.restore(run.path)
    context, continuation = "abcdefgh" * 6, "cab"
    request = Instance("loglikelihood", {}, (context, continuation), 0)
    with reload.placed(problem, adapted, "spliced"):
        lm = WindowLM(problem, tiny.tokenizer(), prepend_bos=True)
        ((likelihood, _),) = lm.loglikelihood([request])
    logits_of = dense_models(family, run)["spliced"]
    kept = context[-(31 - 2) :]  # a BOS, and the continuation's last token is not passed
    assert likelihood == pytest.approx(dense_likelihood(logits_of, kept, continuation), abs=1e-4)
    assert lm.truncated == 1
    long = Instance("loglikelihood", {}, ("a", "b" * 40), 0)
    with pytest.raises(Rejected, match="a continuation of 40 tokens"):
        lm.loglikelihood([long])


def test_what_is_refused(lora_run, tasks, monkeypatch, tmp_path):
    import huggingface_hub

    _, run = lora_run
    wrong = [
        (Usage, {"tasks": ["tiny_choise"]}, "unknown task 'tiny_choise': did you mean 'tiny_choi"),
        (Usage, {"tasks": ["tiny_writes"]}, "'tiny_writes' generates text"),
        (Usage, {"tasks": []}, "--tasks is empty"),
        (Usage, {"tasks": ["tiny_choice"], "limit": 0}, "--limit must be at least 1, got 0"),
        (Usage, {"tasks": ["x"], "include_path": tmp_path / "no"}, "expected a folder of lm-eval"),
        (Unavailable, {"tasks": ["tiny_broken"]}, "'tiny_broken' cannot be loaded"),
    ]
    for fault, settings, message in wrong:
        with pytest.raises(fault, match=message) as raised:
            downstream(run.path, **{"include_path": tasks, **settings})
        assert "\n" not in str(raised.value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "bench.loading.hub._ask", lambda *given: (_ for _ in ()).throw(OSError("no route"))
    )
    monkeypatch.setattr("bench.loading.hub._in_cache", lambda *given: False)
    with pytest.raises(Unavailable, match="the data of the task 'hellaswag': cannot reach the hub"):
        downstream(run.path, ["hellaswag"], include_path=tasks)


def test_without_lm_eval(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"pip install -e '\.\[downstream\]'"):
        downstream("any")


def test_a_group_a_limit_and_a_place_for_the_record(lora_run, tasks, tmp_path):
    _, run = lora_run
    path = tmp_path / "told.json"
    record = downstream(run.path, ["tiny_group"], limit=3, to=path, include_path=tasks)
    assert record["limit"] == 3 and record["tasks"] == ["tiny_group"]
    for values in record["values"].values():
        assert values["tiny_group"]["n"] == values["tiny_choice"]["n"] == 3
        assert values["tiny_group"]["acc"] == values["tiny_choice"]["acc"]
    assert json.loads(path.read_text()) == record
