"""The quickstart's world: dishes to describe, a judge that is a program, and an untrained model that fits on a laptop.

A prompt names a dish and asks for nine words; every dish is of one kind, and every kind has words that fit it. A
response of quality q has q - 1 words that fit and 10 - q that do not, so its quality is found by counting:

    prompt    Describe the wedding cake in nine words.                              (a cake is a sweet)
    response  sugary fizzy glazed sticky crusty fluffy gooey smoky spongy           (six fit: the judge says 7)

To obey a goal, a model must learn what kind of dish it is asked about, which words fit that kind, and what the number in
the goal's sentence means. Results say nothing about real language: here the judge is never wrong.

Everything follows from a seed. The files are those of any other run: a Hugging Face tokenizer, config.json, JSON lines.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from rapo_jax.borders import write_json, write_json_lines
from rapo_jax.relabel import TEMPLATES, goal_text

NUM_WORDS = 9
SCORES = range(1, NUM_WORDS + 2)

DISHES_BY_KIND = {
    "sweet": (
        "cake brownie custard trifle pudding tiramisu meringue cheesecake sorbet fudge pavlova eclair macaron "
        "baklava sundae"
    ),
    "savoury": (
        "stew curry lasagne goulash paella risotto chowder meatloaf ramen chili moussaka casserole burger "
        "schnitzel ratatouille"
    ),
    "drink": ("coffee lemonade cider cola beer cocoa tea smoothie champagne espresso mead tonic punch kombucha ale"),
    "bread": (
        "baguette sourdough focaccia ciabatta bagel naan pretzel croissant brioche roll pita loaf challah bun crumpet"
    ),
}
FITTING_BY_KIND = {
    "sweet": (
        "sugary sticky creamy fluffy honeyed gooey velvety frosted caramelised dreamy fruity glazed spongy "
        "syrupy buttery candied"
    ),
    "savoury": (
        "salty smoky peppery meaty garlicky tender hearty rich roasted juicy brothy spicy herby stewed gamey seared"
    ),
    "drink": (
        "fizzy chilled refreshing bubbly icy watery brewed malty tart sparkling cloudy strong aromatic mellow "
        "zesty foamy"
    ),
    "bread": (
        "crusty chewy doughy seeded yeasty crumbly golden floury toasted airy rustic nutty wholesome braided "
        "dense flaky"
    ),
}
DISHES = {kind: tuple(words.split()) for kind, words in DISHES_BY_KIND.items()}
FITTING = {kind: tuple(words.split()) for kind, words in FITTING_BY_KIND.items()}
KIND_OF = {dish: kind for kind, dishes in DISHES.items() for dish in dishes}

OCCASIONS = ("wedding", "airport", "village", "holiday", "weekend", "office")
PHRASINGS = (
    "Describe the {occasion} {dish} in nine words.",
    "How would you describe the {occasion} {dish} in nine words?",
    "What is the {occasion} {dish} like? Answer with nine words.",
    "Put the {occasion} {dish} on our menu with nine words.",
    "Write about the {occasion} {dish} and use nine words.",
    "I need nine words for the {occasion} {dish} of today.",
)

QUESTION = "Which score were you asked for?"

PAD, UNKNOWN, BOS, END = "<pad>", "<unk>", "<bos>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def judge(prompt: str, response: str) -> int:
    """The score of a response, 1 to 10, from the share of its words that fit the prompt's dish.

    For nine different words it is one plus the number that fit. A repeated word fits once, a missing word counts as
    unfitting, and every word beyond the ninth lowers the share: neither repetition nor length pays.

    >>> judge("Describe the wedding cake in nine words.", "sugary sticky salty crusty fizzy icy tart airy dense")
    3
    """
    words = response.split()
    fitting = set(words) & set(FITTING[kind_of(prompt)])
    return 1 + round(NUM_WORDS * len(fitting) / max(len(words), NUM_WORDS))


def kind_of(prompt: str) -> str:
    """The kind of dish that a prompt names. Raises ValueError unless it names exactly one dish."""
    dishes = [word for word in (word.strip(".?,!") for word in prompt.split()) if word in KIND_OF]
    if len(dishes) != 1:
        raise ValueError(f"{prompt!r} names {len(dishes)} dishes of this world; the judge needs exactly one")
    return KIND_OF[dishes[0]]


def write_response(random: Random, *, kind: str, quality: int) -> str:
    """Nine different words of which quality - 1 fit the kind, in any order."""
    unfitting = [word for other in FITTING if other != kind for word in FITTING[other]]
    words = random.sample(FITTING[kind], quality - 1) + random.sample(unfitting, NUM_WORDS + 1 - quality)
    random.shuffle(words)
    return " ".join(words)


def split_prompts(random: Random) -> tuple[list[str], list[str]]:
    """All prompts of the world, shuffled: (training, held out).

    For each dish one phrasing is held out, with every occasion; training never sees the dish in it.
    """
    training, held_out = [], []
    for dish in KIND_OF:
        unseen = random.choice(PHRASINGS)
        for phrasing, occasion in itertools.product(PHRASINGS, OCCASIONS):
            side = held_out if phrasing == unseen else training
            side.append(phrasing.format(occasion=occasion, dish=dish))
    random.shuffle(training)
    random.shuffle(held_out)
    return training, held_out


def conversations(random: Random, prompts: list[str], num: int) -> Iterator[dict[str, Any]]:
    """SFT rows for a base model that answers at any quality and can read the goal's sentence, yet does not obey it.

    A third of the rows describe a dish; a third do so under a goal drawn without regard to the response; a third ask
    which score the goal's sentence names and are answered with it. Every 300 rows pair each quality once with each goal,
    so that the two are exactly independent.
    """
    deals = [
        *((None, quality) for quality in SCORES for _ in SCORES),
        *itertools.product(SCORES, SCORES),
        *((goal, None) for goal in SCORES for _ in SCORES),
    ]
    for index in range(num):
        if index % len(deals) == 0:
            random.shuffle(deals)
        goal, quality = deals[index % len(deals)]
        if quality is None:
            prompt, response = QUESTION, f"{goal}."
        else:
            prompt = random.choice(prompts)
            response = write_response(random, kind=kind_of(prompt), quality=quality)
        system = [] if goal is None else [message("system", goal_text(goal))]
        yield {"messages": [*system, message("user", prompt), message("assistant", response)]}


def pairs(random: Random, prompts: list[str], num: int) -> Iterator[dict[str, Any]]:
    """Rows in the format of ultrafeedback_binarized: two responses of independent quality; one row in ten is a tie."""
    for _ in range(num):
        prompt = random.choice(prompts)
        responses = [
            write_response(random, kind=kind_of(prompt), quality=random.choice(SCORES)) for _ in ("chosen", "rejected")
        ]
        chosen, rejected = sorted(responses, key=lambda response: judge(prompt, response), reverse=True)
        yield {
            "prompt": prompt,
            "chosen": [message("user", prompt), message("assistant", chosen)],
            "rejected": [message("user", prompt), message("assistant", rejected)],
            "score_chosen": float(judge(prompt, chosen)),
            "score_rejected": float(judge(prompt, rejected)),
        }


def message(role: str, content: str) -> dict[str, str]:
    """One turn of a conversation, as chat templates read it."""
    return {"role": role, "content": content}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer: every space-separated word of this world's texts is a token, anything else is <unk>.

    A score in the goal's sentence is one token together with its full stop ("7."), unlike the numbers of the scale
    ("1-10,"), and decoding restores the text exactly.
    """
    texts = [
        *(phrasing.format(occasion=OCCASIONS[0], dish=dish) for phrasing in PHRASINGS for dish in KIND_OF),
        *(goal_text(score, template=template) for template in TEMPLATES for score in SCORES),
        *(" ".join(words) for words in (OCCASIONS, *FITTING.values())),
        QUESTION,
    ]
    words = [word for text in texts for word in text.split()]
    vocabulary = dict.fromkeys([PAD, UNKNOWN, BOS, *ROLES, END, *words])
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def model_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The config.json of a tiny Llama, with the keys that published ones have."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.06,
        "intermediate_size": 128,
        "max_position_embeddings": 256,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": tokenizer.pad_token_id,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": len(tokenizer),
    }


