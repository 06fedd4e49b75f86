"""train.sample_every: what a model says while it is trained, scored, and the same after an interruption."""

import json

import pytest

from rapo_jax.generate.answers import Request, answer_file
from rapo_jax.parallel import make_mesh
from rapo_jax.quickstart.world import judge
from rapo_jax.runs.trained import find_model
from tests import tiny
from tests.tiny import runs, write_rows

pytestmark = pytest.mark.slow
SAMPLES = ["train.sample_every=4", "train.sample_prompts=2", "train.sample_tokens=6"]
SCORED = [*SAMPLES, "train.sample_scorer=python:rapo_jax.quickstart.world:rewards"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def sampled(world, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("sampled") / "run"
    assert tiny.rapo(*world.train(run_dir, *SCORED)) == runs.DONE
    return run_dir


def test_answers_are_those_of_the_checkpoint_and_their_scores_are_metrics(sampled, tmp_path):
    """The second way: `rapo generate` of the same step, greedy, at the same goals."""
    rows = [row for row in lines(sampled / "samples.jsonl") if row["step"] == 8]
    assert [row["goal"] for row in rows] == [1.0, 5.5, 10.0] * 2 and len({row["prompt"] for row in rows}) == 2
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"], "goal": row["goal"]} for row in rows])
    request = Request(str(tmp_path / "prompts.jsonl"), str(tmp_path / "answers.jsonl"), max_new_tokens=6)
    answer_file(find_model(str(sampled), mesh=lambda: make_mesh(fsdp=-1), step=8), request)
    assert [row["response"] for row in lines(tmp_path / "answers.jsonl")] == [row["response"] for row in rows]
    assert [row["score"] for row in rows] == [judge(row["prompt"], row["response"]) for row in rows]
    metrics = lines(sampled / "metrics.jsonl")
    assert [each["step"] for each in metrics if "samples/control_error" in each] == [4, 8]
    error = sum(abs(row["score"] - row["goal"]) for row in rows) / len(rows)
    assert metrics[7]["samples/control_error"] == pytest.approx(error)
    assert metrics[7]["samples/tokens/goal_10"] == sum(row["tokens"] for row in rows if row["goal"] == 10) / 2


def test_tensorboard_shows_them(sampled):
    found = b"".join(path.read_bytes() for path in (sampled / "tensorboard").iterdir())
    assert b"samples/text_summary" in found and b"*goal 5.5, score" in found


def test_an_interrupted_run_has_the_answers_that_it_would_have_had(world, sampled, tmp_path):
    run_dir = tmp_path / "run"
    assert tiny.rapo_until(5, world.train(run_dir, *SCORED)) == runs.INTERRUPTED
    assert tiny.rapo(*world.train(run_dir, *SCORED)) == runs.DONE
    assert lines(run_dir / "samples.jsonl") == lines(sampled / "samples.jsonl")
    assert runs.metrics_of(run_dir) == runs.metrics_of(sampled)


def test_sampling_changes_nothing_that_is_trained(undisturbed, sampled):
    arrays, others = runs.arrays_of(undisturbed), runs.arrays_of(sampled)
    assert [name for name in arrays if arrays[name].tobytes() != others[name].tobytes()] == []


def test_adapters_answer_with_the_weights_below_them(world, tmp_path):
    more = [
        "lora.rank=2",
        "relabel.goals=[]",
        *SAMPLES,
        "train.max_steps=4",
        "train.sample_every=2",
        "train.log_every=4",
    ]
    assert tiny.rapo(*world.train(tmp_path / "run", *more)) == runs.DONE
    assert [(row["step"], row["goal"]) for row in lines(tmp_path / "run" / "samples.jsonl")] == [(2, None)] * 2 + [
        (4, None)
    ] * 2
    assert [row["step"] for row in lines(tmp_path / "run" / "metrics.jsonl")] == [2, 4], "what was sampled is written"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["train.sample_every=2", "data.eval_path="], "asks held-out prompts, and nothing is held out"),
        (["train.sample_scorer=python:m:f"], "scores the answers of train.sample_every, which is not set"),
        (
            ["train.sample_every=2", "train.sample_scorer=judge"],
            "is not one of python:MODULE:FUNCTION and command:PROGRAM",
        ),
        (["train.sample_every=2", "train.sample_scorer=python:no.module:f"], "cannot be imported"),
        (["train.sample_every=2", "mesh.context=2"], "and not on one with mesh.context=2"),
        (["train.sample_every=0"], "train.sample_every=0"),
    ],
)
def test_bad_input_is_one_sentence(more, message, world, tmp_path, capsys):
    assert tiny.rapo(*world.train(tmp_path / "run", *more)) == runs.USER_ERROR
    said = " ".join(capsys.readouterr().err.split())
    assert message in said and "Traceback" not in said
