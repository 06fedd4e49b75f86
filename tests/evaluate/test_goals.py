"""`rapo evaluate --suite goals` on tiny models: what is asked, what is kept, and what is refused."""

import json
from pathlib import Path

import pytest

from rapo_jax.borders import read_json_lines, write_json_lines
from rapo_jax.errors import Interrupted
from rapo_jax.evaluate.goals import sampling
from rapo_jax.evaluate.goals.sampling import Part, missing
from rapo_jax.relabel import goal_text
from tests.evaluate import scorers
from tests.opened.exports import as_export
from tests.servers.reached import Reached
from tests.servers.sampler import completion, listing
from tests.tiny import PAIRS, RUN, rapo, write_model, write_rows

VOWELS = "python:tests.evaluate.scorers:vowels"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base, a model that knows goals from 0 to 5, three prompts (one of them twice), and a configuration with pairs."""
    at = tmp_path_factory.mktemp("goals")
    write_model(at / "base")
    as_export(at / "base", at / "model")
    write_rows(at / "prompts.jsonl", [{"prompt": row["prompt"]} for row in (*PAIRS[:3], PAIRS[0])])
    write_rows(at / "pairs.jsonl", PAIRS)
    (at / "config.yaml").write_text(RUN.replace("data: {", f"data: {{path: {at / 'pairs.jsonl'}, "))
    return at


def evaluate(place: Path, out: Path, *more: object, scorer: str = VOWELS, prompts: str = "prompts.jsonl") -> int:
    words = ["--suite", "goals", "--scorer", scorer, "--prompts", place / prompts, "--max-new-tokens", "3"]
    return rapo("evaluate", *words, "--out", out, *more)


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())["goals"]


def rows(path: Path) -> list[dict]:
    return [row for _, row in read_json_lines(path)]


@pytest.fixture
def engine(monkeypatch):
    """In place of sampling, answers that say what was asked; the requests that were made."""
    requests = []

    def answer_file(model, request):
        requests.append(request)
        asked = [row for _, row in read_json_lines(Path(request.prompts))]
        answers = [
            row
            | {"response": f"{row['asked_goal']} {row['prompt'][-1]['content'][-12:]} {request.seed} {number}"}
            | {"num_tokens": 3 + number, "finish_reason": "stop", "sample": number}
            for row in asked
            for number in range(request.num_samples)
        ]
        write_json_lines(Path(request.out), answers)
        return "done"

    monkeypatch.setattr(sampling, "answer_file", answer_file)
    scorers.CALLS.clear()
    return requests


@pytest.mark.slow
def test_a_model_is_asked_sampled_scored_measured_and_shown(place, tmp_path, capsys):
    """The whole way, greedy: a model that knows goals, its base, the report with the slider."""
    out = tmp_path / "out"
    words = [place / "model", "--base", place / "base", "--goals", "1,5", "--temperature", "0", "--scale", "goals"]
    assert evaluate(place, out, *words) == 0
    assert "score less goal, mean absolute (points)" in capsys.readouterr().out
    found = results(out)
    models = {m["model"] for m in found["measures"]}
    assert models == {"model", "base", "base, goal in the prompt"}
    assert {m["n"] for m in found["measures"]} == {3}, "a prompt that was given twice is asked once"
    assert any(m["quantity"].startswith("attribute") and m["where"] == "length" for m in found["measures"])
    by_model = {}
    for row in rows(out / "answers.jsonl"):
        by_model.setdefault(row["model"], {})[row["prompt"][-1]["content"], row["goal"]] = row
    # The export has the weights of its base: asked for nothing, or in the same words, both say the same.
    for (prompt, goal), row in by_model["model"].items():
        other = by_model["base" if goal is None else "base, goal in the prompt"]
        assert other[prompt, goal]["response"] == row["response"]
        score = scorers.vowels([None], [[row["response"]]])[0][0][0]
        assert row["score"] == pytest.approx(score)
    assert (out / "goals.png").stat().st_size > 5000
    assert rapo("report", out, "-o", tmp_path / "report.html") == 0
    page = (tmp_path / "report.html").read_text()
    assert "1 evaluation, 18 answers" in capsys.readouterr().out
    assert 'id="goal"' in page and "rank correlation of goal and score" in page


def test_nothing_is_sampled_or_scored_twice(place, tmp_path, engine):
    """When this fails, a further goal or a second scorer costs the whole evaluation again."""
    out, words = tmp_path / "out", [place / "model", "--goals", "1,5", "--best-of", "2"]
    assert evaluate(place, out, *words) == 0
    assert [(r.num_samples, r.no_goal) for r in engine] == [(1, False), (2, True)]
    asked = rows(Path(engine[0].prompts))
    assert [row["goal"] for row in asked] == [1.0] * 3 + [5.0] * 3 and "goal" not in rows(Path(engine[1].prompts))[0]
    assert sum(scorers.CALLS) == 3 * (2 + 2)
    before = results(out)

    assert evaluate(place, out, *words) == 0
    assert len(engine) == 2 and sum(scorers.CALLS) == 12 and results(out) == before

    more = [place / "model", "--goals", "1,3,5", "--best-of", "3", "--num-samples", "2", "--scorer"]
    assert evaluate(place, out, *more, "python:tests.evaluate.scorers:length") == 0
    parts = [(len(rows(Path(r.prompts))), r.num_samples, r.no_goal) for r in engine[2:]]
    assert parts == [(6, 1, False), (3, 2, False), (3, 1, True)], (
        "one more at 1 and 5, two at 3, one more without a goal"
    )
    assert len({r.seed for r in engine}) == 4, "further samples have other random numbers"
    assert sum(scorers.CALLS) == 3 * (3 * 2 + 3)
    quantities = {m["quantity"] for m in results(out)["measures"]}
    assert any(quantity.startswith("agreement of python") for quantity in quantities)


def test_an_interrupted_command_goes_on(place, tmp_path, engine, monkeypatch, capsys):
    out, words = tmp_path / "out", [place / "model", "--goals", "1,5", "--base", place / "base"]
    whole = sampling.answer_file

    def stops(model, request):
        if len(engine) == 2:
            raise Interrupted("3 of 6 answers are kept")
        return whole(model, request)

    monkeypatch.setattr(sampling, "answer_file", stops)
    assert evaluate(place, out, *words) == 75
    assert not (out / "results.json").exists()
    monkeypatch.setattr(sampling, "answer_file", whole)
    assert evaluate(place, out, *words, scorer="python:tests.evaluate.scorers:failing") == 2
    assert "no scores today" in capsys.readouterr().err and len(engine) == 4
    assert evaluate(place, out, *words) == 0 and len(engine) == 4


def test_the_base_is_asked_for_nothing_and_in_the_words_of_the_model(place, tmp_path, engine):
    assert evaluate(place, tmp_path / "out", place / "model", "--base", place / "base", "--goals", "2,4") == 0
    _, _, alone, in_words = engine
    assert alone.no_goal and in_words.no_goal
    assert [row["prompt"][0]["role"] for row in rows(Path(alone.prompts))] == ["user"] * 3
    first = rows(Path(in_words.prompts))[0]["prompt"]
    assert first[0] == {"role": "system", "content": goal_text(2.0, goal_min=0, goal_max=5)}


def test_prompts_are_those_of_held_out_pairs_where_no_file_is_named(place, tmp_path, engine):
    words = ["--suite", "goals", "--scorer", VOWELS, "--pairs", "5", "--out", tmp_path / "out"]
    assert rapo("evaluate", place / "config.yaml", "--model", place / "model", *words) == 0
    asked = {row["prompt"][-1]["content"] for row in rows(Path(engine[1].prompts))}
    assert len(asked) == 5 and asked <= {row["prompt"] for row in PAIRS}
    assert len(rows(Path(engine[0].prompts))) == 5 * 6, "goals 0 to 5, the model's own scale"


def test_a_recorded_map_puts_scores_on_the_scale_of_the_goals(place, tmp_path, engine):
    """A scorer's 1 to 10 onto goals from 0 to 5, by its ends and by a scale.json."""
    recorded = {"reward": {"low": 1.0, "high": 10.0, "goal_min": 0.0, "goal_max": 5.0, "clip": False, "decimals": None}}
    (tmp_path / "scale.json").write_text(json.dumps(recorded))
    found = []
    for number, scale in enumerate(("1,10", tmp_path / "scale.json", "goals")):
        out = tmp_path / str(number)
        assert evaluate(place, out, place / "model", "--goals", "1,5", "--scale", scale) == 0
        found.append({(m["quantity"], m["where"]): m["value"] for m in results(out)["measures"]})
    assert found[0] == found[1]
    mapped, plain = (each["judged score", "goal 5"] for each in (found[0], found[2]))
    assert mapped == pytest.approx((plain - 1) * 5 / 9)
    assert ("score less goal, mean: bias (points)", "all") in found[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model", "--suite", "goals"], "the suite goals needs a scorer: add --scorer with one of judge, reward_model:DIR"),
        (["base", "--suite", "goals", "--scorer", VOWELS], "does not record how it is asked for a goal (rapo.json), so it knows none"),
        (["model", "--suite", "goals", "--scorer", "jugde"], "--scorer jugde is unknown; did you mean 'judge'?"),
        (["model", "--suite", "goals", "--scorer", "reward_model"], "--scorer reward_model needs its model: reward_model:DIR"),
        (["model", "--suite", "goals", "--scorer", VOWELS, "--scorer", VOWELS], "or for two different ones"),
        (["model", "--suite", "goals", "--scorer", VOWELS, "--goals", "1,9"], "is outside the scale of"),
        (["model", "--suite", "goals", "--scorer", VOWELS, "--scale", "9,1"], "the first number must be below the second"),
        (["model", "--suite", "goals", "--scorer", VOWELS, "--scale", "none.json"], "none.json"),
        (["model", "--suite", "goals", "--scorer", VOWELS, "--judge-compare"], "options that begin with --judge are of --scorer judge"),
        (["model", "--suite", "goals", "--scorer", "judge"], "needs --judge-url"),
        (["--suite", "goals", "--scorer", VOWELS], "no model is named"),
        (["model", "--scorer", VOWELS], "--scorer: these are of the suites goals and frontier"),
        (["model", "--prompts", "p.jsonl"], "--prompts: these are of the suites goals and frontier"),
        (["model"], "CONFIG is missing"),
        (["model", "--base", "model", "--suite", "goals", "--scorer", VOWELS], "names one model twice"),
        (["model", "--suite", "goals", "--scorer", VOWELS, "--engine-timeout", "3"], "these are of a server; add --engine URL"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(words, message, place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(place)
    prompts = ["--prompts", "prompts.jsonl"] if "goals" in words else []
    assert rapo("evaluate", *words, *prompts, "--out", tmp_path / "out") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_prompts_that_ask_for_a_goal_or_are_too_few_are_refused(place, tmp_path, capsys):
    asking = [{"prompt": f"{goal_text(8)}\n\n{row['prompt']}"} for row in PAIRS[:2]]
    write_rows(tmp_path / "asking.jsonl", asking)
    assert evaluate(tmp_path, tmp_path / "out", place / "model", prompts="asking.jsonl") == 2
    assert "2 prompts ask for a goal already" in " ".join(capsys.readouterr().err.split())
    write_rows(tmp_path / "one.jsonl", asking[:1])
    assert evaluate(tmp_path, tmp_path / "out", place / "model", prompts="one.jsonl") == 2
    assert "1 prompt are too few for an interval" in " ".join(capsys.readouterr().err.split())


def test_a_server_samples_in_place_of_our_engine(place, tmp_path, monkeypatch, capsys):
    """Each answer is asked for once: two goals and none for three prompts, and nothing when the command is repeated."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    asked: list[dict] = []
    reached = Reached(lambda payload: asked.append(payload) or completion(payload, 90))
    reached.listed = listing("model", root=str(place / "model"))
    words = [place / "model", "--goals", "1,5", "--best-of", "1", "--engine", reached.url]
    try:
        assert evaluate(place, tmp_path / "out", *words, "--batch-size", "4") == 2
        assert "--batch-size: the server decides that by itself" in " ".join(capsys.readouterr().err.split())
        assert evaluate(place, tmp_path / "out", *words) == 0
        assert len(asked) == 9 and len({tuple(payload["prompt"]) for payload in asked}) == 9
        assert evaluate(place, tmp_path / "out", *words) == 0 and len(asked) == 9
    finally:
        reached.close()
    assert {m["n"] for m in results(tmp_path / "out")["measures"]} == {3}


def test_parts_are_what_is_missing():
    assert missing({1.0: 2, None: 2}, {1.0: 2, None: 3}) == []
    assert missing({1.0: 1, 5.0: 3}, {5.0: 1}) == [Part((1.0,), 0, 1), Part((5.0,), 1, 2)]
    assert Part((1.0,), 0, 1).name != Part((1.0,), 0, 2).name
