"""`rapo round`: the policy's own responses, sampled, scored, trained on, again and again, whatever stops it in between."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file as weights_of

from rapo_jax.config.files import load_config, to_yaml
from rapo_jax.config.tree import Relabel
from rapo_jax.errors import Interrupted
from rapo_jax.evaluate.bootstrap import Estimate
from rapo_jax.rounds import rounds as stages
from rapo_jax.rounds.judging import judged, rank_correlations
from rapo_jax.rounds.places import Place, Sampled
from rapo_jax.rounds.rounds import Start, goals_of_samples, run_rounds
from rapo_jax.rounds.sampling import by_prompt, spread
from rapo_jax.rounds.summary import Row, table
from tests import tiny
from tests.tiny.command_line import rapo

SETTINGS = """
model: {dtype: float32, remat: none}
data: {max_length: 256, max_prompt_length: 192}
objective: {beta: 0.1}
optimizer: {learning_rate: 1e-3}
train: {batch_size: 4, max_steps: 2}
rounds: {num_samples: 3, temperature: 1.0, top_p: 1.0, max_new_tokens: 6, eval_fraction: 0.3, num_rounds: 2}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with a model, prompts (one of them twice) and settings."""
    at = tmp_path_factory.mktemp("rounds")
    tiny.write_model(at / "model")
    prompts = [{"prompt": row["prompt"], "id": number} for number, row in enumerate([*tiny.PAIRS, tiny.PAIRS[0]])]
    tiny.write_rows(at / "prompts.jsonl", prompts)
    (at / "settings.yaml").write_text(SETTINGS)
    return at


def arguments(place: Path, run_dir: Path, *more: str) -> list[str]:
    paths = [f"model.path={place / 'model'}", f"rounds.prompts={place / 'prompts.jsonl'}", f"run_dir={run_dir}"]
    return [str(place / "settings.yaml"), *paths, "rounds.scorer=python:tests.rounds.scorers:length", *more]


def run(place: Path, run_dir: Path, *more: str) -> list[Row]:
    settings, *overrides = arguments(place, run_dir, *more)
    return run_rounds(load_config(settings, overrides))


@pytest.fixture(scope="module")
def undisturbed(place) -> tuple[Path, list[Row]]:
    return place / "undisturbed", run(place, place / "undisturbed")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_round_trains_on_what_its_model_said_and_the_next_begins_from_there(undisturbed):
    """When this fails, a round learns from the responses of another model, or from scores of other responses."""
    run_dir, rows = undisturbed
    prompts, held_out = lines(run_dir / "prompts.jsonl"), lines(run_dir / "eval_prompts.jsonl")
    said = [row["prompt"][0]["content"] for row in (*prompts, *held_out)]
    assert sorted(said) == sorted({row["prompt"] for row in tiny.PAIRS}) and prompts and held_out
    for number in (1, 2):
        at = Place(run_dir, number)
        samples, responses, scores = (
            lines(path) for path in (at.sampled.samples, at.sampled.responses, at.sampled.scores)
        )
        assert [row["response"] for row in samples] == [text for row in responses for text in row["responses"]]
        assert {row["goal"] for row in samples} == {None}
        lengths = [
            [1.0 + (len(t) * 7 + len(r["prompt"][0]["content"])) % 10 * 0.9 for t in r["responses"]] for r in responses
        ]
        assert [row["rewards"] for row in scores] == lengths
        trained = load_config(at.run / "config.yaml")
        assert trained.model.path == str(run_dir / "round-1" / "model" if number == 2 else run_dir.parent / "model")
        assert (trained.data.path, trained.data.rewards) == (str(at.sampled.responses), str(at.sampled.scores))
        assert (at.model / "rapo.json").is_file()
    assert lines(Place(run_dir, 1).sampled.samples) != lines(Place(run_dir, 2).sampled.samples)
    assert (
        [row.number for row in rows] == [0, 1, 2]
        and rows[0].judged.goals == ()
        and rows[2].judged.goals == (1.0, 5.5, 10.0)
    )
    assert rows[2].judged == judged(rows[2].judged.goals, Place(run_dir, 2))
    assert len(json.loads((run_dir / "rounds.json").read_text())) == 3


@pytest.mark.slow
def test_rounds_that_are_stopped_in_every_stage_end_like_undisturbed_ones(place, undisturbed, monkeypatch):
    """When this fails, a preemption changes what is trained, or something is sampled, scored or trained again."""
    again = place / "again"
    done: list[tuple] = []

    def stopping(name: str, *, after: bool):
        original = getattr(stages, name)

        def stopped(*values, **named):
            where = name, *(value for value in values if isinstance(value, Path | Place | Sampled)), len(values) == 1
            result = original(*values, **named) if after or where in done else None
            if where not in done:
                done.append(where)
                raise Interrupted(f"stopped in {name}")
            return result

        monkeypatch.setattr(stages, name, stopped)

    for name, after in {
        "sample": True,
        "score": False,
        "train_or_resume": True,
        "export_run": False,
        "judge": True,
    }.items():
        stopping(name, after=after)
    rows = None
    for _ in range(30):
        try:
            rows = run(place, again)
            break
        except Interrupted:
            continue
    assert rows == undisturbed[1] and len(done) == 3 * 2 + 1 + 3  # sample, score, export; training once; judging
    for number in (1, 2):
        one, other = Place(again, number), Place(undisturbed[0], number)
        for name in ("sampled.samples", "sampled.scores", "answered.samples"):
            room, file = name.split(".")
            assert getattr(getattr(one, room), file).read_bytes() == getattr(getattr(other, room), file).read_bytes()
        assert (one.model / "model.safetensors").read_bytes() == (other.model / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_what_another_machine_sampled_and_scored_is_trained_on(place, undisturbed, tmp_path):
    """When this fails, stages that were run by hand are run again, or every round has the reference of the first."""
    more = ["rounds.num_rounds=1", f"reference.cache={tmp_path / 'cache'}", f"train.checkpoints={tmp_path / 'saves'}"]
    settings, *overrides = arguments(place, tmp_path / "run", *more)
    theirs, ours = Place(undisturbed[0], 1).sampled, Place(tmp_path / "run", 1).sampled
    ours.directory.mkdir(parents=True)
    (tmp_path / "run" / "rounds.yaml").write_text(to_yaml(load_config(settings, overrides)))
    for name in ("responses", "scores"):
        getattr(ours, name).write_bytes(getattr(theirs, name).read_bytes())
    run(place, tmp_path / "run", *more)
    assert not ours.samples.exists()
    one, other = (Place(at, 1).model / "model.safetensors" for at in (tmp_path / "run", undisturbed[0]))
    assert weights_of(one).keys() == weights_of(other).keys()
    for tensor, expected in weights_of(other).items():  # a reference that is read differs from one computed by rounding
        np.testing.assert_allclose(weights_of(one)[tensor], expected, atol=1e-6, err_msg=tensor)
    named = [name for at in ("cache", "saves") for name in (tmp_path / at).iterdir() if name.is_dir()]
    assert [each.name for each in named] == ["round-1"] * 2


@pytest.mark.slow
def test_more_rounds_go_on_and_other_settings_are_refused(place, undisturbed, capsys):
    """When this fails, a longer run begins anew, or rounds of two settings stand in one directory."""
    run_dir, rows = undisturbed
    before = (run_dir / "round-2" / "model" / "model.safetensors").stat().st_mtime_ns
    assert run(place, run_dir) == rows
    assert (run_dir / "round-2" / "model" / "model.safetensors").stat().st_mtime_ns == before
    capsys.readouterr()
    assert rapo("round", *arguments(place, run_dir, "optimizer.learning_rate=2e-3")) == 2
    assert "optimizer.learning_rate (0.001 -> 0.002)" in " ".join(capsys.readouterr().err.split())
    assert rapo("round", *arguments(place, run_dir, "rounds.num_samples=4")) == 2
    assert "rounds.num_samples (3 -> 4)" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["rounds.scorer="], "rounds.scorer is not set"),
        (["rounds.scorer=python:tests.rounds.scorers:missing"], "missing is not in"),
        (["rounds.scorer=reward_model"], "rounds.scorer_model=DIR go together"),
        (["rounds.scorer=judge"], "run the stages by hand"),
        (["data.path=x.jsonl"], "data.path=x.jsonl is what a round makes itself"),
        (["rounds.prompts="], "rounds.prompts is not set"),
        (["rounds.prompts=missing.jsonl"], "missing.jsonl"),
        (["rounds.eval_fraction=0.001"], "leaves none of"),
        (["rounds.num_samples=1"], "rounds.num_samples=1"),
        (["relabel.goal_kind=directions", "relabel.attributes=[a, b]"], "no single one"),
        (["model.path=missing"], "missing"),
    ],
)
def test_what_cannot_be_begun_is_refused_in_a_sentence(place, tmp_path, capsys, overrides, sentence):
    """When this fails, a mistake is found after hours of sampling, or as a traceback."""
    assert rapo("round", *arguments(place, tmp_path / "run", *overrides)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert sentence in said and "Traceback" not in said
    assert not list(tmp_path.rglob("samples.jsonl*"))


def test_samples_are_asked_for_no_goal_until_the_model_knows_one(place):
    """When this fails, the paper's recipe is not followed, or a plain model is asked for scores that it never heard of."""
    settings, *overrides = arguments(place, place / "nowhere")
    config = load_config(settings, [*overrides, "rounds.goal=spread"])
    plain, knows = Start("DIR", False, False), Start("DIR", True, True)
    assert goals_of_samples(config, plain) == {"goals": (None,), "num_samples": 3}
    assert goals_of_samples(config, knows) == {"goals": (1.0, 5.5, 10.0), "num_samples": 1}
    highest = dataclasses.replace(config, rounds=dataclasses.replace(config.rounds, goal="highest"))
    assert goals_of_samples(highest, knows) == {"goals": (10.0,), "num_samples": 3}
    assert spread(Relabel(goal_min=0.0, goal_max=5.0), 1) == (5.0,)


