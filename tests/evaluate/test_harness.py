"""Academic tasks: what the adapter computes is what transformers computes, on any mesh; and, where lm-evaluation-harness is installed,
what its own backend for transformers says of the same tasks."""

import json
import os
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers

from rapo_jax.evaluate.harness.scoring import Continued, TokenScorer
from rapo_jax.generate.batches import BatchLimits
from rapo_jax.opened import open_model
from rapo_jax.parallel import make_mesh
from tests import tiny
from tests.opened.exports import as_export

LENGTHS = [(1, 1), (5, 3), (60, 9), (3, 150), (130, 20), (40, 40), (2, 8), (70, 1), (1, 130)]  # context, continuation


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    return as_export(tiny.write_model(directory / "model"), directory / "exported")


def by_transformers(directory, asked):
    """(log-probability, whether each token is the likeliest), one text at a time."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    found = []
    for context, continuation in asked:
        with torch.no_grad():
            logits = model(torch.tensor([[*context, *continuation]])).logits[0, len(context) - 1 : -1]
        logps = logits.log_softmax(-1)[range(len(continuation)), continuation]
        found.append((float(logps.sum()), logits.argmax(-1).tolist() == list(continuation)))
    return found


@pytest.mark.slow
def test_continuations_are_as_likely_as_transformers_says_on_one_device_and_on_eight(exported):
    """When this fails, every multiple-choice task is scored by another text than the model was asked."""
    random, model = np.random.default_rng(0), open_model(exported, mesh=make_mesh(devices=jax.devices()[:1]))
    asked = [
        Continued(random.integers(4, 80, before).tolist(), random.integers(4, 80, after).tolist())
        for before, after in LENGTHS
    ]
    asked.append(greedy := Continued([5, 6, 7], greedy_answer(exported, [5, 6, 7])))
    asked.append(Continued([5, 6, 7], [*greedy.continuation[:-1], (greedy.continuation[-1] + 1) % 80]))
    expected = by_transformers(exported, asked)
    assert [is_greedy for _, is_greedy in expected[-2:]] == [True, False]
    scorer = TokenScorer.of(model, BatchLimits(4, 600))
    one = dict(scorer.likelihoods(asked))
    np.testing.assert_allclose([one[n].logp for n in range(len(asked))], [logp for logp, _ in expected], atol=1e-4)
    assert [one[n].is_greedy for n in range(len(asked))] == [is_greedy for _, is_greedy in expected]
    sharded = open_model(exported, mesh=make_mesh(data=2, fsdp=2, tensor=2))
    eight = dict(TokenScorer.of(sharded, BatchLimits(8, 4096)).likelihoods(asked))
    np.testing.assert_allclose([eight[n].logp for n in one], [one[n].logp for n in one], atol=1e-4)
    assert [eight[n].is_greedy for n in one] == [one[n].is_greedy for n in one]


def greedy_answer(directory, context):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokens = list(context)
    for _ in range(6):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(context) :]


def test_without_the_harness_there_is_a_sentence(monkeypatch):
    """When this fails, somebody without the extra meets a traceback."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr(sys, "argv", ["rapo_jax.evaluate.harness", "run", "--model", "rapo"])
    with pytest.raises(SystemExit, match=r"lm_eval is not installed: pip install 'rapo_jax\[lm_eval\]'\."):
        runpy.run_module("rapo_jax.evaluate.harness", run_name="__main__")


# With the harness.