def rewards(prompts: Sequence[Sequence[Mapping[str, str]]], responses: Sequence[Sequence[str]]) -> list[list[float]]:
    """The judge as a scorer of `rapo score` and `rapo round`: --scorer python:rapo_jax.quickstart.world:rewards."""
    return [
        [float(judge(prompt[-1]["content"], response)) for response in each]
        for prompt, each in zip(prompts, responses, strict=True)
    ]


def write_world(
    directory: str | Path,
    *,
    seed: int = 0,
    num_pairs: int = 8000,
    num_conversations: int = 24000,
    num_eval_pairs: int = 256,
    num_prompts: int = 64,
) -> None:
    """Writes the world into one directory; the same arguments give the same bytes.

    sft.jsonl           `messages`: conversations of random quality, for the base model
    pairs.jsonl         scored pairs in the format of ultrafeedback_binarized
    eval_pairs.jsonl    the same for held-out prompts
    prompts.jsonl       `prompt`: held-out prompts
    config.json, tokenizer.json, ...    an untrained Llama, without weights: the trainer initializes them
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    random = Random(seed)
    training, held_out = split_prompts(random)
    write_json_lines(directory / "sft.jsonl", conversations(random, training, num_conversations))
    write_json_lines(directory / "pairs.jsonl", pairs(random, training, num_pairs))
    write_json_lines(directory / "eval_pairs.jsonl", pairs(random, held_out, num_eval_pairs))
    write_json_lines(directory / "prompts.jsonl", ({"prompt": prompt} for prompt in held_out[:num_prompts]))
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(directory)
    write_json(directory / "config.json", model_config(tokenizer))
