"""Truncation: the goal, the end of the instruction and every response survive; what was cut is counted."""

import dataclasses

import numpy as np
import pytest

from rapo_jax.chat.encoding import MIN_INSTRUCTION_TOKENS, Item, encode_all
from rapo_jax.chat.templates import TEMPLATE_PRESETS, end_of_turn, place_goal
from rapo_jax.errors import UserError
from rapo_jax.messages import Message

GOAL = "Score: 9."
HI = (Message("user", "Hi"),)


@pytest.fixture(scope="module")
def tokenizer(build_tokenizer):
    """One token per byte outside the training corpus: digits and capitals can be counted by eye."""
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '<' + m.role[0] + '>' + m.content + '<e>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
    )
    return build_tokenizer(template, "<bos>", "<eos>", ["<s>", "<u>", "<a>", "<e>"])


def encode_one(tokenizer, prompt, responses, *, goal=None, placement="user", max_length, max_prompt_length):
    (encoded,), report = encode_all(
        tokenizer,
        [Item(1, prompt, goal, responses)],
        placement=placement,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
    )
    return encoded, report


def texts(tokenizer, encoded):
    return tokenizer.decode(encoded.prompt), [tokenizer.decode(response) for response in encoded.responses]


def num_tokens(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False).input_ids)


def conversation(*contents):
    return tuple(Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents))


def test_what_fits_is_left_alone_even_with_a_prompt_over_its_limit(tokenizer):
    encoded, report = encode_one(tokenizer, conversation("0123456789"), ("AB", "C"), max_length=17, max_prompt_length=5)
    assert texts(tokenizer, encoded) == ("<bos><u>0123456789<e><a>", ["AB<e>", "C<e>"])
    assert len(encoded.prompt) + len(encoded.responses[0]) == 17
    assert dataclasses.asdict(report) == {
        "num_items": 1,
        "num_encoded": 1,
        "prompt_tokens_cut": 0,
        "response_tokens_cut": 0,
        "rows_with_prompt_cut": 0,
        "rows_with_response_cut": 0,
        "turns_cut": 0,
        "boundary_retokenized": 0,
        "dropped": {},
    }


def test_arrays_are_int32(tokenizer):
    encoded, _ = encode_one(tokenizer, HI, ("A",), max_length=30, max_prompt_length=20)
    assert {array.dtype for array in (encoded.prompt, *encoded.responses)} == {np.dtype(np.int32)}


def test_responses_lose_their_ends_where_the_prompt_is_within_its_limit(tokenizer):
    encoded, report = encode_one(tokenizer, HI, ("0123456789", "AB"), max_length=12, max_prompt_length=8)
    assert texts(tokenizer, encoded) == ("<bos><u>Hi<e><a>", ["012345", "AB<e>"])
    assert encoded.response_tokens_cut == (5, 0)
    assert (report.response_tokens_cut, report.rows_with_response_cut, report.rows_with_prompt_cut) == (5, 1, 0)


def test_at_least_one_token_of_a_response_stays(tokenizer):
    prompt = conversation("abcdefgh" * 4)
    encoded, _ = encode_one(tokenizer, prompt, ("012", "345"), max_length=21, max_prompt_length=20)
    assert len(encoded.prompt) == 20
    assert texts(tokenizer, encoded)[1] == ["0", "3"]


def test_the_prompt_is_shortened_no_more_than_the_longest_response_requires(tokenizer):
    encoded, _ = encode_one(tokenizer, conversation("0123456789" * 3), ("AB", "C"), max_length=30, max_prompt_length=15)
    assert len(encoded.prompt) == 30 - len("AB.")
    assert encoded.response_tokens_cut == (0, 0)


def test_one_long_turn_loses_its_middle(tokenizer):
    encoded, report = encode_one(
        tokenizer, conversation("0123456789" * 3), ("AB",), goal=GOAL, max_length=33, max_prompt_length=30
    )
    begin, end = "<bos><u>Score: 9.\n\n", "0123456789<e><a>"
    head = num_tokens(tokenizer, begin + "0") - 1
    prompt = texts(tokenizer, encoded)[0]
    assert prompt.startswith(begin)
    assert prompt.endswith(end)
    assert len(encoded.prompt) == 30
    assert prompt == begin + ("0123456789" * 3)[-(30 - head - 2) :] + "<e><a>"
    assert report.prompt_tokens_cut == encoded.prompt_tokens_cut == head + 32 - 30
    assert (report.rows_with_prompt_cut, report.turns_cut) == (1, 0)


