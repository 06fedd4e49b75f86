"""The chat templates of today's families: what a model reads in training is what its template renders, for every one of them."""

import copy
import datetime
import json

import pytest

from rapo_jax.chat.dates import pin
from rapo_jax.chat.encoding import Item, encode_all
from rapo_jax.chat.options import with_options
from rapo_jax.chat.templates import TEMPLATE_PRESETS, resolve_placement, written_before_answers
from rapo_jax.errors import UserError
from rapo_jax.messages import Message
from tests.tiny.published_templates import PUBLISHED, published

SYSTEM, USER, BOT = (lambda text, role=role: Message(role, text) for role in ("system", "user", "assistant"))
DAY = "2026-01-02"
HI = (USER("Hi"),)
TALK = (USER("Hi"), BOT("Hello"), USER("More"))
THOUGHT = "<think>\nSo?\n</think>\n\nYes"
OPENED = ("deepseek-r1", "olmo-3-think")  # begin every answer with a thought, which a response has to bring


@pytest.fixture(scope="module")
def tokenizers():
    """Every published template's tokenizer, on one day."""
    every = {name: copy.copy(published(name)) for name in PUBLISHED}
    for tokenizer in every.values():
        if isinstance(tokenizer.chat_template, dict):
            tokenizer.chat_template = tokenizer.chat_template["default"]
        tokenizer.chat_template = pin(tokenizer.chat_template, DAY)
    return every


@pytest.fixture
def chosen(tokenizers, monkeypatch):
    """A function (name, options) -> the tokenizer, whose template has these options."""

    def choose(name, **options):
        template = with_options(tokenizers[name].chat_template, options)
        monkeypatch.setattr(tokenizers[name], "chat_template", template)
        return tokenizers[name]

    return choose


def encode(tokenizer, prompt, *responses, goal=None, more=(), tools="", placement=None):
    item = Item(1, prompt, goal, responses, more, tools)
    placement = placement or resolve_placement(tokenizer, "auto")
    encoded, report = encode_all(tokenizer, [item], placement=placement, max_length=4000, max_prompt_length=3000)
    return encoded[0], report


def shown(tokenizer, prompt, response, **how):
    """What the model reads; | marks where the prompt ends."""
    encoded, _ = encode(tokenizer, prompt, response, **how)
    return f"{tokenizer.decode(encoded.prompt)}|{tokenizer.decode(encoded.responses[0])}"


def rendered(tokenizer, turns, **variables):
    """The template itself, without any code of ours."""
    dicts = [turn.as_dict() for turn in turns]
    return tokenizer.apply_chat_template(dicts, tokenize=False, **variables)


# Where the goal stands.