ROWS = [
    {"q": f"What is {n} plus {m}?", "choices": [str(n + m), f"{n * m} or so", " why"], "gold": n % 3}
    | {"text": f"Number {n} and then {m}. " * (1 + 5 * (n % 3))}
    for n in range(3)
    for m in (1, 7)
]
COMMON = {"dataset_path": "json", "test_split": "test", "doc_to_text": "Question: {{q}}\nAnswer:"}
TASKS = {
    "our_choice": {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
    | {"num_fewshot": 1, "fewshot_split": "test", "metric_list": [{"metric": "acc"}]},
    "our_text": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text"}
    | {"metric_list": [{"metric": "word_perplexity"}]},
    "our_answer": {"output_type": "generate_until", "doc_to_target": "q", "metric_list": [{"metric": "exact_match"}]}
    | {"generation_kwargs": {"until": ["!", "zz"], "max_gen_toks": 12, "do_sample": False}},
}
RUN = """
import json, sys
import lm_eval, lm_eval.tasks
from lm_eval.tasks import TaskManager
backend, given, names, chat, tasks, out = json.loads(sys.argv[1])
if backend == "rapo":
    import rapo_jax.evaluate.harness.model
found = lm_eval.simple_evaluate(
    model=backend, model_args=given, tasks=names, apply_chat_template=chat, fewshot_as_multiturn=chat, batch_size=4,
    device="cpu" if backend == "hf" else None, task_manager=TaskManager(include_path=tasks), log_samples=True,
)
samples = {name: [(list(s["arguments"]), s["resps"]) for s in rows] for name, rows in found["samples"].items()}
open(out, "w").write(json.dumps(samples, default=str))
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tasks")
    tiny.write_rows(directory / "rows.jsonl", ROWS)
    data = {"dataset_kwargs": {"data_files": {"test": str(directory / "rows.jsonl")}}}
    for name, task in TASKS.items():
        (directory / f"{name}.yaml").write_text(json.dumps(COMMON | data | task | {"task": name}))
    return directory


def asked_by_harness(directory, tasks, out, *, backend, names, chat, **given):
    """What the harness asked and got, in a process of its own: it changes the seeds and the logging of its process."""
    path = {"rapo": "path", "hf": "pretrained"}[backend]
    options = json.dumps([backend, {path: str(directory)} | given, names, chat, str(tasks), str(out)])
    # Ours runs where torch cannot be imported (tests/conftest.py).
    theirs = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = dict(os.environ) if backend == "rapo" else theirs
    ran = subprocess.run([sys.executable, "-c", RUN, options], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
def test_every_kind_of_task_gets_the_numbers_of_the_harnesss_own_backend(exported, tasks, tmp_path, chat):
    """When this fails, scores cannot be compared with anybody's. The export asks for its highest goal by itself."""
    for package in ("lm_eval", "accelerate"):
        pytest.importorskip(package)
    names = ["our_choice", "our_answer"] + ["our_text"] * (not chat)
    both = [
        asked_by_harness(exported, tasks, tmp_path / backend, backend=backend, names=names, chat=chat, max_length=64)
        for backend in ("rapo", "hf")
    ]
    for name in names:
        ours, theirs = both[0][name], both[1][name]
        assert [arguments for arguments, _ in ours] == [arguments for arguments, _ in theirs]
        for (_, mine), (_, other) in zip(ours, theirs, strict=True):
            if name == "our_answer":
                assert mine == other
                continue
            for (a,), (b,) in zip(mine, other, strict=True):
                pairs = [(a, b)] if name == "our_text" else [(a[0], b[0])]
                assert all(abs(float(x) - float(y)) < 1e-3 for x, y in pairs)
                assert name == "our_text" or a[1] == b[1]


@pytest.mark.slow
def test_a_goal_is_asked_for_in_its_place_or_refused_where_nothing_writes_it(exported, tasks, tmp_path):
    """When this fails, a sweep over goals on academic tasks asks the same prompt each time."""
    pytest.importorskip("lm_eval")
    given = {"backend": "rapo", "names": ["our_choice"]}
    asked = asked_by_harness(exported, tasks, tmp_path / "a", chat=True, goal=2, **given)["our_choice"]
    prompts = [json.dumps(arguments) for arguments, _ in asked]
    assert all(
        prompt.count("Overall score: 2") == 3 for prompt in prompts
    )  # once in the prompt of each of three choices
    with pytest.raises(AssertionError, match="goal=2 is written through the chat template, which is not in use; add"):
        asked_by_harness(exported, tasks, tmp_path / "b", chat=False, goal=2, **given)