def test_the_oldest_exchanges_are_cut_first_and_the_goal_moves_to_what_remains(tokenizer):
    prompt = (Message("system", "S"), *conversation("11111", "22222", "33333", "44444", "55555"))
    whole = "<bos><s>S<e><u>Score: 9.\n\n11111<e><a>22222<e><u>33333<e><a>44444<e><u>55555<e><a>"
    encoded, report = encode_one(tokenizer, prompt, ("AB",), goal=GOAL, max_length=400, max_prompt_length=300)
    assert texts(tokenizer, encoded)[0] == whole
    fits = len(encoded.prompt) - 1
    encoded, report = encode_one(tokenizer, prompt, ("AB",), goal=GOAL, max_length=fits + 3, max_prompt_length=fits)
    assert texts(tokenizer, encoded)[0] == "<bos><s>S<e><u>Score: 9.\n\n33333<e><a>44444<e><u>55555<e><a>"
    assert (encoded.turns_cut, encoded.prompt_tokens_cut) == (2, 14)
    assert (report.turns_cut, report.prompt_tokens_cut, report.rows_with_prompt_cut) == (2, 14, 1)


def test_earlier_turns_are_cut_before_the_middle_of_the_last_one(tokenizer):
    prompt = conversation("1" * 20, "2" * 20, "0123456789" * 3)
    encoded, report = encode_one(tokenizer, prompt, ("AB",), goal=GOAL, max_length=33, max_prompt_length=30)
    single, _ = encode_one(tokenizer, prompt[2:], ("AB",), goal=GOAL, max_length=33, max_prompt_length=30)
    assert encoded.prompt.tolist() == single.prompt.tolist()
    assert report.turns_cut == 2
    assert encoded.prompt_tokens_cut == single.prompt_tokens_cut + 44


@pytest.mark.parametrize("placement", ["system", "user"])
def test_a_long_system_turn_is_cut_after_the_goal_rather_than_losing_the_row(tokenizer, placement):
    prompt = (Message("system", "7" * 60), Message("user", "01234567"))
    encoded, report = encode_one(
        tokenizer, prompt, ("AB",), goal=GOAL, placement=placement, max_length=43, max_prompt_length=40
    )
    if placement == "user":  # the goal comes after the system turn: no cut keeps both
        assert (encoded, report.dropped) == (None, {"goal_does_not_fit": 1})
    else:
        assert texts(tokenizer, encoded)[0].startswith("<bos><s>Score: 9.\n\n777")
        assert texts(tokenizer, encoded)[0].endswith("777<e><u>01234567<e><a>")
        assert len(encoded.prompt) == 40


def test_a_row_whose_goal_leaves_no_room_for_the_instruction_is_dropped_and_counted(tokenizer):
    prompt = conversation("0123456789" * 3)
    head = num_tokens(tokenizer, "<bos><u>Score: 9.\n\n0") - 1
    enough = head + MIN_INSTRUCTION_TOKENS + 2
    encoded, _ = encode_one(tokenizer, prompt, ("AB",), goal=GOAL, max_length=enough + 3, max_prompt_length=enough)
    assert texts(tokenizer, encoded)[0] == "<bos><u>Score: 9.\n\n23456789<e><a>"
    limit = enough - 1
    encoded, report = encode_one(tokenizer, prompt, ("AB",), goal=GOAL, max_length=limit + 3, max_prompt_length=limit)
    assert (encoded, report.num_encoded, report.dropped) == (None, 0, {"goal_does_not_fit": 1})


def test_without_a_goal_the_system_turn_is_kept_if_it_leaves_room_and_otherwise_cut(tokenizer):
    prompt = (Message("system", "7" * 20), Message("user", "0123456789" * 2))
    encoded, _ = encode_one(tokenizer, prompt, ("AB",), max_length=42, max_prompt_length=39)
    assert texts(tokenizer, encoded)[0] == "<bos><s>" + "7" * 20 + "<e><u>" + ("0123456789" * 2)[-13:] + "<e><a>"
    encoded, _ = encode_one(tokenizer, prompt, ("AB",), max_length=32, max_prompt_length=29)
    assert texts(tokenizer, encoded)[0] == "<bos><s>" + "7" * 3 + "<e><u>" + "0123456789" * 2 + "<e><a>"
    encoded, report = encode_one(tokenizer, prompt, ("AB",), max_length=12, max_prompt_length=9)
    assert (encoded, report.dropped) == (None, {"prompt_does_not_fit": 1})


