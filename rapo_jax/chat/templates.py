"""Messages -> text -> tokens: where a goal is written, and where a response begins and ends.

Training, generation and evaluation place the goal with `place_goal`; its equivalent in exported chat templates is
rapo_jax/chat/baking.py. Truncation and batching are in rapo_jax/chat/encoding.py.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rapo_jax.borders import path_of, read_by_library, read_text
from rapo_jax.chat.bounds import bounded
from rapo_jax.chat.rendering import CannotRender, render
from rapo_jax.errors import UserError
from rapo_jax.messages import Message

Placement = Literal["system", "user"]

# For tokenizers without a template. "plain" suits base models: contents separated by blank lines, no role names.
TEMPLATE_PRESETS = {
    "plain": (
        r"{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
        r"{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        r"{% if not loop.last or add_generation_prompt %}{{ '\n\n' }}{% endif %}{% endfor %}"
    ),
    "chatml": (
        r"{% for message in messages %}"
        r"{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
        r"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "zephyr": (
        r"{% for message in messages %}"
        r"{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor %}"
        r"{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    # Writes the thought of the last answer, which DeepSeek's own template cuts off.
    "deepseek-r1": (
        "{{ bos_token }}{% set empty = enable_thinking is defined and not enable_thinking %}{% for message in messages %}"
        r"{% if message['role'] == 'system' %}{{ message['content'] }}"
        "{% elif message['role'] == 'user' %}{{ '<\uff5cUser\uff5c>' + message['content'] }}"
        r"{% elif message['role'] == 'assistant' %}{% set parts = message['content'].split('</think>') %}"
        r"{% set thought = message['reasoning_content'] or (parts[0].split('<think>')[-1] if parts | length > 1 else '') %}"
        "{{ '<\uff5cAssistant\uff5c>' }}"
        r"{% if loop.last %}{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}"
        r"{{ parts[-1].lstrip('\n') + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<\uff5cAssistant\uff5c>' }}"
        r"{{ '<think>\n' + ('\n</think>\n\n' if empty else '') }}{% endif %}"
    ),
}
TEMPLATE_CHOICES = f"{'|'.join(TEMPLATE_PRESETS)}|FILE.jinja"
TEMPLATE_KNOB = f"data.chat_template={TEMPLATE_CHOICES}"
LONGEST_HEADER = 200  # characters of an assistant's header
PROBE = "rapo-jax-probe"  # text that no template contains or treats specially
THOUGHT = re.compile(r"<think>(\s*</think>)?\s*$")  # that a template begins for an answer


def load_tokenizer(
    path: str, *, chat_template: str | None, option: str = "data.chat_template"
) -> PreTrainedTokenizerBase:
    """A tokenizer with a chat template: its own (None), a preset, or the text of a .jinja file.

    Its own may be several by name (a dict); "default" is among them. `option` is what the user calls `chat_template`. No
    code from the checkpoint is run. Raises UserError if there is no fast tokenizer or no template.
    """
    tokenizer = _fast_tokenizer(path)
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template, option)
    if not tokenizer.chat_template:
        raise UserError(f"{path}: its tokenizer has no chat template; choose one with {option}={TEMPLATE_CHOICES}.")
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        raise UserError(
            f"{path}: its tokenizer has the chat templates {', '.join(sorted(tokenizer.chat_template))}, none of which is called "
            f"default; choose one with {option}={TEMPLATE_CHOICES}."
        )
    return tokenizer


def own_template(path: str) -> str | None:
    """The chat template of a tokenizer, the default of several; None where it has none. Raises UserError for no fast tokenizer."""
    template = _fast_tokenizer(path).chat_template
    return template.get("default") if isinstance(template, dict) else template or None


def _fast_tokenizer(path: str) -> PreTrainedTokenizerBase:
    local = path_of(path, said=f"the tokenizer's directory {path}")
    if not local.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise UserError(f"{path}: no such directory; a tokenizer is read from a checkpoint's directory or a hub id.")
    with read_by_library(f"{path} has no tokenizer (tokenizer.json) that can be read"):
        tokenizer = AutoTokenizer.from_pretrained(local if local.exists() else path, trust_remote_code=False)
        is_fast = tokenizer.is_fast and tokenizer(PROBE, add_special_tokens=False).input_ids
    if not is_fast:
        raise UserError(f"{path} has no tokenizer.json; a fast tokenizer is needed, which maps tokens to characters.")
    return tokenizer


def _read_template(name: str, option: str) -> str:
    if name in TEMPLATE_PRESETS:
        return TEMPLATE_PRESETS[name]
    if not Path(name).is_file():
        raise UserError(f"{option}={name} is neither a preset nor a file; give {option}={TEMPLATE_CHOICES}.")
    return read_text(Path(name), remedy=f"give {option}={TEMPLATE_CHOICES}")


# The goal.


def place_goal(messages: Sequence[Message], text: str | None, placement: Placement) -> tuple[Message, ...]:
    r"""Prepends the goal sentence to the system turn (a new one, if there is none) or to the first user turn.

    "system": [user Hi] -> [system GOAL, user Hi];   [system Be brief, user Hi] -> [system GOAL\n\nBe brief, user Hi]
    "user":   [user Hi] -> [user GOAL\n\nHi]
    """
    messages = tuple(messages)
    if text is None:
        return messages
    if placement == "system" and messages[0].role != "system":
        return (Message("system", text), *messages)
    index = next(index for index, message in enumerate(messages) if message.role == placement)
    message = replace(messages[index], content=f"{text}\n\n{messages[index].content}")
    return (*messages[:index], message, *messages[index + 1 :])


def resolve_placement(tokenizer: PreTrainedTokenizerBase, requested: Literal["auto", "system", "user"]) -> Placement:
    """The turn that carries the goal. "auto": "system" if the template, probed, keeps a system turn, else "user".

    Some templates raise on a system turn (Gemma-2), some drop it once a response follows (Mistral-v0.3). Raises
    UserError if "system" is requested for one of them.
    """
    if requested == "user":
        return "user"
    if _keeps_system(tokenizer):
        return "system"
    if requested == "system":
        raise UserError(
            "relabel.placement=system, but the chat template refuses or loses a system turn; "
            "use relabel.placement=user, or another template with data.chat_template=FILE.jinja."
        )
    return "user"


def _keeps_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    opening = (Message("system", PROBE), Message("user", "Hi"))
    middle = (*opening, Message("assistant", "Hello"), Message("user", "Bye"))
    try:
        with bounded():
            texts = [
                (render(tokenizer, prompt), render(tokenizer, (*prompt, Message("assistant", "Yes"))))
                for prompt in (opening, middle)
            ]
    except CannotRender as error:
        if error.beyond_bounds:
            raise _unusable(error) from error
        return False
    return all(text.count(PROBE) == 1 for pair in texts for text in pair)


# Text and tokens.


@dataclass(frozen=True)
class Ending:
    r"""How a template ends an assistant turn: with the text `suffix`.

    A response in training ends with `kept`, the part of `suffix` up to and including its special token `token`. Qwen: suffix
    "<|im_end|>\n", kept "<|im_end|>". For a template that writes no special token, `kept` is the eos token.
    """

    token: int
    suffix: str
    kept: str


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer with its template's goal placement and turn ending: everything needed to encode a conversation."""

    tokenizer: PreTrainedTokenizerBase
    placement: Placement
    ending: Ending


