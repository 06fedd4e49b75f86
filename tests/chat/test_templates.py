"""Where the goal is written, and where a response begins and ends."""

import functools
import json
import shutil

import pytest
from tokenizers import normalizers

from rapo_jax.chat.encoding import Item, encode_all
from rapo_jax.chat.templates import (
    TEMPLATE_PRESETS,
    chat_format,
    end_of_turn,
    load_tokenizer,
    place_goal,
    render_texts,
    resolve_placement,
)
from rapo_jax.errors import UserError
from rapo_jax.messages import Message
from rapo_jax.relabel import goal_text, relabel

SYSTEM, USER, BOT = (lambda text, role=role: Message(role, text) for role in ("system", "user", "assistant"))


def encode(tokenizer, *items, placement, max_length=4000, max_prompt_length=3000):
    return encode_all(
        tokenizer, list(items), placement=placement, max_length=max_length, max_prompt_length=max_prompt_length
    )


def strings(tokenizer, encoded):
    """What the model reads, once for each response; | marks where the prompt ends."""
    return [f"{tokenizer.decode(encoded.prompt)}|{tokenizer.decode(response)}" for response in encoded.responses]


# Placing the goal.


def test_a_goal_becomes_a_system_turn_or_heads_the_one_that_is_there():
    assert place_goal([USER("Hi")], "GOAL", "system") == (SYSTEM("GOAL"), USER("Hi"))
    assert place_goal([SYSTEM("S"), USER("Hi")], "GOAL", "system") == (SYSTEM("GOAL\n\nS"), USER("Hi"))


def test_a_goal_heads_the_first_user_turn_only():
    placed = place_goal([SYSTEM("S"), USER("Hi"), BOT("A"), USER("More")], "GOAL", "user")
    assert placed == (SYSTEM("S"), USER("GOAL\n\nHi"), BOT("A"), USER("More"))


def test_without_a_goal_nothing_changes_and_nothing_is_ever_changed_in_place():
    messages = [USER("Hi")]
    assert place_goal(messages, None, "system") == (USER("Hi"),)
    place_goal(messages, "GOAL", "user")
    assert messages == [USER("Hi")]


@pytest.mark.parametrize(
    ("name", "placement"),
    [("llama3", "system"), ("qwen", "system"), ("zephyr", "system"), ("mistral", "user"), ("gemma", "user")],
)
def test_auto_asks_the_template_whether_it_takes_a_system_turn(tokenizers, name, placement):
    assert resolve_placement(tokenizers[name], "auto") == placement
    assert resolve_placement(tokenizers[name], "user") == "user"


