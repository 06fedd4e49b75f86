"""Templates that write today's date write one day in the whole of a run, and in its export."""

import datetime

import pytest

from rapo_jax.chat.dates import pin, pinned_day, unpinned, writes_date
from rapo_jax.chat.rendering import render
from rapo_jax.config.files import from_dict
from rapo_jax.errors import UserError
from rapo_jax.messages import Message

HI = (Message("user", "Hi"),)
FORMATS = ("%d %b %Y", "%B %d, %Y", "%Y-%m-%d", "%-d.%-m.%y", "%A, %j", "100%% %H:%M", "%%d of %d", "%e %p %F %T")
# As in Llama 3.2 and Granite: asked for once, used in a turn; a line feed before it must not be lost.
TEMPLATE = (
    "\n {{- bos_token }}\n{%- if strftime_now is defined %}{%- set date = strftime_now(FORMAT) %}{%- else %}"
    "{%- set date = 'none' %}{%- endif %}\n\n{% macro shown() %}Today: {{ strftime_now(FORMAT) }}{% endmacro %}"
    "{{ date }};{{ shown() }}{% for m in messages %}{{ m.content }}{% endfor %}"
)


@pytest.mark.parametrize("format", FORMATS)
def test_a_pinned_template_writes_its_day_as_strftime_would(build_tokenizer, format):
    """When this fails, a model is trained on a date that no template writes."""
    template = TEMPLATE.replace("FORMAT", repr(format))
    tokenizer = build_tokenizer(pin(template, "2026-03-07"), "<s>", "</s>", [])
    noon = datetime.datetime(2026, 3, 7, 12).strftime(format)
    without = build_tokenizer(template.replace("strftime_now(" + repr(format) + ")", repr(noon)), "<s>", "</s>", [])
    assert render(tokenizer, HI) == render(without, HI)
    assert noon in render(tokenizer, HI)


@pytest.mark.parametrize("start", ["", "\n", "\n\n  ", "  text", "  {% if true %}\n  x\n  {% endif %}\n"])
def test_the_white_space_that_starts_a_template_stays(build_tokenizer, start):
    template = start + "{{ messages[0].content }}"
    tokenizers = [
        build_tokenizer(one, "<s>", "</s>", []) for one in (template, pin(template + "{#strftime_now#}", "2026-01-01"))
    ]
    assert render(tokenizers[0], HI) == render(tokenizers[1], HI)


def test_pinning_again_replaces_the_day_and_taking_it_out_gives_the_template_back():
    template = TEMPLATE.replace("FORMAT", "'%Y'")
    once = pin(template, "2026-03-07")
    assert (pinned_day(once), pinned_day(template)) == ("2026-03-07", None)
    assert unpinned(once) == unpinned(template) == template
    assert pin(once, "2027-01-01") == pin(template, "2027-01-01")
    assert writes_date(template) and not writes_date("{{ messages }}")
    assert pin("{{ messages }}", "2026-03-07") == "{{ messages }}"


@pytest.mark.parametrize("text", ["7 March", "2026-3-7", "20260307", "2026-02-30"])
def test_what_is_no_day_is_refused(text):
    """When this fails, a template without a date accepts any text as the day, which is then part of the run's identity."""
    with pytest.raises(UserError, match=rf"data\.date='{text}' is not a day; write it as YYYY-MM-DD"):
        from_dict({"data": {"date": text}})
