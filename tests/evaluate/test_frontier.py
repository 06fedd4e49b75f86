"""The suite `frontier`: log-ratios that transformers would compute, and numbers that can be checked by hand."""

import json
import math

import numpy as np
import pytest
import torch
import transformers

from rapo_jax.borders import read_json_lines
from rapo_jax.evaluate.figures import draw
from rapo_jax.evaluate.goals.frontier import Ratios, frontier, kl_of_best, per_token
from rapo_jax.evaluate.goals.suite import Plain, Scored
from rapo_jax.evaluate.result import result_of
from rapo_jax.relabel import goal_text
from tests.opened.exports import as_export
from tests.tiny import PAIRS, rapo, write_model, write_rows

POLICY = Scored(
    model="m",
    goals=(2.0, 9.0),
    scale=(1.0, 10.0),
    scores_PGN=np.array([[[2.0], [8.0]], [[4.0], [9.0]]]),
    tokens_PGN=np.ones((2, 2, 1)),
    cut_PGN=np.zeros((2, 2, 1), bool),
)
BASE = Scored(
    model="base",
    goals=(),
    scale=(1.0, 10.0),
    scores_PGN=np.empty((2, 0, 1)),
    tokens_PGN=np.empty((2, 0, 1)),
    cut_PGN=np.empty((2, 0, 1), bool),
    plain=Plain(np.array([[3.0, 5.0], [7.0, 1.0]]), np.ones((2, 2))),
)
AT = {2.0: (1.0, 3.0), 9.0: (4.0, 8.0)}  # log-ratios of the two prompts
RATIOS = {
    goal: Ratios(np.array(found)[:, None], np.array(found)[:, None] / 2, np.array([[2.0], [6.0]]))
    for goal, found in AT.items()
}
RESULT = frontier([POLICY, BASE], {"m": RATIOS}, reference="base")


def test_score_and_distance_of_every_goal_and_the_best_of_n_beside_them(tmp_path):
    found = {(m.quantity, m.model, m.where): m.estimate.value for m in RESULT.measures}
    assert found["judged score", "m", "goal 9"] == 8.5
    assert found["KL to the reference asked for no goal (nats an answer)", "m", "goal 9"] == 6.0
    assert found["KL to the reference asked alike (nats an answer)", "m", "goal 2"] == 1.0
    assert found["KL to the reference asked for no goal (nats a token)", "m", "goal 2"] == (1 + 3) / (2 + 6)
    assert found["judged score", "base", "no goal"] == 4.0
    assert RESULT.curves["base"]["best"] == [4.0, 6.0]
    assert RESULT.curves["base"]["best_kl"] == [0.0, pytest.approx(math.log(2) - 0.5)]
    assert RESULT.curves["m"]["kl"] == [2.0, 6.0] and RESULT.curves["m"]["best"] == []
    again = result_of(json.loads(json.dumps(RESULT.tree())))
    assert again.curves == RESULT.curves
    draw(again, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_the_kl_of_best_of_n_is_that_of_its_definition():
    """Of a uniform score u the best of n has the density n u^(n - 1): its KL by summation."""
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 2, 5):
        density = n * u ** (n - 1)
        assert kl_of_best(n) == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-4)


def test_a_ratio_a_token_weighs_long_answers_more():
    found = per_token(np.array([[1.0], [5.0]]), np.array([[1.0], [9.0]]))
    assert (found.value, found.n) == (0.6, 2) and found.low <= 0.6 <= found.high


def torch_logp(directory, turns: list[dict], response: str, *, cut: bool) -> float:
    """log pi(response | turns) by transformers; of an answer that was cut without the end of its turn."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    before = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, add_generation_prompt=True)
    turns = [*turns, {"role": "assistant", "content": response}]
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
    whole, start = whole[: len(whole) - cut], len(before["input_ids"])
    with torch.no_grad():
        logps = torch.log_softmax(model(torch.tensor([whole])).logits[0], -1)
    return float(sum(logps[n - 1, whole[n]] for n in range(start, len(whole))))


@pytest.mark.slow
def test_distances_are_those_of_transformers(tmp_path, capsys):
    """When this fails, a model that moved far from its reference is drawn beside it."""
    write_model(tmp_path / "base")
    write_model(tmp_path / "policy", seed=1)
    as_export(tmp_path / "policy", tmp_path / "model")
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in PAIRS[:2]])
    words = ["--suite", "frontier", "--scorer", "python:tests.evaluate.scorers:vowels", "--max-new-tokens", "4"]
    words += ["--goals", "1,5", "--best-of", "1", "--prompts", tmp_path / "prompts.jsonl", "--out", tmp_path / "out"]
    assert rapo("evaluate", tmp_path / "model", "--reference", tmp_path / "base", *words) == 0
    assert "KL to the reference" in capsys.readouterr().out
    tree = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(tree) == {"frontier"}
    told = {(m["quantity"], m["model"], m["where"]): m["value"] for m in tree["frontier"]["measures"]}
    ratios = []
    for _, row in read_json_lines(tmp_path / "out" / "answers.jsonl"):
        if (row["model"], row["goal"]) == ("model", 5.0):
            asking = [{"role": "system", "content": goal_text(5.0, goal_min=0, goal_max=5)}, *row["prompt"]]
            cut, said = row["num_tokens"] == 4, row["response"]
            own = torch_logp(tmp_path / "policy", asking, said, cut=cut)
            ratios.append(
                [own - torch_logp(tmp_path / "base", turns, said, cut=cut) for turns in (row["prompt"], asking)]
            )
    plain, alike = np.mean(ratios, axis=0)
    assert told["KL to the reference asked for no goal (nats an answer)", "model", "goal 5"] == pytest.approx(
        plain, abs=1e-4
    )
    assert told["KL to the reference asked alike (nats an answer)", "model", "goal 5"] == pytest.approx(alike, abs=1e-4)
    # The reference itself, asked in the words of the model, is where it is.
    in_words = "base, goal in the prompt"
    assert told["KL to the reference asked alike (nats an answer)", in_words, "goal 1"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the suite frontier measures distances from the model that training started from"),
        (["--reference", "base", "--temperature", "0.5"], "--temperature 0.5 --top-p 1 draws others"),
        (["--reference", "model"], "needs models other than their reference model"),
    ],
)
def test_bad_input_is_one_sentence(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    as_export(write_model(tmp_path / "base"), tmp_path / "model")
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in PAIRS[:2]])
    more = ["--scorer", "python:tests.evaluate.scorers:vowels", "--prompts", "prompts.jsonl", "--out", "out"]
    assert rapo("evaluate", "model", "--suite", "frontier", *more, *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