def test_responses_that_differ_only_in_what_was_cut_are_dropped(tokenizer):
    encoded, report = encode_one(tokenizer, HI, ("0123456", "012345678"), max_length=12, max_prompt_length=8)
    assert (encoded, report.dropped) == (None, {"identical_after_truncation": 1})


def test_responses_that_differ_only_in_what_the_template_trims_are_dropped(tokenizers):
    encoded, report = encode_one(tokenizers["gemma"], HI, ("Yes", "Yes\n"), max_length=90, max_prompt_length=50)
    assert (encoded, report.dropped) == (None, {"identical_responses": 1})


@pytest.mark.parametrize("name", ["llama3", "qwen", "zephyr", "mistral", "gemma"])
@pytest.mark.parametrize("max_prompt_length", [70, 100, 150])
def test_every_template_keeps_goal_instruction_end_header_and_responses(tokenizers, name, max_prompt_length):
    tokenizer = tokenizers[name]
    prompt = conversation("old " * 20, "answer " * 20, "a new question " * 20 + "#0123456789!")
    responses = ("first " * 20, "other " * 20)
    encoded, report = encode_one(
        tokenizer, prompt, responses, goal=GOAL, max_length=max_prompt_length + 5, max_prompt_length=max_prompt_length
    )
    short = [{"role": "user", "content": "#0123456789!"}]
    footer = tokenizer.apply_chat_template(short, tokenize=False, add_generation_prompt=True).partition("#")[2]
    text, answers = texts(tokenizer, encoded)
    assert len(encoded.prompt) == max_prompt_length
    assert text.count(GOAL) == 1
    assert text.endswith(footer[-len("3456789!") - len(footer.partition("!")[2]) :])
    assert [answer.strip()[0] for answer in answers] == ["f", "o"]
    assert {len(response) for response in encoded.responses} == {5}
    assert report.turns_cut == 2


def test_items_keep_their_places_across_batches(tokenizers, monkeypatch):
    monkeypatch.setattr("rapo_jax.chat.encoding.TOKENIZED_AT_ONCE", 3)
    tokenizer = tokenizers["qwen"]
    items = [Item(i, (Message("user", f"Q{i}"),), None, (f"A{i}", "A5")) for i in range(10)]
    encoded, report = encode_all(tokenizer, items, placement="user", max_length=200, max_prompt_length=100)
    assert encoded[5] is None
    assert [tokenizer.decode(one.responses[0]) for one in encoded if one] == [
        f"A{i}<|im_end|>" for i in range(10) if i != 5
    ]
    assert (report.num_items, report.num_encoded, report.dropped) == (10, 9, {"identical_responses": 1})


def test_prompts_alone_are_cut_to_max_length(tokenizer):
    encoded, _ = encode_one(tokenizer, conversation("0123456789" * 3), (), max_length=20, max_prompt_length=10)
    assert (len(encoded.prompt), encoded.responses) == (20, ())


def test_a_prompt_limit_that_leaves_no_room_for_a_response_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"data.max_length=512 must exceed data.max_prompt_length=512; raise the first"):
        encode_all(tokenizer, [], placement="user", max_length=512, max_prompt_length=512)


def test_batched_encoding_equals_rendering_and_tokenizing_each_conversation(build_tokenizer):
    tokenizer = build_tokenizer(TEMPLATE_PRESETS["chatml"], None, "<|im_end|>", ["<|im_start|>"])
    encoded, _ = encode_one(
        tokenizer, HI, ("Yes",), goal=GOAL, placement="system", max_length=200, max_prompt_length=100
    )
    messages = [*place_goal(HI, GOAL, "system"), Message("assistant", "Yes")]
    whole = tokenizer.apply_chat_template([dataclasses.asdict(m) for m in messages], return_dict=False)
    end = len(whole) - whole[::-1].index(end_of_turn(tokenizer))
    assert [*encoded.prompt, *encoded.responses[0]] == whole[:end]