SMOL = "\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 02 January 2026\nReasoning Mode: /{}"
SMOL += "\n\n## Custom Instructions\n\nGOAL\n\n"
DATES = "Cutting Knowledge Date: December 2023\nToday Date: {}\n\n"
QWEN_GOAL = "<|im_start|>system\nGOAL<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
LLAMA_GOAL = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{}GOAL<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n|Yes<|eot_id|>"
)
NO_FUNCTIONS = " You do not currently have access to any functions. <functions></functions>"
GOALS = {
    "qwen2.5": ("system", QWEN_GOAL + "|Yes<|im_end|>"),
    "qwen3": ("system", QWEN_GOAL + "|<think>\n\n</think>\n\nYes<|im_end|>"),
    "qwen3-instruct-2507": ("system", QWEN_GOAL + "|Yes<|im_end|>"),
    "qwen3-thinking-2507": ("system", QWEN_GOAL + "<think>\n|\n</think>\n\nYes<|im_end|>"),
    "gemma": ("user", "<bos><start_of_turn>user\nGOAL\n\nHi<end_of_turn>\n<start_of_turn>model\n|Yes<end_of_turn>"),
    "gemma-3": ("system", "<bos><start_of_turn>user\nGOAL\n\nHi<end_of_turn>\n<start_of_turn>model\n|Yes<end_of_turn>"),
    "olmo-2": ("system", "<|endoftext|><|system|>\nGOAL\n<|user|>\nHi\n<|assistant|>\n|Yes<|endoftext|>"),
    "olmo-3-instruct": ("system", QWEN_GOAL.replace("GOAL", "GOAL" + NO_FUNCTIONS) + "|Yes<|im_end|>"),
    "phi-3": ("system", "<|system|>\nGOAL<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n|Yes<|end|>"),
    "phi-3-medium": ("user", "<|user|>\nGOAL\n\nHi<|end|>\n<|assistant|>\n|Yes<|end|>"),
    "phi-4": (
        "system",
        "<|im_start|>system<|im_sep|>GOAL<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|>"
        "<|im_start|>assistant<|im_sep|>|Yes<|im_end|>",
    ),
    "phi-4-mini": ("system", "<|system|>GOAL<|end|><|user|>Hi<|end|><|assistant|>|Yes<|end|>"),
    "granite-3": (
        "system",
        "<|start_of_role|>system<|end_of_role|>GOAL<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>Hi<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>|Yes<|end_of_text|>",
    ),
    "smollm3": ("system", QWEN_GOAL.replace("\nGOAL", SMOL.format("think")) + "|Yes<|im_end|>"),
    "mistral-0.1": ("user", "<s>[INST] GOAL\n\nHi[/INST]| Yes</s>"),
    "mistral-0.2": ("system", "<s>[INST] GOAL\n\nHi[/INST]| Yes</s>"),
    "mistral-0.3": ("user", "<s>[INST] GOAL\n\nHi[/INST]| Yes</s>"),
    "mistral-nemo": ("user", "<s>[INST]GOAL\n\nHi[/INST]|Yes</s>"),
    "mistral-small": ("system", "<s>[SYSTEM_PROMPT]GOAL[/SYSTEM_PROMPT][INST]Hi[/INST]|Yes</s>"),
    "llama-3.1": ("system", LLAMA_GOAL.format(DATES.format("26 Jul 2024"))),
    "llama-3.2": ("system", LLAMA_GOAL.format(DATES.format("02 Jan 2026"))),
    "deepseek-r1": ("system", None),
    "deepseek-r1-first": (
        "system",
        "<\uff5cbegin▁of▁sentence\uff5c>GOAL<\uff5cUser\uff5c>Hi<\uff5cAssistant\uff5c>|Yes<\uff5cend▁of▁sentence\uff5c>",
    ),
    "olmo-3-think": ("system", None),
    "hermes": ("system", "<|begin_of_text|>" + QWEN_GOAL + "|Yes<|im_end|>"),
    "zephyr": ("system", "<|system|>\nGOAL</s>\n<|user|>\nHi</s>\n<|assistant|>\n|Yes</s>"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_a_model_of_each_family_reads_and_where_its_goal_stands(tokenizers, name):
    placement, text = GOALS[name]
    assert resolve_placement(tokenizers[name], "auto") == placement
    if text is not None:
        assert shown(tokenizers[name], HI, "Yes", goal="GOAL") == text


@pytest.mark.parametrize("name", PUBLISHED)
def test_prompt_and_response_are_what_the_template_renders(tokenizers, name):
    """When this fails, generation starts from another text than the one that the response followed in training."""
    tokenizer, response = tokenizers[name], THOUGHT if name in OPENED else "Yes"
    if name == "deepseek-r1":
        return  # its own template renders no response behind its prompt
    for prompt in (HI, TALK):
        encoded, report = encode(tokenizer, prompt, response)
        text = tokenizer.decode(encoded.prompt)
        assert text == rendered(tokenizer, prompt, add_generation_prompt=True)
        whole = text + tokenizer.decode(encoded.responses[0])
        assert rendered(tokenizer, (*prompt, BOT(response))).startswith(whole)
        assert (report.not_written, report.dropped) == ({}, {})


@pytest.mark.parametrize("name", ["gemma", "gemma-3", "mistral-0.1", "mistral-0.2", "mistral-0.3", "mistral-nemo"])
def test_templates_that_want_turns_to_alternate_say_so(tokenizers, name):
    with pytest.raises(
        UserError, match=r"row 1: the chat template (refuses it: .*(alternate|supported|not support)|writes)"
    ):
        encode(tokenizers[name], (SYSTEM("S"), SYSTEM("S"), USER("Hi")), "Yes")


@pytest.mark.parametrize("name", ["mistral-0.3", "mistral-nemo"])
def test_a_system_turn_that_wanders_to_the_last_question_is_refused(tokenizers, name):
    """When this fails, a prompt loses its system turn as soon as it is answered."""
    with pytest.raises(
        UserError, match=r"row 1: the chat template writes the prompt differently once a response follows"
    ):
        encode(tokenizers[name], (SYSTEM("S"), USER("Hi")), "Yes")


# Thoughts.


@pytest.mark.parametrize(
    ("name", "prompt_ends", "response"),
    [
        ("qwen3", "assistant\n", THOUGHT + "<|im_end|>"),
        ("qwen3-thinking-2507", "assistant\n<think>\n", "So?\n</think>\n\nYes<|im_end|>"),
        ("qwen3-instruct-2507", "assistant\n", THOUGHT + "<|im_end|>"),
        ("olmo-3-think", "assistant\n<think>", "\nSo?\n</think>\n\nYes<|im_end|>"),
        ("smollm3", "assistant\n", THOUGHT + "<|im_end|>"),
        ("granite-3", "assistant<|end_of_role|>", THOUGHT + "<|end_of_text|>"),
    ],
)
def test_thoughts_are_kept_where_the_template_writes_them(tokenizers, name, prompt_ends, response):
    prompt, _, rest = shown(tokenizers[name], HI, THOUGHT).partition("|" + response[:3])
    assert prompt.endswith(prompt_ends) and response[:3] + rest == response


def test_thoughts_with_a_key_of_their_own_are_written_like_those_in_the_text(tokenizers):
    more = (json.dumps({"reasoning_content": "So?"}),)
    assert shown(tokenizers["qwen3"], HI, "Yes", more=more) == shown(tokenizers["qwen3"], HI, THOUGHT)


def test_a_template_that_cuts_thoughts_off_is_refused(tokenizers):
    """When this fails, a distilled R1 is trained on answers without the reasoning that its data holds."""
    for response in (THOUGHT, "Yes"):
        with pytest.raises(UserError) as caught:
            encode(tokenizers["deepseek-r1"], HI, response)
        said = str(caught.value)
        assert said.startswith(
            "row 1: the chat template begins an answer with '<think>\\n', and this response otherwise: ..."
        )
        assert said.endswith("with data.chat_template=plain|chatml|zephyr|deepseek-r1|FILE.jinja.")
    with pytest.raises(
        UserError, match=r"it writes '\\n\\nYes.*' for '<think>.*drop these rows with data.bad_rows=drop"
    ):
        encode(tokenizers["deepseek-r1-first"], HI, THOUGHT)


def test_a_template_that_begins_with_a_thought_asks_for_responses_that_do(tokenizers):
    with pytest.raises(
        UserError, match=r"begins an answer with '<think>', and this response otherwise: .*give responses that"
    ):
        encode(tokenizers["olmo-3-think"], HI, "Yes")


def test_the_preset_for_r1_keeps_thoughts_and_begins_them_as_its_own_template_does(chosen):
    tokenizer = chosen("deepseek-r1")
    own = rendered(tokenizer, TALK, add_generation_prompt=True)
    tokenizer.chat_template = preset = TEMPLATE_PRESETS["deepseek-r1"]
    assert rendered(tokenizer, TALK, add_generation_prompt=True) == own
    start = "<\uff5cbegin▁of▁sentence\uff5c>S<\uff5cUser\uff5c>Hi<\uff5cAssistant\uff5c><think>\n"
    prompt = (SYSTEM("S"), USER("Hi"))
    assert shown(tokenizer, prompt, THOUGHT) == f"{start}|So?\n</think>\n\nYes<\uff5cend▁of▁sentence\uff5c>"
    assert shown(tokenizer, prompt, "Yes") == f"{start}|\n</think>\n\nYes<\uff5cend▁of▁sentence\uff5c>"
    more = (json.dumps({"reasoning_content": "So?"}),)
    assert shown(tokenizer, prompt, "Yes", more=more) == shown(tokenizer, prompt, THOUGHT)
    tokenizer.chat_template = with_options(preset, {"enable_thinking": False})
    assert shown(tokenizer, prompt, "Yes") == f"{start}\n</think>\n\n|Yes<\uff5cend▁of▁sentence\uff5c>"


@pytest.mark.parametrize("name", ["qwen3", "qwen3-thinking-2507", "deepseek-r1-first"])
@pytest.mark.parametrize(
    "turn", [BOT("<think>Hm.</think>Hello"), Message("assistant", "Hello", json.dumps({"reasoning_content": "Hm."}))]
)
def test_thoughts_of_earlier_turns_that_a_template_leaves_out_are_counted(tokenizers, name, turn):
    """When this fails, data loses what its earlier answers thought without a word."""
    encoded, report = encode(tokenizers[name], (USER("Hi"), turn, USER("More")), "Yes")
    assert "Hm." not in tokenizers[name].decode(encoded.prompt)
    key = "reasoning_content" if turn.more else "thoughts of earlier turns"
    assert report.not_written == {key: 1}


def test_earlier_thoughts_are_counted_also_where_those_of_the_response_are_written(tokenizers):
    thought = json.dumps({"reasoning_content": "Hm."})
    prompt = (USER("Hi"), Message("assistant", "Hello", thought), USER("More"))
    _, report = encode(tokenizers["qwen3"], prompt, "Yes", more=(thought,))
    assert report.not_written == {"thoughts of earlier turns": 1}


def test_a_system_turn_that_a_template_leaves_out_is_counted(tokenizers):
    """When this fails, rows of Phi-3-medium lose their system turns without a word."""
    _, report = encode(tokenizers["phi-3-medium"], (SYSTEM("Be brief"), *TALK), "Yes")
    assert report.not_written == {"text of the system turn": 1}
    _, report = encode(tokenizers["phi-3"], (SYSTEM("Be brief"), *TALK), "Yes", goal="GOAL")
    assert report.not_written == {}


@pytest.mark.parametrize(
    ("name", "options", "written"),
    [
        ("qwen3", {}, "<think>\n\n</think>\n\n"),
        ("qwen3", {"enable_thinking": False}, ""),
        ("qwen3-thinking-2507", {}, "\n</think>\n\n"),
        ("smollm3", {}, ""),
        ("mistral-0.3", {}, " "),
        ("deepseek-r1", {}, ""),
    ],
)
def test_what_a_template_writes_before_a_response_is_known(chosen, name, options, written):
    assert written_before_answers(chosen(name, **options)) == written


# Options.


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("qwen3", {"enable_thinking": False}, QWEN_GOAL + "<think>\n\n</think>\n\n|Yes<|im_end|>"),
        ("qwen3", {"enable_thinking": True}, QWEN_GOAL + "|<think>\n\n</think>\n\nYes<|im_end|>"),
        (
            "smollm3",
            {"enable_thinking": False},
            QWEN_GOAL.replace("\nGOAL", SMOL.format("no_think")) + "<think>\n\n</think>\n|Yes<|im_end|>",
        ),
        ("llama-3.1", {"date_string": "1 May 2020"}, LLAMA_GOAL.format(DATES.format("1 May 2020"))),
        ("llama-3.2", {"date_string": "1 May 2020"}, LLAMA_GOAL.format(DATES.format("1 May 2020"))),
    ],
)
def test_options_are_read_by_the_template_in_training(chosen, name, options, text):
    assert shown(chosen(name, **options), HI, "Yes", goal="GOAL") == text