def chat_format(tokenizer: PreTrainedTokenizerBase, placement: Placement) -> ChatFormat:
    """The chat format of a tokenizer. Its template is probed for how it ends a turn, so call this once per tokenizer."""
    return ChatFormat(tokenizer=tokenizer, placement=placement, ending=_find_ending(tokenizer))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends every untruncated response in training and stops generation."""
    return _find_ending(tokenizer).token


def without_ends(chat: ChatFormat, text: str) -> str:
    r"""An assistant's text without the end-of-turn tokens that the data ends it with, as the template writes one.

    "Yes<|im_end|>\n" -> "Yes"; white space that no such token precedes stays.
    """
    tokenizer = chat.tokenizer
    ends = (cast(str, tokenizer.convert_ids_to_tokens(chat.ending.token)), cast(str | None, tokenizer.eos_token))
    while end := next((end for end in ends if end and text.rstrip().endswith(end)), None):
        text = text.rstrip().removesuffix(end)
    return text


def written_before_answers(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a template writes between the prompt and the text of a response without a thought; "" for a template that does
    not say."""
    asked = (Message("user", "Hi"),)
    try:
        with bounded():
            prompt, whole = (render(tokenizer, turns) for turns in (asked, (*asked, Message("assistant", PROBE))))
    except CannotRender:
        return ""
    return whole.removeprefix(prompt).partition(PROBE)[0] if whole.startswith(prompt) else ""