def test_a_template_that_drops_the_system_turn_gets_the_goal_in_the_user_turn(build_tokenizer):
    drops = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    shows_it_only_before_an_answer = (
        "{% for m in messages if m.role != 'system' %}"
        "{% if loop.last and m.role == 'user' and messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    for template in (drops, shows_it_only_before_an_answer):
        assert resolve_placement(build_tokenizer(template, None, "</s>", []), "auto") == "user"


def test_a_system_goal_for_a_template_without_system_turns_is_refused(tokenizers):
    with pytest.raises(UserError, match=r"refuses or loses a system turn; use relabel.placement=user"):
        resolve_placement(tokenizers["gemma"], "system")


# The four strings of a pair: each goal with both responses, in the order of preference.


def four_strings(tokenizer, placement):
    prompt, responses = (USER("Hi"),), ("Good", "Bad")
    items = [
        Item(1, prompt, f"GOAL {preference.goal:g}", tuple(responses[i] for i in preference.order))
        for preference in relabel((8, 3.5))
    ]
    encoded, _ = encode(tokenizer, *items, placement=placement)
    return [string for one in encoded for string in strings(tokenizer, one)]


def test_the_four_strings_of_a_pair_with_the_goal_in_the_system_turn(tokenizers):
    at_8 = "<|im_start|>system\nGOAL 8<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n|"
    at_3 = "<|im_start|>system\nGOAL 3.5<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n|"
    assert four_strings(tokenizers["qwen"], "system") == [
        at_8 + "Good<|im_end|>",
        at_8 + "Bad<|im_end|>",
        at_3 + "Bad<|im_end|>",
        at_3 + "Good<|im_end|>",
    ]


def test_the_four_strings_of_a_pair_with_the_goal_in_the_user_turn(tokenizers):
    at_8 = "<bos><start_of_turn>user\nGOAL 8\n\nHi<end_of_turn>\n<start_of_turn>model\n|"
    at_3 = "<bos><start_of_turn>user\nGOAL 3.5\n\nHi<end_of_turn>\n<start_of_turn>model\n|"
    assert four_strings(tokenizers["gemma"], "user") == [
        at_8 + "Good<end_of_turn>",
        at_8 + "Bad<end_of_turn>",
        at_3 + "Bad<end_of_turn>",
        at_3 + "Good<end_of_turn>",
    ]


def test_the_sentence_of_the_paper_is_what_the_model_reads(tokenizers):
    encoded, _ = encode(tokenizers["mistral"], Item(1, (USER("Hi"),), goal_text(9), ("Good",)), placement="user")
    assert strings(tokenizers["mistral"], encoded[0]) == [
        "<s>[INST] You are an assistant that generates responses for the instruction while implicitly achieving the "
        "following target score (on a scale of 1-10, where 1 is lowest and 10 is highest): Overall score: 9."
        "\n\nHi[/INST]| Good</s>"
    ]


# Where a response begins and ends.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3", "<|bos|><|head|>user<|body|>\n\nHi<|eot|><|head|>assistant<|body|>\n\n|Yes<|eot|>"),
        (
            "qwen",
            "<|im_start|>system\nYou are a default.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n|Yes<|im_end|>",
        ),
        ("zephyr", "<|user|>\nHi</s>\n<|assistant|>\n|Yes</s>"),
        ("mistral", "<s>[INST] Hi[/INST]| Yes</s>"),
        ("gemma", "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n|Yes<end_of_turn>"),
    ],
)
def test_every_template_gives_one_bos_and_one_end_of_turn(tokenizers, name, expected):
    tokenizer = tokenizers[name]
    encoded, _ = encode(tokenizer, Item(1, (USER("Hi"),), None, ("Yes",)), placement="user")
    assert strings(tokenizer, encoded[0]) == [expected]
    assert encoded[0].responses[0][-1] == end_of_turn(tokenizer)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("plain", "<s>Hi\n\nHello</s>\n\nMore\n\n|Yes</s>"),
        ("zephyr", "<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n<|user|>\nMore</s>\n<|assistant|>\n|Yes</s>"),
        (
            "chatml",
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nMore<|im_end|>\n"
            "<|im_start|>assistant\n|Yes<|im_end|></s>",
        ),
    ],
)
def test_every_preset_ends_a_response_with_eos_where_it_has_no_token_of_its_own(build_tokenizer, preset, expected):
    tokenizer = build_tokenizer(TEMPLATE_PRESETS[preset], "<s>", "</s>", [])
    encoded, _ = encode(tokenizer, Item(1, (USER("Hi"), BOT("Hello"), USER("More")), None, ("Yes",)), placement="user")
    assert strings(tokenizer, encoded[0]) == [expected]


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token + bos_token }}{% for m in messages %}{{ m.content + eos_token + eos_token }}{% endfor %}",
        "{{ bos_token }}{% for m in messages %}{{ m.content + eos_token + '\n' + eos_token }}{% endfor %}",
        "{{ bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}",
    ],
)
def test_doubled_bos_and_eos_become_one(build_tokenizer, template):
    tokenizer = build_tokenizer(template, "<s>", "</s>", [])
    encoded, _ = encode(tokenizer, Item(1, (USER("<s>Hi"),), None, ("Yes</s>",)), placement="user")
    (string,) = strings(tokenizer, encoded[0])
    assert string.startswith("<s>Hi</s>")
    assert string.endswith("|Yes</s>")


