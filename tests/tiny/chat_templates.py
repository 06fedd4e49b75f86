"""Tokenizers trained on the spot, with chat templates of the shapes that the families have."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Enough for "\n\n" and a few words to become tokens; every other byte is a token of its own.
CORPUS = ["You are an assistant that generates responses for the instruction.\n\nWhat is the answer?\n\n"] * 20

# bos in the template, a header per turn, contents trimmed, any role.
LLAMA3 = """
{{- bos_token }}
{%- for message in messages %}
    {{- '<|head|>' + message['role'] + '<|body|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|body|>\\n\\n' }}
{%- endif %}
"""

# Says a default system turn where none is given; a line feed follows the end of every turn.
QWEN = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- set rest = messages[1:] %}
{%- else %}
    {{- '<|im_start|>system\\nYou are a default.<|im_end|>\\n' }}
    {%- set rest = messages %}
{%- endif %}
{%- for message in rest %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Literal line feeds between blocks, eos as end of turn, no bos.
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% else %}
{{ '<|assistant|>\\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

# Refuses a system turn; the assistant has no header, its text follows a space.
MISTRAL = """{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}
    {%- elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}
    {%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}
    {%- endif %}
{%- endfor %}"""

# Refuses a system turn; calls the assistant "model"; trims; ends turns with a token that is not eos, and a line feed.
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}
{% endif %}
{% for message in messages %}
    {% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' -}}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

SHAPES = {
    "llama3": (LLAMA3, "<|bos|>", "<|eos|>", ["<|head|>", "<|body|>", "<|eot|>"]),
    "qwen": (QWEN, None, "<|im_end|>", ["<|im_start|>"]),
    "zephyr": (ZEPHYR, "<s>", "</s>", []),
    "mistral": (MISTRAL, "<s>", "</s>", ["[INST]", "[/INST]"]),
    "gemma": (GEMMA, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
}


def build(template, bos, eos, special):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    named = [token for token in (bos, eos) if token]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=named + special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, chat_template=template)


@pytest.fixture(scope="session")
def build_tokenizer():
    """A function (template, bos, eos, other special tokens) -> byte-level BPE tokenizer."""
    return build


@pytest.fixture(scope="session")
def tokenizers():
    """One tokenizer per family's shape of chat template."""
    return {name: build(*shape) for name, shape in SHAPES.items()}


@pytest.fixture(scope="session")
def sentencepiece_like():
    """As in Llama-2: a space, written "▁", is put before every stretch of text. The one merge is ":" and "n"."""
    special = ["<unk>", "<s>", "</s>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdehilnorst:", ":n"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocabulary, [(":", "n")], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens(special)
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m.content + ':' if m.role == 'user' else m.content }}{% endfor %}"
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", chat_template=template)