def shows(rendered: str, response: str, *, prompt: str = "") -> bool:
    """Whether a rendered assistant turn holds a response, whatever became of its white space.

    The response may begin in the `prompt` before it, which some templates end with "<think>".
    """
    if response.strip() in rendered:
        return True
    sought, before, after = ("".join(text.split()) for text in (response, prompt[-LONGEST_HEADER:], rendered))
    at = (before + after).rfind(sought)
    return at >= 0 and at + len(sought) > len(before)


def _unusable(error: CannotRender) -> UserError:
    return UserError(f"the chat template cannot be rendered: {error}; supply another with {TEMPLATE_KNOB}.")


def padding_token(tokenizer: PreTrainedTokenizerBase, stops: list[int]) -> int:
    """A padding token other than the stop tokens: the tokenizer's own if possible, else another special token."""
    known = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *sorted(tokenizer.all_special_ids))
    free = [token for token in known if token is not None and token not in stops]
    if not free:
        raise UserError(
            "all special tokens of the tokenizer end a turn, and transformers finds the end of a text by its padding; give the "
            "starting model's tokenizer a pad_token of its own."
        )
    return cast(int, free[0])


def probe_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short conversation whose response is PROBE, as the template writes it. Raises UserError where it does not."""
    try:
        with bounded():
            text = render(tokenizer, (Message("user", "Hi"), Message("assistant", PROBE)))
    except CannotRender as error:
        raise _unusable(error) from error
    if PROBE not in text:
        raise UserError(f"the chat template does not show the assistant's turn; supply another with {TEMPLATE_KNOB}.")
    return text


def _find_ending(tokenizer: PreTrainedTokenizerBase) -> Ending:
    """The first special token after a probe response ends the turn; without one the eos token does."""
    text = probe_text(tokenizer)
    suffix = text.rpartition(PROBE)[2]
    added = cast(dict[str, int], tokenizer.added_tokens_encoder)
    tokens = {token: number for token, number in added.items() if token.strip()}
    found = [(suffix.index(token), -len(token), token) for token in tokens if token in suffix]
    if found:
        start, _, token = min(found)
        return Ending(token=tokens[token], suffix=suffix, kept=suffix[: start + len(token)])
    eos = cast(str | None, tokenizer.eos_token)
    if eos is None or tokenizer.eos_token_id is None:
        raise UserError(
            "the chat template ends a response without a special token, and the tokenizer has no eos_token in its vocabulary; "
            f"supply another template with {TEMPLATE_KNOB}."
        )
    return Ending(token=cast(int, tokenizer.eos_token_id), suffix=suffix, kept=suffix.rstrip() + eos)


def render_texts(
    chat: ChatFormat,
    messages: Sequence[Message],
    *,
    goal: str | None,
    responses: Sequence[Message],
    row: int,
    tools: str = "",
) -> list[str]:
    """The text of the prompt, then for each response the text of prompt and response up to its end-of-turn token.

    Raises UserError that names `row` if the template refuses the turns or writes the prompt differently before a response.
    """
    prompt = place_goal(messages, goal, chat.placement)
    conversations = [prompt, *((*prompt, response) for response in responses)]
    try:
        prompt_text, *texts = (render(chat.tokenizer, conversation, **given(tools)) for conversation in conversations)
    except CannotRender as error:
        raise UserError(
            f"row {row}: the chat template refuses it: {error}; supply another with {TEMPLATE_KNOB}."
        ) from error
    for text in texts:
        if not text.startswith(prompt_text):
            thinks = THOUGHT.search(prompt_text)
            raise _without_thought(row, thinks[0], text) if thinks else _different(row, prompt_text, text)
        if not text.endswith(chat.ending.suffix):
            raise UserError(
                f"row {row}: the chat template ends this response with {text[-40:]!r}, others with "
                f"{chat.ending.suffix!r}; supply another with {TEMPLATE_KNOB}."
            )
    return [prompt_text, *(text.removesuffix(chat.ending.suffix) + chat.ending.kept for text in texts)]


def given(tools: str) -> dict[str, Any]:
    """The variables of a template for a JSON list of tools; none where there are no tools."""
    return {"tools": json.loads(tools)} if tools else {}


def first_difference(one: str, other: str) -> int:
    """The index of the first character in which two texts differ; the shorter length where one begins the other."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _different(row: int, prompt_text: str, text: str) -> UserError:
    start = first_difference(prompt_text, text)
    begin = max(0, start - 20)
    return UserError(
        f"row {row}: the chat template writes the prompt differently once a response follows: the prompt has "
        f"...{prompt_text[begin : start + 40]!r} where the conversation has ...{text[begin : start + 40]!r}; "
        f"supply a template that does not, with {TEMPLATE_KNOB}."
    )


