"""The template of an export: it writes what training wrote, for the goal that is baked in and for any other."""

import dataclasses

import jinja2
import pytest
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rapo_jax.chat.baking import bake_goal
from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.messages import Message

SYSTEM, USER, BOT = (lambda text, role=role: Message(role, text) for role in ("system", "user", "assistant"))
SUPPORTED = [("llama3", "system"), ("qwen", "system"), ("zephyr", "system")] + [
    (name, "user") for name in ("llama3", "qwen", "zephyr", "mistral", "gemma")
]
CONVERSATIONS = {
    "one turn": (USER("Hi"),),
    "several turns": (USER("Hi"), BOT("Hello"), USER("More"), BOT("Sure"), USER("End")),
    "system": (SYSTEM("Be brief"), USER("Hi")),
    "system, several turns": (SYSTEM("Be brief"), USER("Hi"), BOT("Hello"), USER("More")),
    "empty system": (SYSTEM(""), USER("Hi")),
    "answered": (USER("Hi"), BOT("Hello")),
}
SENTENCES = [
    "paper",
    "released_code",
    "quotes \" ' back\\slash \\n, braces {{ x }} {% endif %} {# c #}, \u00e9 \u2028 \U0001f600, tab\t, feed\r\n. {goal}",
]
# Takes a content that is a text or a list of parts, as templates of models that see images do.
PARTS = (
    "{%- macro shown(content) -%}{%- if content is string -%}{{ content }}{%- else -%}{%- for part in content -%}"
    "{{ part.text if part.type == 'text' else '<image>' }}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
    "{%- for m in messages -%}[{{ m.role }}]{{ shown(m.content) }}{% endfor %}"
)


def prompt_of(template="{goal}!", placement="system", baked=10.0, **others):
    return GoalPrompt(template, 10.0, placement, baked, "", **others)


def as_transformers_4(template, messages, **variables):
    """As transformers 4.57 renders: the sandbox with jinja2's own dict and namespace."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    dicts = [m if isinstance(m, dict) else {"role": m.role, "content": m.content} for m in messages]
    return environment.from_string(template).render(messages=dicts, add_generation_prompt=False, **variables)


def same_template(tokenizer, template, messages, goal_prompt, goal=None):
    """A baked template on messages, and the template itself on messages with the goal in its place, are one text."""

    def rendered(messages, template, **variables):
        dicts = [{"role": message.role, "content": message.content} for message in messages]
        return [
            tokenizer.apply_chat_template(
                dicts, chat_template=template, tokenize=False, add_generation_prompt=header, **variables
            )
            for header in (False, True)
        ]

    baked = bake_goal(template, goal_prompt)
    assert baked.endswith(template)
    expected = rendered(goal_prompt.write(messages, goal_prompt.baked if goal is None else goal), template)
    assert rendered(messages, baked, **({} if goal is None else {"goal": goal})) == expected


@pytest.mark.parametrize("sentence", SENTENCES)
@pytest.mark.parametrize(("name", "placement"), SUPPORTED)
def test_a_baked_goal_renders_what_placing_it_renders(tokenizers, name, placement, sentence):
    for label, messages in CONVERSATIONS.items():
        if "system" in label and name in ("mistral", "gemma"):
            continue
        prompt = prompt_of(sentence, placement, 7.5)
        same_template(tokenizers[name], tokenizers[name].chat_template, messages, prompt)
        same_template(tokenizers[name], tokenizers[name].chat_template, messages, prompt, goal=3)


@pytest.mark.parametrize("placement", ["system", "user"])
@pytest.mark.parametrize(
    "start", ["", "\n", "\n\n  ", "  text", "  {% if true %}\n  x\n  {% endif %}\n", "\t{{- 'y' }}\n"]
)
def test_a_baked_goal_keeps_the_white_space_that_starts_a_template(tokenizers, start, placement):
    template = (
        start + "{% for m in messages[1:] %}{{ m['role'] + m['content'] }}{% endfor %}{{ messages[0]['content'] }}\n\n"
    )
    for messages in CONVERSATIONS.values():
        same_template(tokenizers["llama3"], template, messages, prompt_of("paper", placement))


@pytest.mark.parametrize("placement", ["system", "user"])
def test_a_baked_goal_reaches_macros_and_templates_that_rebind_messages(tokenizers, placement):
    template = (
        "{%- macro last() %}{{ messages[-1].content }}{% endmacro %}\n"
        "{%- if messages[0].role == 'system' %}{% set head = messages[0].content %}{% set messages = messages[1:] %}"
        "{%- else %}{% set head = 'none' %}{% endif %}\n"
        "{{ head }}:{% for m in messages %}{{ m.role + m.content }}{% endfor %}{{ last() }}"
    )
    for messages in CONVERSATIONS.values():
        same_template(tokenizers["llama3"], template, messages, prompt_of("paper", placement))


@pytest.mark.parametrize(
    ("goal", "said"),
    [(7, "7"), (7.0, "7"), (7.5, "7.5"), (1, "1"), ("6", "6"), ("6.25", "6.25"), (9.9987, "9.9987"), (None, "10")],
)
@pytest.mark.parametrize("placement", ["system", "user"])
def test_the_variable_goal_asks_for_another_goal_in_the_words_of_training(goal, said, placement):
    """When this fails, a server's chat_template_kwargs={"goal": 7} asks for something that training never said."""
    baked = bake_goal(PARTS, prompt_of("Score {goal}.", placement))
    expected = {
        "system": f"[system]Score {said}.\n\nBe brief[user]Hi",
        "user": f"[system]Be brief[user]Score {said}.\n\nHi",
    }
    assert as_transformers_4(baked, (SYSTEM("Be brief"), USER("Hi")), goal=goal) == expected[placement]
    assert "goal" in meta.find_undeclared_variables(jinja2.Environment().parse(baked))  # or vLLM withholds it


