"""Options of chat templates: every verb and the export write the variables that a run was given, and callers still decide."""

import dataclasses
import datetime

import jinja2
import pytest
from jinja2 import meta

from rapo_jax.chat.baking import bake_goal
from rapo_jax.chat.dates import pin, pinned_day
from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.chat.jinja import variables
from rapo_jax.chat.options import options_of, refuse_unread, with_options, without_options
from rapo_jax.chat.rendering import render
from rapo_jax.config.files import from_dict, load_config, read_mapping, to_yaml
from rapo_jax.errors import UserError
from rapo_jax.messages import Message
from rapo_jax.opened import Rendering, open_for_training, open_tokenizer
from rapo_jax.runs.settings import changes, settings_of
from tests import tiny
from tests.chat.test_baking import CONVERSATIONS, as_transformers_4
from tests.tiny.published_templates import PUBLISHED, published

HI = (Message("user", "Hi"),)
TEMPLATE = (
    "\n  {{- 'thinks ' if enable_thinking is not defined or enable_thinking }}{{ controls }}"
    "{% macro day() %}{{ strftime_now('%Y') ~ enable_thinking }}{% endmacro %}{{ day() }}"
    "{% for m in messages %}{% generation %}{{ m.content ~ enable_thinking }}{% endgeneration %}{% endfor %}"
)
SWITCH = "{% if add_generation_prompt %}{{ '' if enable_thinking | default(true) else '(closed)' }}{% endif %}"
VALUES = [False, True, 0, -7, 1.5, 1e-7, "text", "", [1, None, "x"], {"a": {"b": [True]}},
          "quotes \" ' back\\slash \\n, {{ x }} {% endif %} {# c #}\n -#}{#- end of the options #}\n \u00e9 \u2028"]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_a_variable_has_the_value_where_the_caller_gives_none(build_tokenizer, value):
    """When this fails, training reads another prompt than the one that was asked for."""
    template = "{{ seen | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = build_tokenizer(with_options(template, {"seen": value}), None, "</s>", [])
    plain = build_tokenizer(template, None, "</s>", [])
    assert render(tokenizer, HI) == render(tokenizer, HI, seen=None) == render(plain, HI, seen=value)
    assert render(tokenizer, HI, seen="other") == render(plain, HI, seen="other")
    assert options_of(tokenizer.chat_template) == {"seen": value}
    assert "seen" in meta.find_undeclared_variables(
        jinja2.Environment().parse(tokenizer.chat_template)
    )  # or vLLM withholds it


def test_macros_loops_and_the_assistants_text_see_options_and_white_space_stays(build_tokenizer):
    tokenizer = build_tokenizer(with_options(pin(TEMPLATE, "2026-03-07"), {"enable_thinking": False}), None, "</s>", [])
    assert render(tokenizer, HI) == "2026FalseHiFalse"
    assert render(tokenizer, HI, enable_thinking=True) == "thinks 2026TrueHiTrue"


def test_options_and_the_date_are_put_on_and_taken_off_in_any_order():
    options = {"enable_thinking": False, "controls": {"a": 1}}
    one = pin(with_options(TEMPLATE, options), "2026-03-07")
    assert with_options(pin(TEMPLATE, "2026-03-07"), options) == one
    assert (options_of(one), pinned_day(one)) == (options, "2026-03-07")
    assert without_options(one) == pin(TEMPLATE, "2026-03-07") and without_options(TEMPLATE) == TEMPLATE
    changed = with_options(one, {"enable_thinking": None, "controls": 2})
    assert (options_of(changed), pinned_day(changed)) == ({"controls": 2}, "2026-03-07")
    assert with_options(changed, {"controls": None}) == pin(TEMPLATE, "2026-03-07")
    assert with_options(TEMPLATE, {}) == with_options(TEMPLATE, {"absent": 1}) == TEMPLATE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enable_thinkin": False}, "reads no variable 'enable_thinkin'; did you mean 'enable_thinking'?"),
        ({"documents": []}, "reads no variable 'documents'; known: controls, enable_thinking"),
        ({"messages": []}, "reads no variable 'messages'"),
        ({"bos_token": "<s>"}, "reads no variable 'bos_token'"),
    ],
)
def test_an_option_that_the_template_does_not_read_is_refused_with_the_nearest(options, message):
    """When this fails, a misspelt switch trains a model that thinks."""
    with pytest.raises(UserError) as caught:
        refuse_unread([TEMPLATE + "{{ bos_token }}"], options, given=["bos_token"], option="data.template_options")
    assert str(caught.value).startswith(f"data.template_options: the chat template {message}")


def test_a_template_without_variables_says_so_and_one_that_is_not_jinja_is_a_sentence():
    with pytest.raises(UserError, match="reads no variable 'a'; it reads none that can be chosen"):
        refuse_unread(["{{ messages }}"], {"a": 1}, given=(), option="--template-options")
    refuse_unread(
        ["{{ messages }}"], {"a": None}, given=(), option="data.template_options"
    )  # what a file chose, taken back
    with pytest.raises(UserError, match="the chat template cannot be read: "):
        variables("{{ messages }")


