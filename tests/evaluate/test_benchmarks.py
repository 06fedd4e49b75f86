"""Benchmarks: questions in, answers in the benchmarks' own formats, verdicts of their judges back, each by an example in full."""

import json
import signal

import numpy as np
import pytest

from rapo_jax.chat.templates import render, tokenize
from rapo_jax.errors import UserError
from rapo_jax.evaluate.benchmarks.registry import BENCHMARKS, judge_of, read_questions, read_verdicts
from rapo_jax.generate.decode import Sampling, answer_tokens
from rapo_jax.generate.own import OwnEngine
from rapo_jax.messages import Message
from rapo_jax.opened import answer_text, open_model
from tests import tiny
from tests.opened.exports import as_export
from tests.report.places import Page, report

DONE, USER_ERROR, INTERRUPTED = 0, 2, 75
QUESTIONS = {
    "alpaca_eval": [
        {"instruction": "Hi", "output": "Hello.", "generator": "other", "dataset": "koala"},
        {"instruction": "What is one plus one?", "output": "2", "generator": "other", "dataset": "vicuna"},
    ],
    "mt_bench": [
        {"question_id": 81, "category": "writing", "turns": ["Hi", "Again."]},
        {"question_id": 111, "category": "math", "turns": ["What is one plus one?", "Why?"], "reference": ["2"]},
    ],
    "arena_hard": [
        {"uid": "a1", "category": "arena-hard-v0.1", "cluster": "x", "prompt": "Hi"},
        {"uid": "b2", "category": "arena-hard-v0.1", "cluster": "y", "prompt": "Why?\u2028Say it."},
    ],
}


class World:
    def __init__(self, directory):
        self.directory = directory
        self.model = as_export(tiny.write_model(directory / "model"), directory / "exported")
        for name, rows in QUESTIONS.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (directory / f"{name}.in").write_text(json.dumps(rows) if name == "alpaca_eval" else lines)

    def answers(self, benchmark, out, *more, given=None):
        given = self.directory / f"{given or benchmark}.in"
        options = ["--input", given, "--max-new-tokens", 6, *more]
        return tiny.rapo("answers", self.model, "--benchmark", benchmark, "--out", out, *options)

    def texts(self, conversations, *, goal=5.0, temperature=0.0):
        """What the model answers, asked through its template by hand; index and seed as in a file of prompts."""
        model = open_model(self.model)
        prompts = [[Message(role, text) for role, text in turns] for turns in conversations]
        rendered = [render(model.tokenizer, model.goal_prompt.write(messages, goal)) for messages in prompts]
        assert all(text.count("target score") == (goal is not None) for text in rendered)
        tokens = [np.array(ids, np.int32) for ids in tokenize(model.tokenizer, rendered)]
        found = answer_tokens(model, tokens, sampling=Sampling(max_new_tokens=6, temperature=temperature))
        return [answer_text(model.tokenizer, answer.tokens) for answer in found]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