def test_a_switch_in_the_system_turn_wins_as_in_the_template(chosen):
    prompt = (SYSTEM("Be brief /no_think"), USER("Hi"))
    assert shown(chosen("smollm3"), prompt, "Yes").endswith("assistant\n<think>\n\n</think>\n|Yes<|im_end|>")


def test_granites_options_change_what_its_template_says(chosen):
    head = "<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.\nToday's Date: January 02, 2026.\n"
    tokenizer = chosen("granite-3", thinking=True)
    assert shown(tokenizer, HI, "Yes").startswith(
        f"{head}You are a default. Think first, between <think></think>.<|end_of"
    )
    with_document = {"documents": [{"doc_id": 1, "text": "A fact."}], "thinking": None}
    text = shown(chosen("granite-3", **with_document), HI, "Yes")
    assert text.startswith(f"{head}You are a default. Use documents.<|end_of_text|>\n<|start_of_role|>document ")
    with pytest.raises(
        UserError, match=r"writes the prompt differently once a response follows: .*\"length\": \"short\""
    ):
        encode(chosen("granite-3", controls={"length": "short"}), HI, "Yes")


def test_a_thought_behind_a_switch_that_closes_thoughts_is_refused(chosen):
    with pytest.raises(UserError, match=r"begins an answer with '<think>\\n\\n</think>\\n\\n', and this response otherwise: "
                       r".*; take the thoughts out of the data or the switch out of data.template_options"):  # fmt: skip
        encode(chosen("qwen3", enable_thinking=False), HI, THOUGHT)