def test_responses_are_gathered_by_prompt_and_judged_by_goal(tmp_path):
    """When this fails, a score stands beside another prompt's response, or the mean is not that of the highest goal."""
    at = Place(tmp_path, 1)
    at.answered.directory.mkdir(parents=True)
    prompts, goals = ["one", "two", "three"], (1.0, 10.0)
    rows = [
        {
            "prompt": prompt,
            "response": f"{prompt} {goal:g}",
            "goal": goal,
            "num_tokens": 4 * goal,
            "finish_reason": reason,
        }
        for prompt in prompts
        for goal, reason in zip(goals, ("stop", "length"), strict=True)
    ]
    at.answered.samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(by_prompt(at.answered.samples, 2)) == [
        {"prompt": prompt, "responses": [f"{prompt} 1", f"{prompt} 10"]} for prompt in prompts
    ]
    scores = [[1.0, 9.0], [5.0, 3.0], [4.0, 4.0]]
    at.answered.scores.write_text(
        "".join(json.dumps({"row": n + 1, "rewards": s}) + "\n" for n, s in enumerate(scores))
    )
    found = judged(goals, at)
    assert (found.score.value, found.by_goal) == (pytest.approx(16 / 3), pytest.approx((10 / 3, 16 / 3)))
    assert found.follows is not None and (found.follows.value, found.follows.n) == (
        0.0,
        2,
    )  # +1, -1, and one without a rank
    assert found.error is not None and found.error.value == pytest.approx((0.5 + 5.5 + 4.5) / 3)
    assert (found.tokens, found.cut) == (40.0, 0.5)


