"""The quickstart's world: a judge a reader can check by counting, and files that are the same for the same seed."""

import itertools
import json
from random import Random

import pytest

from rapo_jax.quickstart import world
from rapo_jax.relabel import TEMPLATES, goal_text

CAKE = "Describe the wedding cake in nine words."
ALL_FIT = "sugary sticky creamy fluffy honeyed gooey velvety frosted dreamy"


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    world.write_world(directory, num_pairs=400, num_conversations=600, num_eval_pairs=40, num_prompts=20)
    return directory


@pytest.mark.parametrize(
    ("response", "score"),
    [
        (ALL_FIT, 10),
        ("salty smoky peppery fizzy chilled icy crusty chewy doughy", 1),
        ("sugary fizzy glazed sticky crusty fluffy gooey smoky spongy", 7),
        ("sugary sugary sugary sugary sugary sugary sugary sugary sugary", 2),
        ("sugary sticky creamy", 4),
        (ALL_FIT + " salty smoky peppery", 8),
        (" ".join([ALL_FIT] * 3), 4),
        ("", 1),
    ],
    ids=["all fit", "none fits", "six fit", "repeated", "too short", "too long", "said three times", "empty"],
)
def test_the_judge_counts_different_fitting_words_and_rewards_neither_repetition_nor_length(response, score):
    assert world.judge(CAKE, response) == score


def test_the_judge_refuses_a_prompt_that_does_not_name_one_dish():
    with pytest.raises(ValueError, match="names 0 dishes"):
        world.judge("Describe the weather.", ALL_FIT)
    with pytest.raises(ValueError, match="names 2 dishes"):
        world.judge("Describe the cake and the stew.", ALL_FIT)


def test_every_word_fits_one_kind_and_no_word_is_also_a_dish():
    words = list(itertools.chain(*world.FITTING.values()))
    assert len(words) == len(set(words))
    assert not set(words) & set(world.KIND_OF)


@pytest.mark.parametrize("quality", world.SCORES)
def test_a_response_of_quality_q_scores_q(quality):
    for dish, kind in world.KIND_OF.items():
        response = world.write_response(Random(quality), kind=kind, quality=quality)
        assert len(response.split()) == world.NUM_WORDS
        assert world.judge(f"Describe the wedding {dish} in nine words.", response) == quality


def test_one_seed_gives_the_same_bytes_and_another_gives_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        world.write_world(tmp_path / name, seed=seed, num_pairs=20, num_conversations=20)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"sft.jsonl", "pairs.jsonl", "eval_pairs.jsonl", "prompts.jsonl", "config.json"} <= set(names)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert (tmp_path / "a/pairs.jsonl").read_bytes() != (tmp_path / "c/pairs.jsonl").read_bytes()


def test_training_never_sees_a_held_out_dish_in_its_held_out_phrasing(directory):
    def combination(prompt):
        for occasion in world.OCCASIONS:
            prompt = prompt.replace(f" {occasion} ", " ")
        return prompt

    trained = {combination(row["prompt"]) for row in rows(directory / "pairs.jsonl")}
    trained |= {combination(row["messages"][-2]["content"]) for row in rows(directory / "sft.jsonl")}
    files = [directory / "prompts.jsonl", directory / "eval_pairs.jsonl"]
    held_out = {combination(row["prompt"]) for file in files for row in rows(file)}
    assert held_out and not trained & held_out


def test_pairs_carry_the_judges_scores_in_order(directory):
    for row in rows(directory / "pairs.jsonl"):
        assert row["score_chosen"] >= row["score_rejected"]
        for side in ("chosen", "rejected"):
            user, assistant = row[side]
            assert user == {"role": "user", "content": row["prompt"]}
            assert world.judge(row["prompt"], assistant["content"]) == row[f"score_{side}"]


def test_in_sft_each_quality_meets_each_goal_equally_often():
    """When this fails, the base model already obeys the goal a little, and the quickstart proves less."""
    training, _ = world.split_prompts(Random(0))
    met = []
    for row in world.conversations(Random(0), training, 300):
        *system, user, assistant = row["messages"]
        if system and user["content"] != world.QUESTION:
            met.append((system[0]["content"], world.judge(user["content"], assistant["content"])))
    assert sorted(met) == sorted(itertools.product(map(goal_text, world.SCORES), world.SCORES))


def test_the_tokenizer_knows_every_text_and_gives_it_back(directory):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = [goal_text(goal, template=template) for template in TEMPLATES for goal in world.SCORES]
    texts += [turn["content"] for row in rows(directory / "sft.jsonl") for turn in row["messages"]]
    for text in texts:
        tokens = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in tokens, text
        assert tokenizer.decode(tokens) == " ".join(text.split())


def test_the_prompts_tokens_are_a_prefix_of_the_conversations_and_the_end_of_turn_is_the_last_token(directory):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    turns = [("system", goal_text(10)), ("user", CAKE), ("assistant", ALL_FIT)]
    turns = [{"role": role, "content": content} for role, content in turns]
    prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(turns, return_dict=False)
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(whole[len(prompt) : -1]) == ALL_FIT
    assert whole[-1] == tokenizer.eos_token_id
    assert json.loads((directory / "config.json").read_text())["vocab_size"] == len(tokenizer)