def test_a_special_token_inside_a_response_does_not_end_it(tokenizers):
    encoded, _ = encode(
        tokenizers["qwen"], Item(1, (USER("Hi"),), None, ("Write <|im_end|>\nthen stop",)), placement="user"
    )
    assert strings(tokenizers["qwen"], encoded[0])[0].endswith("|Write <|im_end|>\nthen stop<|im_end|>")


def test_a_token_that_merges_across_the_boundary_is_split_there_and_counted(build_tokenizer):
    tokenizer = build_tokenizer(TEMPLATE_PRESETS["plain"], "<s>", "</s>", [])
    alone, together = (tokenizer("Hi\n\n" + text).input_ids for text in ("", "Yes"))
    assert together[: len(alone)] != alone
    encoded, report = encode(tokenizer, Item(1, (USER("Hi"),), None, ("Yes", "No")), placement="user")
    assert encoded[0].prompt.tolist() == tokenizer("<s>Hi\n\n").input_ids
    assert strings(tokenizer, encoded[0]) == ["<s>Hi\n\n|Yes</s>", "<s>Hi\n\n|No</s>"]
    assert (report.boundary_retokenized, encoded[0].boundary_retokenized) == (2, 2)


def test_sentencepiece_adds_no_space_to_a_response_tokenized_separately(sentencepiece_like):
    tokenizer = sentencepiece_like
    encoded, report = encode(tokenizer, Item(1, (USER("tell"),), None, ("no", "lies")), placement="user")
    assert tokenizer.convert_ids_to_tokens(encoded[0].prompt) == ["<s>", "▁", "t", "e", "l", "l", ":"]
    assert [tokenizer.convert_ids_to_tokens(response) for response in encoded[0].responses] == [
        ["n", "o", "</s>"],
        ["l", "i", "e", "s", "</s>"],
    ]
    assert report.boundary_retokenized == 1  # "tell:no" has the token ":n"


def test_a_response_that_cannot_be_told_from_the_prompt_is_an_error(build_tokenizer):
    tokenizer = build_tokenizer("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}", "<s>", "</s>", [])
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    with pytest.raises(UserError) as caught:
        encode(tokenizer, Item(7, (USER("cafe"),), None, ("\u0301 latte",)), placement="user")
    assert (
        "row 7: the response cannot be separated from the prompt: after the prompt's last characters '<s>cafe'"
        in str(caught.value)
    )


def test_a_template_that_rewrites_the_prompt_once_it_is_answered_is_an_error(build_tokenizer):
    template = (
        "{% if messages | length == 1 %}{{ 'Question: ' }}{% else %}{{ 'Dialogue: ' }}{% endif %}"
        "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}"
    )
    tokenizer = build_tokenizer(template, "<s>", "</s>", [])
    with pytest.raises(UserError) as caught:
        encode(tokenizer, Item(12, (USER("Hi"),), None, ("Yes",)), placement="user")
    assert str(caught.value) == (
        "row 12: the chat template writes the prompt differently once a response follows: the prompt has "
        "...'Question: Hi\\n' where the conversation has ...'Dialogue: Hi\\nYes\\n'; supply a template that does not, "
        "with data.chat_template=plain|chatml|zephyr|deepseek-r1|FILE.jinja."
    )


def test_a_template_that_refuses_a_row_is_named_with_the_row(tokenizers):
    with pytest.raises(UserError, match=r"row 3: the chat template refuses it: System role not supported; supply"):
        encode(tokenizers["gemma"], Item(3, (SYSTEM("S"), USER("Hi")), None, ("Yes",)), placement="user")


def test_a_template_without_the_assistants_turn_or_without_any_end_is_an_error(build_tokenizer):
    silent = build_tokenizer("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", None, "</s>", [])
    with pytest.raises(UserError, match="does not show the assistant's turn"):
        end_of_turn(silent)
    endless = build_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}", None, None, [])
    with pytest.raises(UserError, match="the tokenizer has no eos_token"):
        end_of_turn(endless)