# Tools.

CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
TOOLS = json.dumps([{"type": "function", "function": {"name": "add"}}])
WITH_A_TOOL = (
    USER("2 + 2?"),
    Message("assistant", "", json.dumps({"tool_calls": [CALL]})),
    Message("tool", "4", json.dumps({"tool_call_id": "abcdefghi"})),
)


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "qwen3-instruct-2507", "qwen3-thinking-2507", "llama-3.1", "llama-3.2",
                                  "mistral-0.3", "mistral-nemo"])  # fmt: skip
def test_conversations_with_tools_are_written_by_templates_that_know_them(tokenizers, name):
    encoded, report = encode(tokenizers[name], WITH_A_TOOL, "Four", tools=TOOLS)
    text = tokenizers[name].decode(encoded.prompt)
    assert text.count('"add"') == 2 and '"a": 2' in text and "4" in text
    assert report.not_written.keys() <= {"tool_call_id"}
    given = rendered(tokenizers[name], WITH_A_TOOL, tools=json.loads(TOOLS), add_generation_prompt=True)
    assert text == given


@pytest.mark.parametrize("name", ["smollm3", "granite-3", "phi-4-mini", "gemma-3"])
def test_tool_calls_that_a_template_leaves_out_are_refused(tokenizers, name):
    with pytest.raises(UserError, match=r"it leaves out tool_calls|the chat template refuses it"):
        encode(tokenizers[name], WITH_A_TOOL, "Four", tools=TOOLS)


