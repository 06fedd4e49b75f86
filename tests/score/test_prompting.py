"""Scores come from a model that reads the rows as it was trained to read them, or the difference is said."""

import json

import pytest

from rapo_jax.chat.dates import pin
from rapo_jax.chat.goal_prompt import PAPER_GOAL_PROMPT
from rapo_jax.chat.options import with_options
from rapo_jax.config.files import load_config
from rapo_jax.opened import ModelDirectory
from rapo_jax.score.groups import groups_to_score, read_all
from tests.tiny import CHAT_TEMPLATE, mesh_of, write_model, write_rows

OTHER = CHAT_TEMPLATE.replace("<|{{ message['role'] }}|>", "[{{ message['role'] }}]")
OPTION = "{% if quick %}Briefly. {% endif %}" + CHAT_TEMPLATE
DATED = "{{ strftime_now('%d %B %Y') }}" + CHAT_TEMPLATE


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model directories with other templates, and a configuration beside them."""
    root = tmp_path_factory.mktemp("prompting")
    write_rows(root / "rows.jsonl", [{"prompt": "Hi", "chosen": "Hello", "rejected": "No"}])
    (root / "config.yaml").write_text(f"data: {{path: {root / 'rows.jsonl'}, max_length: 64, max_prompt_length: 32}}\n")
    templates = {"base": CHAT_TEMPLATE, "same": CHAT_TEMPLATE, "other": OTHER, "none": None, "option": OPTION}
    for name, template in (templates | {"dated": DATED}).items():
        write_model(root / name, chat_template=template)
    exported = {
        "quick": with_options(OPTION, {"quick": True}),
        "spring": pin(DATED, "2025-04-01"),
        "goals": CHAT_TEMPLATE,
    }
    for name, template in exported.items():
        write_model(root / name, chat_template=template)
        prompt = {
            "template": PAPER_GOAL_PROMPT.template,
            "goal_max": 10,
            "placement": "system",
            "chat_template": template,
        }
        baked = 10 if name == "goals" else None
        (root / name / "rapo.json").write_text(json.dumps({"goal_prompt": prompt | {"baked": baked}}))
    return root


@pytest.mark.parametrize(
    ("given", "data", "expected"),
    [
        ({"scored": "same", "reader": "base"}, {}, []),
        ({"scored": "none", "reader": "base"}, {}, []),
        ({"scored": "none"}, {"chat_template": "zephyr"}, []),
        (
            {"scored": "other", "reader": "base"},
            {},
            [
                "other has a chat template of its own, and the rows are rendered with that of base; give data.chat_template as in "
                "its training where that is not meant."
            ],
        ),
        (
            {"scored": "base"},
            {"chat_template": "zephyr"},
            [
                "base has a chat template of its own, and the rows are rendered with data.chat_template=zephyr; leave "
                "data.chat_template out where that is not meant."
            ],
        ),
        (
            {"scored": "quick", "reader": "option"},
            {},
            [
                "quick has the template options {'quick': True}, and the rows are rendered with {} (data.template_options)."
            ],
        ),
        ({"scored": "quick", "reader": "option"}, {"template_options": "{quick: true}"}, []),
        (
            {"scored": "spring", "reader": "dated"},
            {},
            [
                "spring was trained with the date 2025-04-01, and the rows are rendered with today's date (data.date=2025-04-01)."
            ],
        ),
        ({"scored": "spring", "reader": "dated"}, {"date": "2025-04-01"}, []),
        (
            {"scored": "goals", "reader": "base"},
            {},
            ["goals was trained with goals; its responses are scored without one."],
        ),
    ],
)
def test_a_model_that_was_prompted_otherwise_than_the_rows_are_is_named(given, data, expected, models, capsys):
    """When this fails, a reward model reads conversations in the turns of another family, or a policy's implicit rewards are of
    texts that it was not trained on, and the scores look like any others."""
    mesh = mesh_of(data=1, fsdp=1, tensor=1)
    opened = {role: ModelDirectory(name, models / name, mesh) for role, name in given.items()}
    config = load_config(str(models / "config.yaml"), [f"data.{name}={value}" for name, value in data.items()])
    scored = opened["scored"]
    groups_to_score(read_all(config), config, opened.get("reader", scored), scored=scored)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  note   ")]
    assert said == [f"  note   {each}" for each in expected]
