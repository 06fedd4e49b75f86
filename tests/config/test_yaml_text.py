"""Whatever is wrong with a YAML text, the user reads one sentence about it, at once."""

import pytest

from rapo_jax.config.yaml_text import parse_yaml
from rapo_jax.errors import UserError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("a: [1", "line 1: expected"),
        ("a: 1\nb: 2\na: 3", "line 3: a is given twice"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("a: 2026-13-01", "month"),
        (f"a: {'9' * 5_000}", "Exceeds the limit"),
        (f"a: 0x{'f' * 5_000}", "line 1: an integer of thousands of digits"),
        ("[" * 1_500, "line 1: nested too deep"),
        ("- " * 3_000, "nested too deep"),
        ("a: !!int x", "invalid literal for int()"),
        ("a: 1\nb: !!bool x", "line 2: this is no tag:yaml.org,2002:bool"),
        ("a: !!timestamp x", "line 1: this is no tag:yaml.org,2002:timestamp"),
        ("a: !!map [1]", "expected a mapping node"),
        ("objective: &a\n  plus: [*a]", "line 1: a value that contains itself"),
        ("a: &a\n  <<: *a", "a value that contains itself"),
        (LAUGHS, "more than 100,000 values, aliases written out"),
        ("a: \0", "special characters are not allowed"),
    ],
)
def test_yaml_that_cannot_be_parsed_is_refused(text, fact):
    """When this fails, a slip in a configuration is a traceback, or a few lines of it fill the memory."""
    with pytest.raises(UserError) as refused:
        parse_yaml(text, said="run.yaml")
    message = str(refused.value)
    assert message.startswith("run.yaml cannot be read as YAML: ") and fact in message and "\n" not in message


def test_aliases_are_read():
    assert parse_yaml("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}", said="x") == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": {"b": 1, "e": 2},
    }
