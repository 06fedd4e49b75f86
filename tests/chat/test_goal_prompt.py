"""A goal is asked for once: sentences that data holds already are recognised."""

import pytest

from rapo_jax.chat.goal_prompt import PAPER_GOAL_PROMPT, GoalPrompt, refuse_twice
from rapo_jax.errors import UserError
from rapo_jax.messages import Message, Record
from rapo_jax.relabel import goal_text

HI = (Message("user", "Hi\n\nthere"),)
BRIEF = (Message("system", "Be brief"), *HI)


def prompt_of(template="paper", placement="system", **others):
    return GoalPrompt(template, 10.0, placement, None, "", **others)


@pytest.mark.parametrize(
    ("prompt", "goal", "source"),
    [
        (prompt_of(), 7.25, ""),
        (prompt_of("released_code"), 10, ""),
        (prompt_of("paper", goal_min=0.0), 0, ""),
        (prompt_of("Score of the answer: {goal}/{goal_max}"), -1.5, ""),
        (prompt_of("Answer as {source} would, for {goal} points."), 3, "Stack Overflow (2)"),
        (prompt_of(attributes=("wit", "a_b")), (3.0, 4.5), ""),
    ],
)
@pytest.mark.parametrize("messages", [HI, BRIEF])
@pytest.mark.parametrize("placement", ["system", "user"])
def test_a_sentence_that_was_written_is_recognised(prompt, goal, source, messages, placement):
    """When this fails, prompts of `rapo relabel` are asked for a second goal, 10, by `rapo generate`."""
    written = GoalPrompt(**vars(prompt) | {"placement": placement}).write(messages, goal, source=source)
    assert prompt.recognise([messages, written]) == [None, prompt.sentence(goal, source=source)]


def test_sentences_of_the_paper_on_another_scale_are_recognised_by_every_prompt():
    written = PAPER_GOAL_PROMPT.write(HI, 7)
    assert prompt_of("My own words: {goal}", goal_min=0.0).recognise([written]) == [goal_text(7)]
    assert PAPER_GOAL_PROMPT.recognise([prompt_of("released_code", goal_min=0.0).write(HI, 3)]) != [None]


@pytest.mark.parametrize("template", ["{goal}", "{source}", "g={goal}", "{source}: {goal}"])
def test_a_sentence_of_few_words_is_not_seen_in_every_prompt(template):
    """When this fails, data whose questions begin with a number cannot be trained on."""
    assert prompt_of(template).recognise([(Message("user", "7\n\nis prime"),)]) == [None]


def test_a_sentence_within_a_text_is_the_texts_own():
    assert PAPER_GOAL_PROMPT.recognise([(Message("user", f"What does this mean: {goal_text(7)}"),)]) == [None]
    assert PAPER_GOAL_PROMPT.recognise([(Message("user", f"{goal_text(7)} Really."),)]) == [None]


def test_two_prompts_ask_alike_if_sentence_turn_and_scale_are_the_same():
    """When this fails, a second round of training in other words than the first goes unsaid."""
    assert prompt_of().asks_like(prompt_of())
    for other in (
        prompt_of("released_code"),
        prompt_of(placement="user"),
        prompt_of(goal_min=0.0),
        prompt_of("{goal}"),
    ):
        assert not prompt_of().asks_like(other)


def test_rows_that_would_be_asked_twice_are_refused_with_their_number():
    rows = [Record(number, messages, ("A", "B"), (9.0, 2.0)) for number, messages in enumerate((HI, BRIEF), 1)]
    refuse_twice(PAPER_GOAL_PROMPT, rows)
    rows += [Record(number, PAPER_GOAL_PROMPT.write(HI, 9), ("A", "B"), (9.0, 2.0)) for number in (3, 4)]
    with pytest.raises(UserError, match=r"2 rows ask for a goal already .the first: row 3, .*Overall score: 9"):
        refuse_twice(PAPER_GOAL_PROMPT, rows)