@pytest.mark.parametrize("goal", [11, 0.99, "high", True, float("nan"), float("inf"), [7], {"wit": 7}])
def test_a_goal_off_the_scale_is_refused_at_run_time(goal):
    """When this fails, a model is asked for scores it never saw, and its answers look like those it knows."""
    with pytest.raises(
        jinja2.TemplateError, match="goal must be a number from 1 to 10, on which the model was trained"
    ):
        as_transformers_4(bake_goal(PARTS, prompt_of()), (USER("Hi"),), goal=goal)


def test_goals_of_attributes_are_asked_together_or_by_name():
    prompt = prompt_of("paper", attributes=("wit", "a"), goal_min=0.0)
    baked = bake_goal(PARTS, prompt)
    for goal, goals in ((None, (10, 10)), (7, (7, 7)), ({"a": 2.5}, (10, 2.5)), ({"a": 0, "wit": 3}, (3, 0))):
        sentence = prompt.sentence(tuple(map(float, goals)))
        assert as_transformers_4(baked, (USER("Hi"),), goal=goal) == f"[system]{sentence}[user]Hi"
    with pytest.raises(jinja2.TemplateError, match="goal names what is not one of wit, a"):
        as_transformers_4(baked, (USER("Hi"),), goal={"b": 3})


@pytest.mark.parametrize("placement", ["system", "user"])
def test_a_content_that_is_a_list_of_parts_keeps_its_parts(placement):
    """When this fails, clients that send parts, as OpenAI's do, get an error from an export and none from its base model."""
    baked = bake_goal(PARTS, prompt_of("{goal}!", placement))
    text, image = {"type": "text", "text": "What?"}, {"type": "image"}
    brief = {"role": "system", "content": [{"type": "text", "text": "Be brief"}]}
    for parts, own, asked in (
        ([text, image], "What?<image>", "10!\n\nWhat?<image>"),
        ([image, text], "<image>What?", "10!\n\n<image>What?"),
        ([], "", "10!"),
    ):
        expected = {
            "system": f"[system]10!\n\nBe brief[user]{own}",
            "user": f"[system]Be brief[user]{asked}",
        }
        rendered = as_transformers_4(baked, (brief, {"role": "user", "content": parts}))
        assert rendered == expected[placement]


def test_other_keys_of_a_turn_stay():
    template = "{% for m in messages %}{{ m.name }}:{{ m.content }}{% endfor %}"
    for placement in ("system", "user"):
        turn = {"role": placement, "name": "Ann", "content": "Hi"}
        assert as_transformers_4(bake_goal(template, prompt_of(placement=placement)), (turn,)) == "Ann:10!\n\nHi"


@pytest.mark.parametrize("placement", ["system", "user"])
def test_the_prelude_does_not_change_whether_a_server_takes_the_template_to_know_parts(placement):
    """vLLM looks for a loop over the content of a loop's message, and fails on `messages` assigned to anything but a name.

    When this fails, a server sends lists of parts to templates that only know texts.
    """
    prelude = jinja2.Environment().parse(bake_goal("", prompt_of("paper", placement, attributes=("wit",))))
    looped = [loop.iter for loop in prelude.find_all(nodes.For)]
    assert all(isinstance(each, nodes.Name) and each.name == "messages" for each in looped)
    targets = [loop.target.name for loop in prelude.find_all(nodes.For)]
    assert set(targets) <= {"rapo_turn"}
    assert all(isinstance(one.target, (nodes.Name, nodes.NSRef)) for one in prelude.find_all(nodes.Assign))
    copies = [one for one in prelude.find_all(nodes.Assign) if isinstance(one.node, (nodes.Name, nodes.Getitem))]
    assert all(isinstance(one.target, nodes.Name) for one in copies)


def test_without_a_baked_goal_the_template_is_left_as_it_is():
    assert bake_goal(PARTS, prompt_of(baked=None)) == PARTS


def test_a_sentence_is_cut_where_it_says_a_goal():
    prompt = prompt_of("{goal} of {goal_max}, {goal}")
    assert prompt.pieces() == [("", 0), (" of 10, ", None), ("", 0)]
    assert dataclasses.replace(prompt, template="98765.03125 {goal}").pieces() == [
        ("98765.03125 ", None),
        ("", 0),
    ]
