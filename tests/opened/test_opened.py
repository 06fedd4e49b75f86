"""Every room opens a model the same way: one chat template without a goal, one goal prompt, one set of stop tokens."""

import json
import shutil
from dataclasses import replace

import jax
import pytest
from transformers import AutoTokenizer

from rapo_jax.chat.goal_prompt import SIDECAR, GoalPrompt, configured_goal_prompt, read_goal_prompt
from rapo_jax.chat.templates import render
from rapo_jax.config.files import from_dict
from rapo_jax.errors import UserError
from rapo_jax.messages import Message
from rapo_jax.opened import Rendering, open_for_training, open_model, open_tokenizer, with_weights
from tests import tiny
from tests.opened.exports import OWN, as_export

HI = (Message("user", "Hi"),)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def exported(model, tmp_path):
    return as_export(model, tmp_path / "exported")


def test_a_model_of_unknown_training_gets_the_papers_goal_prompt(model):
    """When this fails, the verb that opens a foreign checkpoint decides in which words it is asked."""
    opened = open_tokenizer(model)
    assert not opened.has_own_goal_prompt
    assert opened.goal_prompt.sentence(8).endswith("Overall score: 8.")
    assert (opened.goal_prompt.placement, opened.goal_prompt.baked) == ("system", None)
    assert opened.goal_prompt.chat_template == opened.tokenizer.chat_template == tiny.CHAT_TEMPLATE


def test_an_exports_template_is_opened_without_the_goal_that_was_baked_into_it(exported):
    """When this fails, a prompt that asks for one goal asks for two."""
    asks = render(AutoTokenizer.from_pretrained(exported), HI)
    opened = open_tokenizer(exported)
    assert opened.has_own_goal_prompt and opened.goal_prompt == OWN
    assert render(opened.tokenizer, HI) == "<|user|>Hi<|end|><|assistant|>"
    assert render(opened.tokenizer, opened.goal_prompt.write(HI, opened.goal_prompt.baked)) == asks


def test_another_template_replaces_the_baked_goal_too(exported):
    opened = open_tokenizer(exported, Rendering(chat_template="chatml"))
    assert render(opened.tokenizer, HI).startswith("<|im_start|>user\nHi")
    assert opened.goal_prompt == replace(OWN, baked=None, chat_template=opened.tokenizer.chat_template)


TOOLS = "{{ tools }}" + tiny.CHAT_TEMPLATE


