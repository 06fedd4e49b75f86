"""Truncation: the goal, the end of the instruction and every response survive; what was cut is counted."""

import dataclasses
import json

import numpy as np
import pytest

from rapo_jax.chat.encoding import MIN_INSTRUCTION_TOKENS, Item, encode_all
from rapo_jax.chat.templates import TEMPLATE_PRESETS, end_of_turn, place_goal, shows
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
        "ends_removed": 0,
        "not_written": {},
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


# Templates that rewrite what they are given.

CUTS_REASONING = (
    "{% for m in messages %}{{ '<' + m.role[0] + '>' + m.content.split('</think>')[-1] | trim + '<e>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)
SPACES_REASONING = CUTS_REASONING.replace(".split('</think>')[-1]", ".replace('</think>', '\n</think>\n\n')")
SHORTENS = CUTS_REASONING.replace(".split('</think>')[-1]", "[:5]")


@pytest.fixture(scope="module")
def with_template(build_tokenizer):
    return lambda template: build_tokenizer(template, "<bos>", "<eos>", ["<s>", "<u>", "<a>", "<e>"])


@pytest.mark.parametrize(
    ("template", "written"),
    [(CUTS_REASONING, "'I am well<e>'"), (SHORTENS.replace("[:5]", "[:20]"), "'<think>So?</think>I<e>'")],
)
def test_a_template_that_rewrites_a_response_is_refused_with_the_first_row(with_template, template, written):
    """When this fails, a model trains without the reasoning that its data holds, and reports 0 tokens cut."""
    tokenizer, response = with_template(template), "<think>So?</think>I am well"
    items = [Item(7, HI, None, ("Yes",)), Item(8, HI, GOAL, (response, "No")), Item(8, HI, None, ("No", response))]
    with pytest.raises(UserError) as caught:
        encode_all(tokenizer, items, placement="user", max_length=80, max_prompt_length=40)
    assert str(caught.value) == (
        f"the chat template changes 2 of 3 preferences, of 1 row (the first is row 8: it writes {written} for "
        f"{response!r}); supply a template that keeps them with data.chat_template=plain|chatml|zephyr|deepseek-r1|FILE.jinja, or "
        "drop these rows with data.bad_rows=drop."
    )
    encoded, report = encode_all(
        tokenizer, items, placement="user", max_length=80, max_prompt_length=40, drop_unfaithful=True
    )
    assert [one is None for one in encoded] == [False, True, True]
    assert report.dropped == {"response_rewritten": 2}


def test_white_space_is_the_templates_own(with_template):
    encoded, _ = encode_one(
        with_template(SPACES_REASONING), HI, (" <think>So?</think>Well \n",), max_length=80, max_prompt_length=40
    )
    assert with_template(SPACES_REASONING).decode(encoded.responses[0]) == "<think>So?\n</think>\n\nWell<e>"


def test_a_response_may_begin_in_the_header_that_the_template_ends_a_prompt_with(with_template):
    """When this fails, reasoning models whose prompts end with <think> cannot be trained on their own answers."""
    opens = (
        "{% for m in messages %}{{ '<' + m.role[0] + '>' + m.content + '<e>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<a><think>\\n' }}{% endif %}"
    )
    encoded, _ = encode_one(
        with_template(opens), HI, ("<think>\nSo?</think>Well",), max_length=80, max_prompt_length=40
    )
    assert texts(with_template(opens), encoded) == ("<u>Hi<e><a><think>\n", ["So?</think>Well<e>"])
    assert shows("So?", "<think>So?", prompt="Hi<think>")
    assert not shows("<e>", "<think>", prompt="Hi<think>")  # the prompt's own words


def test_reasoning_of_earlier_turns_may_be_cut_as_the_model_is_used(with_template):
    tokenizer = with_template(CUTS_REASONING)
    prompt = conversation("Hi", "<think>Hm</think>Hello", "More")
    encoded, _ = encode_one(tokenizer, prompt, ("Yes",), max_length=80, max_prompt_length=60)
    assert texts(tokenizer, encoded) == ("<u>Hi<e><a>Hello<e><u>More<e><a>", ["Yes<e>"])


@pytest.mark.parametrize("end", ["<e>", "<e>\n", "<e><eos>\n", "<eos> <e>\n\n", "<e>\n<e>\n"])
def test_ends_of_turns_that_the_data_holds_already_are_written_once_and_counted(tokenizer, end):
    """When this fails, data that was rendered once trains an end token in the middle of every response."""
    prompt = conversation("Hi", "Hello" + end, "More")
    encoded, report = encode_one(tokenizer, prompt, ("AB" + end, "C\n"), max_length=90, max_prompt_length=60)
    assert texts(tokenizer, encoded) == ("<bos><u>Hi<e><a>Hello<e><u>More<e><a>", ["AB<e>", "C\n<e>"])
    assert report.ends_removed == 2


# What a turn holds besides its text.

TOOLS = (
    "{% for tool in tools or [] %}{{ '{' + tool.name + '}' }}{% endfor %}{% for m in messages %}{{ '<' + m.role[0] + '>' }}"
    "{% if m.reasoning_content %}{{ '(' + m.reasoning_content + ')' }}{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ '=' + call.function.name }}{% endfor %}{{ '<e>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)
CALL = json.dumps({"tool_calls": [{"function": {"name": "add"}}], "name": "Ann"})
WITH_A_TOOL = (*HI, Message("assistant", "", CALL), Message("tool", "4"))
REASONS = json.dumps({"reasoning_content": "2+2"})


def test_tools_tool_calls_and_reasoning_reach_a_template_that_writes_them(with_template):
    """When this fails, a model is trained on answers to tools whose calls it never sees."""
    tokenizer = with_template(TOOLS)
    item = Item(3, WITH_A_TOOL, None, ("Four", "Five"), (REASONS, ""), json.dumps([{"name": "add"}]))
    encoded, report = encode_all(tokenizer, [item, item], placement="user", max_length=90, max_prompt_length=60)
    assert texts(tokenizer, encoded[0]) == ("{add}<u>Hi<e><a>=add<e><t>4<e><a>", ["(2+2)Four<e>", "Five<e>"])
    assert report.not_written == {"name": 1}  # of one row, twice


def test_a_template_that_leaves_out_tool_calls_is_refused_and_what_else_it_leaves_out_is_counted(with_template):
    """When this fails, keys inside messages are dropped without a word."""
    tokenizer = with_template(TOOLS.replace("m.tool_calls or ", "").replace("m.reasoning_content", "false"))
    with pytest.raises(UserError, match=r"of 1 row .* row 3: it leaves out tool_calls"):
        encode_one_item(tokenizer, Item(3, WITH_A_TOOL, None, ("Four",)))
    prompt = (Message("user", "Hi", json.dumps({"name": "Ann"})),)
    encoded, report = encode_one_item(
        tokenizer, Item(3, prompt, None, ("Four",), (REASONS,), json.dumps([{"name": "b"}]))
    )
    assert texts(tokenizer, encoded) == ("{b}<u>Hi<e><a>", ["Four<e>"])
    assert report.not_written == {"name": 1, "reasoning_content": 1}


def encode_one_item(tokenizer, item):
    (encoded,), report = encode_all(tokenizer, [item], placement="user", max_length=90, max_prompt_length=60)
    return encoded, report


def test_an_exchange_with_tools_is_cut_as_a_whole(with_template):
    tokenizer = with_template(TOOLS)
    prompt = (*WITH_A_TOOL, Message("assistant", "A" * 20), Message("user", "More"))
    (encoded,), _ = encode_all(
        tokenizer, [Item(1, prompt, GOAL, ("AB",))], placement="user", max_length=30, max_prompt_length=25
    )
    assert texts(tokenizer, encoded)[0] == "<u>Score: 9.\n\nMore<e><a>"
    assert encoded.turns_cut == 4


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