def _without_thought(row: int, opening: str, text: str) -> UserError:
    remedy = "give responses that hold their thoughts, <think> included, with a template that keeps them"
    if opening.rstrip().endswith("</think>"):
        remedy = (
            "take the thoughts out of the data or the switch out of data.template_options, or supply another template"
        )
    return UserError(
        f"row {row}: the chat template begins an answer with {opening!r}, and this response otherwise: ...{text[-40:]!r}; {remedy}, "
        f"with {TEMPLATE_KNOB}."
    )


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of rendered texts. The template wrote all special tokens, so the tokenizer adds none."""
    encoded = tokenizer(
        texts, verbose=False, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
    )
    return cast(list[list[int]], encoded.input_ids)


def response_ids(
    chat: ChatFormat, prompt: tuple[str, list[int]], full: tuple[str, list[int]], *, row: int
) -> tuple[list[int], bool]:
    r"""The response's tokens, ending in exactly one end-of-turn token, and whether they were tokenized separately.

    `prompt` and `full` (prompt and response) are texts with their ids. Usually the prompt's ids are a prefix of the full
    ids. Where a token crosses the boundary ("tell:" + "no" contains the token ":no"), which cannot happen at generation, the
    response is tokenized separately, and prompt and response together must still decode to the same text.
    """
    prompt_ids, full_ids = prompt[1], full[1]
    retokenized = full_ids[: len(prompt_ids)] != prompt_ids
    ids = _tokenize_apart(chat.tokenizer, prompt, full, row=row) if retokenized else full_ids[len(prompt_ids) :]
    while ids[-2:] == [chat.ending.token] * 2:
        ids = ids[:-1]
    return ids, retokenized


def _tokenize_apart(
    tokenizer: PreTrainedTokenizerBase, prompt: tuple[str, list[int]], full: tuple[str, list[int]], *, row: int
) -> list[int]:
    rest = full[0][len(prompt[0]) :]
    whole = tokenizer.decode(full[1], clean_up_tokenization_spaces=False)
    for anchor in ("", "\n"):  # after a line feed, sentencepiece adds no space of its own to the response
        anchor_ids, ids = tokenize(tokenizer, [anchor, anchor + rest])
        after = ids[len(anchor_ids) :]
        together = tokenizer.decode(prompt[1] + after, clean_up_tokenization_spaces=False)
        if ids[: len(anchor_ids)] == anchor_ids and together == whole:
            return after
    raise UserError(
        f"row {row}: the response cannot be separated from the prompt: after the prompt's last characters "
        f"{prompt[0][-40:]!r} the text {rest[:40]!r} does not tokenize to the same text alone as in the conversation; "
        f"supply a template with a special token between them, with {TEMPLATE_KNOB}."
    )