def test_a_template_that_is_not_jinja_is_an_error(build_tokenizer):
    with pytest.raises(UserError, match="the chat template cannot be rendered: unexpected '}'; supply another with"):
        end_of_turn(build_tokenizer("{{ messages }", None, "</s>", []))


# Loading.


@pytest.fixture
def saved(build_tokenizer, tmp_path):
    build_tokenizer(None, "<s>", "</s>", []).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_template_comes_from_the_tokenizer_a_preset_or_a_file(saved, tokenizers, tmp_path):
    tokenizers["gemma"].save_pretrained(tmp_path / "gemma")
    (tmp_path / "mine.jinja").write_text("{{ 'é' }}", encoding="utf-8")
    assert (
        load_tokenizer(str(tmp_path / "gemma"), chat_template=None).chat_template == tokenizers["gemma"].chat_template
    )
    assert load_tokenizer(saved, chat_template="plain").chat_template == TEMPLATE_PRESETS["plain"]
    assert load_tokenizer(saved, chat_template=str(tmp_path / "mine.jinja")).chat_template == "{{ 'é' }}"


@pytest.mark.parametrize("present", [{}, {"config.json": '{"model_type": "gpt2"}'}, {"tokenizer.json": "{"}])
def test_a_directory_without_a_tokenizer_is_an_error(tmp_path, present):
    for name, text in present.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"has no tokenizer.*tokenizer.json|has no tokenizer.json"):
        load_tokenizer(str(tmp_path), chat_template="plain")


def lose_a_merged_token(tree):
    token = "".join(tree["model"]["merges"][0])
    del tree["model"]["vocab"][token]


@pytest.mark.parametrize(
    "damage",
    [
        lambda tree: tree.clear(),
        lose_a_merged_token,
        lambda tree: tree.update(model=3),
        lambda tree: tree.update(added_tokens=[{"id": 0}]),
        lambda tree: tree.update(pre_tokenizer={"type": "Nothing"}),
        lambda tree: tree.update(version=functools.reduce(lambda inner, _: [inner], range(500), [])),
    ],
)
def test_a_damaged_tokenizer_is_one_sentence(saved, tmp_path, damage):
    """When this fails, a tokenizer.json that was edited or downloaded in part is a traceback of a library's insides."""
    shutil.copytree(saved, tmp_path / "damaged")
    path = tmp_path / "damaged" / "tokenizer.json"
    tree = json.loads(path.read_text())
    damage(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"has no tokenizer \(tokenizer.json\) that can be read \(") as refused:
        load_tokenizer(str(path.parent), chat_template=None)
    assert "\n" not in str(refused.value)


def test_what_cannot_be_loaded_is_named_with_the_setting_to_change(saved, tmp_path):
    with pytest.raises(UserError, match="absent: no such directory"):
        load_tokenizer(str(tmp_path / "absent"), chat_template=None)
    with pytest.raises(
        UserError,
        match=r"no chat template; choose one with data.chat_template=plain\|chatml\|zephyr\|deepseek-r1\|FILE",
    ):
        load_tokenizer(saved, chat_template=None)
    with pytest.raises(UserError, match=r"data.chat_template=chatlm is neither a preset nor a file"):
        load_tokenizer(saved, chat_template="chatlm")


def test_generation_reads_the_same_prompt_as_training(tokenizers):
    tokenizer = tokenizers["llama3"]
    training, generation = (
        encode(tokenizer, Item(1, (USER("Hi"),), "GOAL", responses), placement="system")[0][0]
        for responses in (("Yes",), ())
    )
    assert training.prompt.tolist() == generation.prompt.tolist()
    texts = render_texts(chat_format(tokenizer, "system"), (USER("Hi"),), goal="GOAL", responses=(), row=1)
    assert texts == [tokenizer.decode(generation.prompt)]
