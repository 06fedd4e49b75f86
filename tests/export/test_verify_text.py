"""An export's tokenizer, read back, must write what training wrote."""

from dataclasses import replace

import pytest

from rapo_jax.chat.baking import baked_templates
from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.errors import UserError
from rapo_jax.export.verify_text import require_same_text
from tests import tiny

ASKS = GoalPrompt("paper", 10.0, "system", 10.0, tiny.CHAT_TEMPLATE)


def write(directory, template):
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    "goal_prompt",
    [ASKS, replace(ASKS, placement="user"), replace(ASKS, baked=None), replace(ASKS, attributes=("wit", "a"))],
)
def test_a_faithful_export_passes(tmp_path, goal_prompt):
    require_same_text(write(tmp_path, baked_templates(goal_prompt)), tiny.build_tokenizer(), goal_prompt)


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (tiny.CHAT_TEMPLATE, "'<|user|>Hi!"),
        (baked_templates(replace(ASKS, baked=9.0)), "Overall score: 9"),
        (baked_templates(ASKS).replace("goal is defined", "false"), "Overall score: 10"),
        (baked_templates(ASKS).replace("eos_token", "'.'"), "."),
    ],
)
def test_an_export_that_asks_otherwise_than_training_is_refused(tmp_path, template, found):
    """When this fails, an exported model is asked in words that it was not trained on, and answers as if it had no goals."""
    with pytest.raises(UserError, match="where training had") as caught:
        require_same_text(write(tmp_path, template), tiny.build_tokenizer(), ASKS)
    assert found in str(caught.value)


def test_another_cut_into_tokens_is_refused(tmp_path):
    """When this fails, a tokenizer that loses its merges on the way is published."""
    other = tiny.build_tokenizer()
    other.add_tokens(["Hi!"])
    with pytest.raises(UserError, match="or cut the same text into other tokens"):
        require_same_text(write(tmp_path, baked_templates(ASKS)), other, ASKS)


def test_a_template_that_is_none_is_refused(tmp_path):
    """When this fails, an export whose template is the text of a Python dict is published."""
    with pytest.raises(UserError, match="its chat template, read back, cannot be rendered: unexpected char"):
        require_same_text(write(tmp_path, str({"default": baked_templates(ASKS)})), tiny.build_tokenizer(), ASKS)
