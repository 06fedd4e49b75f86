"""A chat template is a program by strangers: whatever it raises or takes is one sentence, in bounded time and memory."""

import threading

import pytest

from rapo_jax.chat import bounds
from rapo_jax.chat.bounds import bounded
from rapo_jax.chat.encoding import Item, encode_all
from rapo_jax.chat.rendering import CannotRender, render
from rapo_jax.chat.templates import end_of_turn, load_tokenizer, resolve_placement
from rapo_jax.errors import UserError
from rapo_jax.messages import Message

HI = (Message("user", "Hi"),)
FINE = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
# Each is put before a template that is right, and does its harm where a row says "go".
FAULTS = {
    "type": ("{{ 'a' + 1 }}", "TypeError: can only concatenate str"),
    "zero": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "undefined": ("{{ nothing.at.all }}", "'nothing' is undefined"),
    "sandbox": ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
    "immutable": ("{{ messages.append(1) }}", "immutable|unsafe|safely callable"),
    "recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    "overflow": ("{{ 'a' * 10 ** 30 }}", "OverflowError|needs more than"),
    "range": ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
    "raised": ("{{ raise_exception('Not\n this.') }}", "Not this."),
    "raised at length": ("{{ raise_exception('a' * 10 ** 6) }}", "aaaa ..."),
    "surrogate": ("{{ '\\ud800' }}", "half of a surrogate pair"),
}
GIGABYTES = (
    "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{{ 'a' * 2 ** 33 }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ ['a'] * 2 ** 30 }}",
)
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(("code", "said"), FAULTS.values(), ids=FAULTS)
def test_whatever_a_template_raises_is_a_sentence_that_names_the_row(build_tokenizer, code, said):
    """When this fails, a user gets a traceback of jinja2 for one row of a hundred thousand."""
    tokenizer = build_tokenizer("{% if messages[0].content == 'go' %}" + code + "{% endif %}" + FINE, None, "</s>", [])
    items = [Item(1, HI, None, ("Yes",)), Item(2, (Message("user", "go"),), None, ("Yes",))]
    with pytest.raises(
        UserError, match=rf"row 2: the chat template refuses it: .*({said}).*; supply another"
    ) as caught:
        encode_all(tokenizer, items, placement="user", max_length=50, max_prompt_length=40)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("code", [code for code, _ in FAULTS.values()], ids=FAULTS)
def test_a_template_that_always_fails_is_refused_when_it_is_loaded(build_tokenizer, code):
    tokenizer = build_tokenizer(code + FINE, None, "</s>", [])
    with pytest.raises(
        UserError, match=r"the chat template cannot be rendered: .*; supply another with data\.chat_template="
    ):
        end_of_turn(tokenizer)
    assert resolve_placement(tokenizer, "auto") == "user"


@pytest.mark.parametrize("code", GIGABYTES)
@pytest.mark.parametrize("row", ["Hi", "go"])
def test_a_template_that_builds_gigabytes_is_refused_within_bounded_memory(build_tokenizer, code, row, monkeypatch):
    """When this fails, the process is killed by the system, or aborts in a tokenizer."""
    monkeypatch.setattr(bounds, "BYTES", 2**28)
    tokenizer = build_tokenizer(
        "{% if messages[0].content == '" + row + "' %}" + code + "{% endif %}" + FINE, None, "</s>", []
    )
    with pytest.raises(UserError, match=r"needs more than .* GiB of memory|writes .* characters"):
        encode_all(
            tokenizer, [Item(1, (Message("user", row),), None, ())], placement="user", max_length=9, max_prompt_length=8
        )


def test_a_template_that_does_not_end_is_stopped(build_tokenizer, monkeypatch):
    """When this fails, `rapo train` hangs before its first line."""
    tokenizer = build_tokenizer(ENDLESS + FINE, None, "</s>", [])
    with pytest.raises(CannotRender, match=r"it takes longer than 0\.2 s"), bounded(0.2):
        render(tokenizer, HI)
    monkeypatch.setattr("rapo_jax.chat.templates.bounded", lambda: bounded(0.2))
    with pytest.raises(UserError, match=r"cannot be rendered: it takes longer than 0\.2 s; supply another"):
        resolve_placement(tokenizer, "auto")


@pytest.mark.parametrize("error", [bounds.TookTooLong, MemoryError])
def test_a_bound_that_is_met_outside_of_the_template_is_a_sentence_too(error):
    """When this fails, freeing what a template built for too long is a traceback."""
    with pytest.raises(UserError, match="the chat template needs more than 3 s or 2 GiB of memory"), bounded():
        raise error


def test_bounds_are_lifted_afterwards_and_other_threads_render_too(build_tokenizer):
    import resource
    import signal

    tokenizer = build_tokenizer(FINE, None, "</s>", [])
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    found = []

    def work():
        with bounded():
            found.append(render(tokenizer, HI))

    def elsewhere():
        work()
        with bounded():
            found.append(resource.getrlimit(resource.RLIMIT_AS) == before[0])  # it would bind the other threads

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    work()
    assert found == ["Hi</s>", True, "Hi</s>"]
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_template_file_that_is_not_utf8_is_a_sentence(build_tokenizer, tmp_path):
    build_tokenizer(FINE, None, "</s>", []).save_pretrained(tmp_path / "model")
    (tmp_path / "mine.jinja").write_bytes(b"\xff\xfe{{ 1 }}")
    with pytest.raises(UserError, match=r"mine\.jinja is not text in UTF-8 .*; give data\.chat_template="):
        load_tokenizer(str(tmp_path / "model"), chat_template=str(tmp_path / "mine.jinja"))
    (tmp_path / "model" / "chat_template.jinja").write_bytes(b"\xff\xfe{{ 1 }}")
    with pytest.raises(UserError, match=r"model has no tokenizer .* that can be read"):
        load_tokenizer(str(tmp_path / "model"), chat_template=None)


ASKED = (Message("user", "go"), Message("assistant", "0123456789" * 4), Message("user", "More"))
NAMED = (Message("user", "go", '{"name": "Ann"}'),)


@pytest.mark.parametrize(
    ("where", "prompt", "max_length"),
    [("messages|length == 1 and messages[0].content == 'More'", ASKED, 30),
     ("messages[0].content == 'go' and messages[0].name is undefined", NAMED, 90)],
    ids=["fewer turns", "without a key"],
)  # fmt: skip
def test_a_template_that_loops_on_what_we_leave_out_is_stopped_too(
    build_tokenizer, where, prompt, max_length, monkeypatch
):
    """When this fails, a run hangs at the first row that is too long, or keeps what it may not for want of time."""
    tokenizer = build_tokenizer("{% if " + where + " %}" + ENDLESS + "{% endif %}" + FINE, None, "</s>", [])
    monkeypatch.setattr("rapo_jax.chat.encoding.bounded", lambda *_: bounded(0.2))
    item = Item(3, prompt, None, ("Yes", "No"))
    with pytest.raises(UserError, match=r"row 3: the chat template refuses it: it takes longer than 0\.2 s"):
        encode_all(tokenizer, [item], placement="user", max_length=max_length, max_prompt_length=20)