def test_of_several_named_templates_the_default_is_used_and_an_export_bakes_the_goal_into_each(model, tmp_path):
    """When this fails, the export of such a model writes a Python dict's text as its chat template."""
    directory = shutil.copytree(model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = {"default": tiny.CHAT_TEMPLATE, "tool_use": TOOLS}
    tokenizer.save_pretrained(directory)
    opened = open_tokenizer(directory)
    assert opened.tokenizer.chat_template == opened.goal_prompt.chat_template == tiny.CHAT_TEMPLATE
    goal_prompt = replace(opened.goal_prompt, baked=10.0)
    exported = as_export(directory, tmp_path / "exported", goal_prompt)
    baked = AutoTokenizer.from_pretrained(exported)
    sentence = goal_prompt.sentence(10)
    message = [{"role": "user", "content": "Hi"}]
    plain, with_tools = (baked.apply_chat_template(message, tokenize=False, tools=t) for t in (None, [{"a": 1}]))
    assert plain == f"<|system|>{sentence}<|end|><|user|>Hi<|end|>"
    assert with_tools == "[{'a': 1}]" + plain
    again = open_tokenizer(exported)
    assert again.goal_prompt == goal_prompt
    assert again.tokenizer.chat_template == tiny.CHAT_TEMPLATE


def test_named_templates_without_a_default_are_refused_by_name(model, tmp_path):
    directory = shutil.copytree(model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = {"rag": tiny.CHAT_TEMPLATE, "tool_use": TOOLS}
    (directory / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(directory)
    with pytest.raises(
        UserError, match="has the chat templates rag, tool_use, none of which is called default; choose"
    ):
        open_tokenizer(directory)


@pytest.mark.parametrize("declared", ["config.json", "generation_config.json"])
def test_the_end_of_a_turn_is_always_a_stop_token_except_for_raw_texts(model, tmp_path, declared):
    """When this fails, answers run on past their end wherever a checkpoint declares only some other token."""
    directory = shutil.copytree(model, tmp_path / "model")
    path, eos = directory / declared, AutoTokenizer.from_pretrained(model).eos_token_id
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | {"eos_token_id": [7, 9]}))
    assert open_tokenizer(directory).stop_tokens == tuple(sorted({7, 9, eos}))
    assert open_tokenizer(directory, Rendering(raw=True)).stop_tokens == (7, 9)


def test_without_a_declaration_the_tokenizers_eos_is_a_stop_token(model, tmp_path):
    directory = shutil.copytree(model, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    eos = config.pop("eos_token_id")
    (directory / "config.json").write_text(json.dumps(config))
    assert open_tokenizer(directory, Rendering(raw=True)).stop_tokens == (eos,)


def test_training_uses_the_configured_goal_prompt_on_the_template_without_a_goal(exported):
    """When this fails, training from an export adds its goals to the one that the export's template asks for."""
    config = from_dict({"relabel": {"goal_max": 3.0, "template": "Score {goal}!", "placement": "user"}})
    opened = open_for_training(exported, config)
    assert opened.tokenizer.chat_template == tiny.CHAT_TEMPLATE
    assert opened.goal_prompt == GoalPrompt("Score {goal}!", 3.0, "user", None, tiny.CHAT_TEMPLATE)
    assert render(opened.tokenizer, opened.goal_prompt.write(HI, 2)) == "<|user|>Score 2!\n\nHi<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("options", "goal", "source", "sentence"),
    [
        ({"template": "{goal} of {goal_max}"}, 8.0, "web", "8 of 10"),
        ({"template": "{goal} of {goal_max}"}, None, "web", None),
        ({"template": "As {source}: {goal}"}, 8.5, "web", "As web: 8.5"),
        ({"template": "As {source}", "goals": []}, None, "web", "As web"),
        ({"template": "As {source}", "goals": []}, None, "", None),
        ({"template": "{wit}/{a}", "attributes": ["a", "wit"]}, (3.0, 4.0), "", "4/3"),
        ({"template": "{goals}", "attributes": ["a", "wit"]}, 10.0, "", "A: 10\nWit: 10"),
        ({"template": "{a}a + {b}b", "attributes": ["a", "b"], "goal_kind": "directions"}, (71.0, -70.0), "", "71a + -70b"),
    ],
)  # fmt: skip
def test_a_goal_prompt_says_goals_sources_attributes_and_directions(options, goal, source, sentence):
    """When this fails, training writes one sentence and generation another."""
    prompt = configured_goal_prompt(from_dict({"relabel": options}).relabel, placement="system", chat_template="")
    assert prompt.sentence(goal, source=source) == sentence


def test_weights_in_memory_are_opened_without_files(model):
    opened = open_model(model)
    again = with_weights(open_tokenizer(model), opened.parameters, spec=opened.spec, mesh=opened.mesh)
    assert again.parameters is opened.parameters
    assert (again.stop_tokens, again.goal_prompt) == (opened.stop_tokens, opened.goal_prompt)


def test_weights_come_in_the_dtype_of_the_computation(model):
    opened = open_model(model, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(opened.parameters)} == {opened.dtype}
    assert opened.dtype.name == "bfloat16"


def test_a_missing_model_is_named_as_the_user_typed_it():
    with pytest.raises(UserError, match=r"MODEL_DIR='/absent': no such directory"):
        open_model("/absent")


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        ("{", "rapo.json is not JSON"),
        ('{"goal_prompt": {"template": "paper"}}', r"rapo.json lacks goal_prompt.goal_max, goal_prompt.placement"),
        ({"tone": "kind"}, "rapo.json: unknown field goal_prompt.tone"),
        ({"goal_max": "ten"}, "rapo.json: goal_prompt.goal_max is 'ten', expected a number"),
        ({"template": "pa{per"}, "rapo.json: relabel.template='pa{per'"),
    ],
)
def test_a_damaged_or_newer_sidecar_is_refused_in_one_sentence(tmp_path, sidecar, message):
    """When this fails, users get a traceback, or a model is asked for goals in words that it does not know."""
    text = sidecar if isinstance(sidecar, str) else json.dumps({"goal_prompt": vars(OWN) | sidecar})
    (tmp_path / SIDECAR).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_goal_prompt(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_sidecar_of_the_first_version_is_read(tmp_path):
    """It knew neither goal_min nor attributes."""
    first = {"template": "paper", "goal_max": 10, "placement": "user", "baked": None, "chat_template": "..."}
    (tmp_path / SIDECAR).write_text(json.dumps({"goal_prompt": first}))
    assert read_goal_prompt(tmp_path) == GoalPrompt("paper", 10, "user", None, "...")
