"""A message can be read in any terminal, whatever it quotes."""

import pytest

from rapo_jax.errors import UserError, shown


def test_a_message_that_quotes_megabytes_keeps_its_beginning_and_its_end():
    """When this fails, the remedy at the end of a message is lost behind a screenful of somebody's data."""
    message = str(UserError(f"run_dir={'x' * 10**6} is too long; choose another."))
    assert (
        len(message) < 3_100
        and message.startswith("run_dir=xxx")
        and message.endswith("xxx is too long; choose another.")
    )


def test_control_characters_are_written_as_escapes():
    """When this fails, a data file can clear the terminal, or ends the command in a traceback about its encoding."""
    assert str(UserError("a\x1b[2Jb\0c\ud800\nZürich")) == "a\\x1b[2Jb\\x00c\\ud800\nZürich"


CIRCLE: list = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "'x'"),
        ({"b": 1, "a": [None, ()]}, "{'b': 1, 'a': [None, ()]}"),
        (("x",), "('x',)"),
        (list(range(9)), "[0, 1, 2, 3, 4, 5, ...]"),
        ("x" * 10**6, f"'{'x' * 56}..."),
        (CIRCLE, "[[[[...]]]]"),
        ([16**5_000], "[an integer of thousands of digits]"),
    ],
)
def test_a_value_is_shown_in_sixty_characters(value, text):
    assert shown(value) == text
    assert len(text) <= 60