@pytest.mark.parametrize("name", ["smollm3", "granite-3"])
def test_tools_alone_are_written_by_templates_that_introduce_them(tokenizers, name):
    encoded, report = encode(tokenizers[name], HI, "Four", tools=TOOLS)
    assert tokenizers[name].decode(encoded.prompt).count("add") == 1
    assert report.not_written == {}


def test_tools_in_the_system_turn_are_those_of_phi(tokenizers):
    prompt = (Message("system", "S", json.dumps({"tools": "[add]"})), USER("Hi"))
    assert shown(tokenizers["phi-4-mini"], prompt, "Yes").startswith("<|system|>S<|tool|>[add]<|/tool|><|end|><|user|>")
    _, report = encode(tokenizers["phi-4-mini"], HI, "Yes", tools=TOOLS)
    assert report.not_written == {"tools": 1}


def test_the_date_is_that_of_the_run(tokenizers):
    """When this fails, tokens of tomorrow differ from those of today."""
    for name, format in (("llama-3.2", "%d %b %Y"), ("granite-3", "%B %d, %Y"), ("smollm3", "%d %B %Y")):
        text = shown(tokenizers[name], HI, "Yes")
        assert datetime.date.fromisoformat(DAY).strftime(format) in text
    assert "The current date is 2026-01-02." in shown(tokenizers["mistral-small"], HI, "Yes")
