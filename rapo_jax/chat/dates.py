"""The date that some chat templates write (`strftime_now`), kept the same for a run, so that its tokens are the same tomorrow.

A pinned template is the template behind a macro of that name, which writes one day at noon. Exports keep the day that the
model was trained with. trim_blocks removes the line feed between the two.
"""

import datetime
import json
import re

FUNCTION = "strftime_now"
MARK = "\x00"
DIRECTIVES = "aAwdbBmyYHIpMSfjUWcxXCDeFhnrRtTuV"
PINNED = re.compile(r"\{#- the day of training: (\S+) -#\}.*?\{#- end of the day #\}\n", re.DOTALL)


def writes_date(template: str) -> bool:
    """Whether a template may write today's date."""
    return FUNCTION in template


def pinned_day(template: str) -> str | None:
    """The day, YYYY-MM-DD, of a template that was pinned."""
    found = PINNED.match(template)
    return found[1] if found else None


def unpinned(template: str) -> str:
    """The template that was pinned, or any other as it is."""
    return PINNED.sub("", template, count=1) if PINNED.match(template) else template


def pin(template: str, day: str) -> str:
    """The template, which writes `day` in place of today; as it is where it writes no date."""
    template = unpinned(template)
    if not writes_date(template):
        return template
    noon = datetime.datetime.combine(datetime.date.fromisoformat(day), datetime.time(12))
    written = {f"%{letter}": noon.strftime(f"%{letter}") for letter in DIRECTIVES}
    written |= {f"%-{letter}": written[f"%{letter}"].lstrip("0") or "0" for letter in "dmHIMSjy"}
    # "%%" is a percent sign, also before a letter: a mark stands for it until the letters are replaced.
    written = {"%%": MARK} | written | {MARK: "%"}
    replaced = "".join(f" | replace({json.dumps(old)}, {json.dumps(new)})" for old, new in written.items())
    return (
        f"{{#- the day of training: {day} -#}}{{%- macro {FUNCTION}(rapo_format) -%}}"
        f"{{{{- rapo_format{replaced} -}}}}"
        f"{{%- endmacro -%}}{{#- end of the day #}}\n{template}"
    )


def today() -> str:
    """Today, as YYYY-MM-DD."""
    return datetime.date.today().isoformat()
