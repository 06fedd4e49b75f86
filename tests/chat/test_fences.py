"""Parts of texts tokenized once, and the texts tokenized whole: the same tokens, whatever the tokenizer."""

import itertools

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rapo_jax.chat import encoding, fences
from rapo_jax.chat.encoding import Item, encode_all
from rapo_jax.chat.fences import fences_of, tokenize_parts
from rapo_jax.chat.templates import probe_text, tokenize
from rapo_jax.messages import Message
from tests.tiny.chat_templates import SHAPES

# What people write: nothing, white space at either end, a token of the template itself, other scripts, half a token.
CONTENTS = ("", " ", "Hi", " Hi\n", "a\n\nb", "né 你好", "<|im_end|>", "x</s>y", "<", "|>", "[/INST", "no")


def texts_of(tokenizer):
    """Every content between every two of the added tokens, and within longer texts."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    short = ["".join(parts) for parts in itertools.product(added[:4], CONTENTS, added[:4], CONTENTS)]
    return [*CONTENTS, *short, "".join(itertools.chain.from_iterable(zip(CONTENTS, itertools.cycle(added))))]


@pytest.mark.parametrize("shape", [*SHAPES, "sentencepiece"])
def test_parts_become_the_tokens_of_the_whole(tokenizers, sentencepiece_like, shape):
    """When this fails, a run that tokenizes each response once trains on other tokens than an earlier version did."""
    tokenizer = sentencepiece_like if shape == "sentencepiece" else tokenizers[shape]
    found = fences_of(tokenizer, probe_text(tokenizer))
    assert found is not None
    texts = texts_of(tokenizer)
    assert tokenize_parts(tokenizer, texts, found) == tokenize(tokenizer, texts)
    assert sum(len(found.split(text)) for text in texts) > 1.5 * len(texts), "these texts have fences to split at"


def test_a_prefix_of_the_first_word_alone_is_still_put_before_the_first(build_tokenizer):
    core = Tokenizer(models.WordLevel({"<s>": 0, "▁Hi": 1, "Hi": 2, "?": 3}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.add_special_tokens(["<s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    found = fences_of(tokenizer, "<s>Hi")
    assert found is not None
    assert tokenize_parts(tokenizer, ["Hi<s>Hi", "<s>Hi<s>", "Hi"], found) == [[1, 0, 2], [0, 2, 0], [1]]


UNFIT = {
    "takes the space before it": AddedToken("<f>", lstrip=True, special=True),
    "stands alone only": AddedToken("<f>", single_word=True, special=True),
    "is looked for in normalized text": AddedToken("<f>", normalized=True, special=True),
    "changes whether a word beside it stands alone": AddedToken("f>", special=True),
    "can share characters with itself": AddedToken("<<", special=True),
}


@pytest.mark.parametrize("why", UNFIT)
def test_a_token_that_depends_on_its_neighbours_is_no_fence(build_tokenizer, why):
    tokenizer = build_tokenizer("{{ 'unused' }}", None, "<eos>", [])
    tokenizer.backend_tokenizer.add_tokens([UNFIT[why]])
    assert fences_of(tokenizer, f"{UNFIT[why].content}Hi") is None


def test_tokens_that_can_overlap_are_no_fences(build_tokenizer):
    """In "<|a|>b" the longer token wins, although "<|a|>" stands there too."""
    tokenizer = build_tokenizer("{{ 'unused' }}", None, "<eos>", ["<|a|>", "<|a|>b", "<|c|>", "x<|"])
    assert fences_of(tokenizer, "<|a|><|c|>") is None
    found = fences_of(tokenizer, "<|a|><eos>")
    assert found is not None and found.split("Hi<|a|>Hi<eos>") == ["Hi<|a|>Hi", "<eos>"]


def test_a_tokenizer_that_splits_special_tokens_has_no_fences(tokenizers, build_tokenizer):
    tokenizer = build_tokenizer(*SHAPES["qwen"])
    assert fences_of(tokenizer, probe_text(tokenizer)) is not None
    tokenizer.split_special_tokens = True
    assert fences_of(tokenizer, probe_text(tokenizer)) is None


def test_a_response_is_tokenized_once_for_both_goals(tokenizers, monkeypatch):
    """When this fails, every start of a run takes twice as long."""
    seen = []

    def counting(tokenizer, texts):
        seen.extend(texts)
        return tokenize(tokenizer, texts)

    monkeypatch.setattr(fences, "tokenize", counting)
    prompt = (Message("user", "Who wrote it?"),)
    items = [
        Item(1, prompt, f"Score: {goal}.", pair) for goal, pair in ((9, ("One", "Another")), (8, ("Another", "One")))
    ]
    limits = {"placement": "system", "max_length": 400, "max_prompt_length": 200}
    encoded, report = encode_all(tokenizers["qwen"], items, **limits)
    parts = [text for text in seen if encoding.chat.PROBE not in text]
    for shared in ("<|im_start|>assistant\nOne", "<|im_start|>assistant\nAnother", "<|im_start|>user\nWho wrote it?"):
        assert parts.count(shared) == 1
    assert not [part for part in parts if part.count("<|im_start|>") > 1]
    monkeypatch.setattr(encoding, "fences_of", lambda *_: None)
    whole, same = encode_all(tokenizers["qwen"], items, **limits)
    assert report == same
    for one, other in zip(encoded, whole, strict=True):
        assert one is not None and other is not None
        assert one.prompt.tolist() == other.prompt.tolist()
        assert [r.tolist() for r in one.responses] == [r.tolist() for r in other.responses]