def lines_of(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_alpaca_eval_gets_a_list_of_outputs_at_the_highest_goal(world, tmp_path, capsys):
    """When this fails, the leaderboard judges answers to no goal, or joins no answer to its reference."""
    out = tmp_path / "mine" / "model_outputs.json"
    out.parent.mkdir()
    assert world.answers("alpaca_eval", out) == DONE
    first, second = world.texts([[("user", "Hi")], [("user", "What is one plus one?")]])
    assert json.loads(out.read_text()) == [
        {"instruction": "Hi", "output": first, "generator": "mine", "dataset": "koala"},
        {"instruction": "What is one plus one?", "output": second, "generator": "mine", "dataset": "vicuna"},
    ]
    about = json.loads(out.with_suffix(".about.json").read_text())
    assert (about["goal"], about["max_new_tokens"], about["questions"]["number"]) == (5, 6, 2)
    assert about["sampling"] == [{"temperature": 0, "top_p": 1, "seed": 0}]
    assert about["turns"][0]["mean_characters"] == (len(first) + len(second)) / 2
    printed = capsys.readouterr().out
    assert "has 2 questions; the published file has 805" in printed and "2 answers of mine, goal 5" in printed
    assert f"alpaca_eval --model_outputs {out} --annotators_config weighted_alpaca_eval_gpt4_turbo" in printed
    assert sorted(path.name for path in out.parent.iterdir()) == ["model_outputs.about.json", "model_outputs.json"]


def test_the_second_turn_of_mt_bench_sees_the_first_answer_and_both_are_drawn_at_the_temperature_of_their_category(
    world, tmp_path
):
    """When this fails, half of a model's MT-Bench score is of answers to a question without its context."""
    out = tmp_path / "mine.jsonl"
    assert world.answers("mt_bench", out, "--goal", 2) == DONE
    writing, maths = lines_of(out)
    assert [
        (row["question_id"], row["model_id"], [c["index"] for c in row["choices"]]) for row in (writing, maths)
    ] == [
        (81, "mine", [0]),
        (111, "mine", [0]),
    ]
    assert len({writing["answer_id"], maths["answer_id"]}) == 2 and writing["tstamp"] > 1.7e9
    asked = [[("user", "Hi")], [("user", "What is one plus one?")]]
    sampled, greedy = world.texts(asked, goal=2, temperature=0.7)[0], world.texts(asked, goal=2)[1]
    assert [writing["choices"][0]["turns"][0], maths["choices"][0]["turns"][0]] == [sampled, greedy]
    then = [
        [*asked[0], ("assistant", sampled), ("user", "Again.")],
        [*asked[1], ("assistant", greedy), ("user", "Why?")],
    ]
    sampled, greedy = world.texts(then, goal=2, temperature=0.7)[0], world.texts(then, goal=2)[1]
    assert [writing["choices"][0]["turns"][1], maths["choices"][0]["turns"][1]] == [sampled, greedy]


def test_arena_hard_gets_messages_whose_answer_is_an_object(world, tmp_path):
    """When this fails, Arena-Hard's judge ends with a KeyError, or a line separator in a prompt ends a row."""
    out = tmp_path / "mine.jsonl"
    assert world.answers("arena_hard", out, "--no-goal") == DONE
    prompts = [row["prompt"] for row in QUESTIONS["arena_hard"]]
    texts = world.texts([[("user", prompt)] for prompt in prompts], goal=None)
    rows = lines_of(out)
    assert [row["messages"] for row in rows] == [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": {"answer": text}}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    assert [(row["uid"], row["model"]) for row in rows] == [("a1", "mine"), ("b2", "mine")]
    assert {*rows[0]} == {"uid", "ans_id", "model", "messages", "tstamp"}


def test_a_command_that_was_stopped_in_the_second_turn_samples_nothing_twice(world, tmp_path, capsys, monkeypatch):
    """When this fails, an interruption costs the first turn again, or mixes two first turns in one conversation."""
    many = [{"question_id": n, "category": "writing", "turns": [f"What is {n}?", "Why?"]} for n in range(10)]
    given = tiny.write_rows(tmp_path / "many.in", many)
    options = ["--benchmark", "mt_bench", "--input", given, "--max-new-tokens", 6, "--batch-size", 1]
    undisturbed, out = tmp_path / "whole.jsonl", tmp_path / "mine.jsonl"
    answers = ["answers", world.model, *options, "--out"]
    assert tiny.rapo(*answers, undisturbed) == DONE
    sample, asked = OwnEngine.sample, []

    def stopping(self, questions, **options):
        asked.append(len(questions) - len(options["known"]))
        for drawn in sample(self, questions, **options):
            if len(asked) == 2 and drawn.samples:
                signal.raise_signal(signal.SIGINT)  # eight devices draw eight answers at once, here of the second turn
            yield drawn

    monkeypatch.setattr(OwnEngine, "sample", stopping)
    assert tiny.rapo(*answers, out) == INTERRUPTED
    assert not out.exists() and "8 of 10 answers are kept in" in capsys.readouterr().out
    assert tiny.rapo(*answers, out, "--goal", 3) == USER_ERROR
    assert "holds the answers of another command so far" in capsys.readouterr().err
    assert tiny.rapo(*answers, out) == DONE
    assert asked == [10, 10, 2]  # questions asked in each turn, and by the command that goes on
    assert [row["choices"] for row in lines_of(out)] == [row["choices"] for row in lines_of(undisturbed)]
    assert len(list(tmp_path.iterdir())) == 5  # the questions, two answer files and their records
    assert tiny.rapo(*answers, out) == USER_ERROR
    assert f"{out} exists; nothing was written." in capsys.readouterr().err


def test_a_model_that_asks_for_no_goal_is_asked_for_none(world, tmp_path, capsys):
    """When this fails, a plain baseline is asked for a score that it never read, and its win rate is too low."""
    out = tmp_path / "base.json"
    options = ["--benchmark", "alpaca_eval", "--input", world.directory / "alpaca_eval.in", "--max-new-tokens", 6]
    assert tiny.rapo("answers", world.directory / "model", *options, "--out", out) == DONE
    assert "asks for no goal by itself, and is asked for none; --goal G asks for one" in capsys.readouterr().out
    assert json.loads(out.with_suffix(".about.json").read_text())["goal_sentence"] is None


BAD = {
    "another": ("alpaca_eval", "mt_bench", "line 1 is a question of MT-Bench; give --benchmark=mt_bench, or for AlpacaEval take"),
    "twice": ("arena_hard", [*QUESTIONS["arena_hard"], {"uid": "a1", "prompt": "x"}], "line 3 asks the question of .* line 1 again"),
    "same": ("alpaca_eval", [{"instruction": "Hi"}, {"instruction": "Hi"}], "line 2 asks the question of .* line 1 again"),
    "empty": ("mt_bench", [], "holds no questions; take data/mt_bench/question.jsonl of the space lmsys/mt-bench on"),
    "pairs": ("arena_hard", [{"prompt": "x", "chosen": "y"}], "is no question of Arena-Hard: it has prompt, chosen, and not uid, cat"),
    "old": ("arena_hard", [{"question_id": "x", "turns": [{"content": "y"}]}], "is a question of Arena-Hard in its old format"),
    "blank": ("alpaca_eval", [{"instruction": " "}], "line 1: instruction is ' ', and must be a text; take the published file."),
    "one turn": ("mt_bench", [{"question_id": 1, "category": "x", "turns": ["a"]}], "turns must be two texts, and is"),
    "no id": ("mt_bench", [{"question_id": "1", "category": "x", "turns": ["a", "b"]}], "question_id='1' and category='x' must be"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_not_the_benchmarks_is_refused(world, tmp_path, name):
    """When this fails, an hour of answers is to other questions, or to a question twice."""
    benchmark, rows, message = BAD[name]
    path = world.directory / f"{rows}.in" if isinstance(rows, str) else tiny.write_rows(tmp_path / "in.jsonl", rows)
    with pytest.raises(UserError, match=message):
        read_questions(str(path), BENCHMARKS[benchmark])


@pytest.mark.parametrize(
    ("benchmark", "out", "more", "message"),
    [
        ("alpaca_eval", "x.jsonl", [], "x.jsonl: AlpacaEval reads files that end in .json; give it that ending."),
        ("mt_bench", "x.jsonl", ["--name", "y"], "--name=y: MT-Bench calls a model as its file is called, x; call the"),
        ("arena_hard", "x.jsonl", ["--goal", 11], "--goal 11 is outside the scale of"),
    ],
)
def test_what_the_benchmark_would_not_find_is_refused(world, tmp_path, capsys, benchmark, out, more, message):
    assert world.answers(benchmark, tmp_path / out, *more) == USER_ERROR
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_questions_that_cannot_be_fetched_are_named(world, tmp_path, capsys, monkeypatch):
    """When this fails, somebody without the hub does not learn which file to bring."""

    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    assert tiny.rapo("answers", world.model, "--benchmark", "mt_bench", "--out", tmp_path / "x.jsonl") == USER_ERROR
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "cannot be fetched from the hub (OSError: no network); fetch data/mt_bench/question.jsonl of the space" in said
    )
    assert "give the file with --input FILE" in said


# Verdicts.

ANNOTATIONS = [
    {"instruction": text, "dataset": dataset, "generator_1": "gpt4", "generator_2": "mine", "output_1": "x"}
    | {"output_2": "y" * length, "preference": preference, "annotator": "judge", "time_per_example": 1.0}
    for text, dataset, length, preference in (
        ("a", "koala", 10, 2.0), ("b", "koala", 20, 1.0), ("c", "vicuna", 30, 1.5), ("d", "vicuna", 40, 1.7), ("e", "vicuna", 50, None)
    )
]  # fmt: skip
RATINGS = [
    {"question_id": number, "model": "mine", "judge": ["gpt-4", "single-v1"], "user_prompt": "x", "judgment": "y"}
    | {"score": score, "turn": turn, "tstamp": 1.0}
    for number, turn, score in ((81, 1, 8), (81, 2, 6), (111, 1, 4), (111, 2, -1))
]
GAMES = [
    {"uid": uid, "category": category, "judge": "gpt-4", "model": "mine", "baseline": "old"}
    | {"games": [first and {"score": first, "judgment": {}}, {"score": second, "judgment": {}}]}
    for uid, category, first, second in (
        ("a", "hard_prompt", "A>>B", "A=B"),  # lost clearly as B, then a tie: 0, 0, 0, 0.5
        ("b", "creative_writing", "B>A", "A>B"),  # won twice: 1, 1
        ("c", "hard_prompt", "A>B", None),
        ("d", "hard_prompt", None, "A>B"),
    )
]


def read(path, text):
    path.write_text(text)
    first = json.loads(text)[0] if path.suffix == ".json" else json.loads(text.split("\n")[0])
    return read_verdicts(path, judge_of(first))


def values(result):
    return {(m.quantity, m.where): (round(m.estimate.value, 6), m.estimate.n) for m in result.measures}


def test_win_rates_of_alpaca_eval_are_means_and_length_control_is_its_own(tmp_path):
    """When this fails, a page shows another win rate than the leaderboard's, or a home-made length control under its name."""
    result = read(tmp_path / "annotations.json", json.dumps(ANNOTATIONS))
    rate, length = "win rate against gpt4, %, judge judge", "mean length of an answer, characters"
    assert values(result) == {
        (rate, "all"): (55.0, 4),  # of 100, 0, 50, 70
        (rate, "koala"): (50.0, 2),
        (rate, "vicuna"): (60.0, 2),
        (length, "all"): (30.0, 5),
    }
    assert result.explains.endswith("1 verdicts that failed are left out.")
    board = "win_rate,standard_error,length_controlled_winrate,lc_standard_error\n"
    (tmp_path / "leaderboard.csv").write_text(f",{board}other,1,1,2,1\nmine,55.0,20.0,40.0,2.0\n")
    controlled = read(tmp_path / "annotations.json", json.dumps(ANNOTATIONS)).measures[3]
    assert controlled.quantity == f"length-controlled {rate}, as AlpacaEval computed it"
    assert (controlled.estimate.value, round(controlled.estimate.low, 2), controlled.estimate.n) == (40.0, 36.08, 4)


def test_scores_of_mt_bench_are_means_over_turns_and_categories(tmp_path):
    result = read(tmp_path / "gpt-4_single.jsonl", "\n".join(map(json.dumps, RATINGS)))
    score = "mean score of 1 to 10, judge gpt-4"
    assert values(result) == {
        (score, "all"): (6.0, 2),
        (score, "turn 1"): (6.0, 2),
        (score, "turn 2"): (6.0, 1),
        (score, "writing"): (7.0, 1),
        (score, "math"): (4.0, 1),
    }
    assert "1 verdicts without a score are left out" in result.explains


def test_win_rates_of_arena_hard_count_clear_verdicts_three_times_and_turn_the_first_game_round(tmp_path):
    """When this fails, the baseline's wins are the model's."""
    result = read(tmp_path / "mine.jsonl", "\n".join(map(json.dumps, GAMES)))
    rate = "win rate against old, %, judge gpt-4"
    assert values(result) == {
        (rate, "all"): (round(100 * 2.5 / 6, 6), 2),
        (rate, "hard_prompt"): (12.5, 1),
        (rate, "creative_writing"): (100.0, 1),
    }
    assert "2 questions without two verdicts are left out" in result.explains


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("x.json", [ANNOTATIONS[0] | {"preference": 3}], "row 1: preference=3 is neither 0 nor between 1 and 2; judge again"),
        ("x.json", [ANNOTATIONS[0], {"a": 1}], "row 2 is no verdict of AlpacaEval, as others of its 2 rows are; mend the file."),
        ("x.jsonl", [RATINGS[0] | {"score": "8"}], "line 1: score is '8', expected a number; judge again, or leave the file out."),
        ("x.jsonl", [RATINGS[3]], "has no verdict with a score; judge again."),
        ("x.jsonl", [GAMES[0] | {"games": [{"score": "A"}, None]}], "'A' is no verdict; there are A>>B, A>B"),
        ("x.jsonl", [GAMES[0] | {"games": [None]}], "there are 1 games, and must be two"),
    ],
)  # fmt: skip
def test_verdicts_that_are_none_are_refused(tmp_path, name, rows, message):
    text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        read(tmp_path / name, text)


def test_a_page_shows_verdicts_of_all_three_judges(tmp_path):
    (tmp_path / "annotations.json").write_text(json.dumps(ANNOTATIONS))
    tiny.write_rows(tmp_path / "gpt-4_single.jsonl", RATINGS)
    tiny.write_rows(tmp_path / "mine.jsonl", GAMES)
    words = [f"lc={tmp_path / 'annotations.json'}", tmp_path / "gpt-4_single.jsonl", tmp_path / "mine.jsonl"]
    assert report(*words, "-o", tmp_path / "page.html", "--csv", tmp_path / "page.csv") == DONE
    shown = Page((tmp_path / "page.html").read_text()).shown
    for words in ("AlpacaEval: lc", "MT-Bench: gpt-4_single", "Arena-Hard: mine", "55.000 [", "1 verdicts that failed"):
        assert words in shown
    assert (
        'evaluation,mine,Arena-Hard,"win rate against old, %, judge gpt-4",creative_writing,mine,100.0'
        in (tmp_path / "page.csv").read_text()
    )