def test_the_variables_of_published_templates_are_those_that_one_may_choose():
    known = {name: variables(template) for name, (template, *_) in PUBLISHED.items() if isinstance(template, str)}
    tokens = {"bos_token", "eos_token"}
    assert known["qwen3"] == known["smollm3"] - {"xml_tools", "python_tools"} == {"enable_thinking"}
    assert known["granite-3"] == {"thinking", "documents", "controls"}
    assert known["llama-3.1"] - tokens == {"custom_tools", "tools_in_user_message", "date_string", "builtin_tools"}
    assert all(
        known[name] <= tokens for name in ("qwen2.5", "gemma-3", "olmo-2", "phi-4-mini", "mistral-nemo", "zephyr")
    )


# Exports.


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "hermes"])
def test_the_export_of_every_published_template_writes_what_training_wrote(name):
    """When this fails, users of an export ask a model in other tokens than those it was trained on."""
    tokenizer = published(name)
    free = sorted(variables(tokenizer.chat_template) & {"enable_thinking", "thinking"})
    template = pin(with_options(tokenizer.chat_template, dict.fromkeys(free, False)), "2026-01-02")
    for placement in ("system", "user"):
        prompt = GoalPrompt("{goal}!", 10.0, placement, 10.0, template)
        baked = bake_goal(template, prompt)
        for messages in CONVERSATIONS.values():
            placed = prompt.write(messages, 10.0)
            for variables_given in ({}, dict.fromkeys(free, True)):
                both = [
                    (template, placed, {}),
                    (baked, messages, {}),
                    (baked, messages, {"documents": None, "tools": None}),
                ]
                texts = [outcome(tokenizer, *each, **variables_given) for each in both]
                assert texts[0] == texts[1] == texts[2]


def outcome(tokenizer, template, messages, given, **variables_given):
    """The text that a template writes, or the exception that it raises by itself."""
    turns = [message.as_dict() for message in messages]
    try:
        return tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=True, **given, **variables_given
        )
    except jinja2.TemplateError as error:
        return type(error)


def test_older_transformers_render_options_too():
    template = with_options("{{ a }}{% for m in messages %}{{ m.content }}{% endfor %}", {"a": [True, "x"]})
    assert as_transformers_4(template, HI) == "[True, 'x']Hi" and as_transformers_4(template, HI, a=1) == "1Hi"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model directory whose template has a switch."""
    return tiny.write_model(tmp_path_factory.mktemp("options") / "model", chat_template=tiny.CHAT_TEMPLATE + SWITCH)


def config_of(**data):
    return from_dict({"data": data})


def test_a_run_opens_its_template_with_the_options_of_its_configuration(model):
    opened = open_for_training(model, config_of(template_options={"enable_thinking": False}))
    assert opened.tokenizer.chat_template == opened.goal_prompt.chat_template
    assert render(opened.tokenizer, HI).endswith("<|assistant|>(closed)")
    assert render(open_for_training(model, config_of()).tokenizer, HI).endswith("<|assistant|>")
    with pytest.raises(
        UserError, match=r"data\.template_options: .* 'enable_thought'; did you mean 'enable_thinking'\?"
    ):
        open_for_training(model, config_of(template_options={"enable_thought": False}))
    with pytest.raises(UserError, match=r"--template-options: the chat template reads no variable 'eos_token'"):
        open_tokenizer(model, Rendering(template_options={"eos_token": "x"}, option="--chat-template"))


# The key.


def test_options_are_read_from_files_and_command_lines(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: {template_options: {enable_thinking: false, date_string: 2026-07-26, controls: {a: [1, null]}}}"
    )
    options = {"enable_thinking": False, "date_string": "2026-07-26", "controls": {"a": [1, None]}}
    assert load_config(file).data.template_options == options
    one_more = load_config(file, ["data.template_options.enable_thinking=true"]).data.template_options
    assert one_more == options | {"enable_thinking": True}
    assert load_config(file, ["data.template_options={}"]).data.template_options == {}
    (tmp_path / "again.yaml").write_text(to_yaml(load_config(file)))
    assert load_config(tmp_path / "again.yaml") == load_config(file)
    assert read_mapping("{enable_thinking: false}", option="--template-options") == {"enable_thinking": False}
    with pytest.raises(UserError, match=r"--template-options='x': expected keys and values, such as \{name: true\}"):
        read_mapping("x", option="--template-options")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x", datetime.datetime(2026, 1, 1), "\ud800"])
def test_values_that_json_cannot_hold_are_refused(value):
    if isinstance(value, datetime.datetime):
        assert config_of(template_options={"a": value}).data.template_options == {"a": "2026-01-01T00:00:00"}
        return
    with pytest.raises(UserError, match=r"data\.template_options\.a"):
        config_of(template_options={"a": value})


def test_a_run_belongs_to_its_options_and_older_runs_have_none():
    """When this fails, a run resumes on other tokens, or an older run does not resume."""
    plain, closed = (settings_of(config_of(template_options=o)) for o in ({}, {"enable_thinking": False}))
    assert not [key for key in plain if "template_options" in key]
    (change,) = changes(plain, closed, given=[])
    assert str(change) == "data.template_options.enable_thinking (None -> False)"
    assert dataclasses.replace(config_of().data) == config_of().data