def test_rank_correlations_are_those_of_scipy():
    """When this fails, how well a model follows goals is not Spearman's rho."""
    from scipy.stats import spearmanr

    scores = np.random.default_rng(0).integers(1, 6, (20, 5)).astype(float)
    expected = [spearmanr(range(5), row).statistic for row in scores]
    np.testing.assert_allclose(rank_correlations(scores), expected, atol=1e-12)


def test_the_table_fits_a_terminal_and_says_what_is_not_known():
    """When this fails, the table breaks in the middle of its lines."""
    estimate = Estimate(5.25, 4.75, 5.75, 64)
    judged_ = [((), None, None), ((1.0, 10.0), estimate, estimate)]
    rows = [
        Row(number, stages.Judged(goals, estimate, (5.0,), follows, error, 123.0, 0.25), ties=0.5 if number else None)
        for number, (goals, follows, error) in enumerate(judged_)
    ]
    text = table(rows)
    assert max(map(len, text.splitlines())) <= 80 and "5.25 [4.75, 5.75]" in text and "+5.25 [+4.75, +5.75]" in text


@pytest.mark.slow
def test_answers_that_are_empty_or_alike_are_judged_and_trained_around(place, tmp_path, monkeypatch):
    """When this fails, a model that says nothing, or the same at every goal, ends the rounds or raises their mean."""
    from rapo_jax.generate import answers

    written = answers.answer_rows

    def hollow(job, store, **named):
        """The first prompt has only empty answers, the second twice the same one."""
        rows = written(job, store, **named)
        texts = dict(enumerate(["", "", "", "alike", "alike", "other"]))
        return [row | {"response": texts.get(number, row["response"])} for number, row in enumerate(rows)]

    monkeypatch.setattr(answers, "answer_rows", hollow)
    rows = run(place, tmp_path / "run", "rounds.num_rounds=1")
    at = Place(tmp_path / "run", 1)
    assert [len(row["rewards"]) for row in lines(at.answered.scores)] == [3] * rows[1].judged.score.n
    assert [len(row["rewards"]) for row in lines(at.sampled.scores)][:2] == [
        2,
        3,
    ]  # of the first prompt nothing is left
    assert rows[1].judged.score.n == len(lines(tmp_path / "run" / "eval_prompts.jsonl"))
