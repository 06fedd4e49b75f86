"""ArmoRM, against its published structure in torch: transformers' Llama, and heads written here from the paper."""

import functools
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rapo_jax.parallel import make_mesh
from rapo_jax.score.armorm import ATTRIBUTES
from tests.score.conftest import DONE, ROWS, USER_ERROR
from tests.tiny import CONFIG, rapo
from tests.tiny.directories import write_weights

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
J, HIDDEN = 19, 12


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    core.train_from_iterator(
        ["assistant\n\n"] * 20,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=special[0], eos_token=special[1], chat_template=TEMPLATE
    )


@pytest.fixture(scope="module")
def armorm(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("armorm")
    words = tokenizer()
    words.save_pretrained(directory)
    config = CONFIG | {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1, "rope_theta": 500000.0}
    write_weights(directory, config, seed=3)
    random, D = np.random.default_rng(5), CONFIG["hidden_size"]
    widths = [D, HIDDEN, HIDDEN, HIDDEN, J]
    heads = {"regression_layer.weight": random.normal(0, 0.5, (J, D)), "gating.logit_scale": np.array([1.3])}
    transform = np.eye(J)
    transform[4] -= random.uniform(0, 0.5, J)
    heads["reward_transform_matrix"] = transform
    for number, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        heads[f"gating.layers.{number}.weight"] = random.normal(0, 3, (fan_out, fan_in))
        heads[f"gating.layers.{number}.bias"] = random.normal(0, 1, fan_out)
    path = directory / "model.safetensors"
    save_file(load_file(path) | {name: value.astype(np.float32) for name, value in heads.items()}, path)
    own = {"architectures": ["LlamaForRewardModelWithGating"], "gating_temperature": 10, "gating_hidden_dim": HIDDEN}
    labels = {"id2label": {str(at): f"LABEL_{at}" for at in range(J)}, "tie_word_embeddings": False}
    (directory / "config.json").write_text(json.dumps(config | own | labels))
    return directory


class Published(torch.nn.Module):
    """Regression, gating and transformation, for one conversation at a time."""

    def __init__(self, directory: Path):
        super().__init__()
        tensors = {name: torch.tensor(value) for name, value in load_file(directory / "model.safetensors").items()}
        config = transformers.LlamaConfig.from_pretrained(directory)
        self.decoder = transformers.LlamaModel(config).eval()
        self.decoder.load_state_dict(
            {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        )
        self.tensors = tensors
        self.words = transformers.AutoTokenizer.from_pretrained(directory)

    @torch.no_grad()
    def forward(self, prompt: str, response: str) -> tuple[float, list[float], int]:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        ids = self.words.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
        pattern = self.words.encode(
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", add_special_tokens=False
        )
        gate = max(at for at in range(len(ids)) if ids[at : at + len(pattern)] == pattern)
        hidden = self.decoder(torch.tensor([ids])).last_hidden_state[0]
        rewards = self.tensors["regression_layer.weight"] @ hidden[-1]
        x = hidden[gate]
        for number in range(4):
            x = self.tensors[f"gating.layers.{number}.weight"] @ x + self.tensors[f"gating.layers.{number}.bias"]
            x = torch.relu(x) if number < 3 else x
        gates = self.tensors["gating.logit_scale"][0] * torch.softmax(x / 10, dim=0)
        score = (gates * (rewards @ self.tensors["reward_transform_matrix"])).sum()
        return score.item(), rewards.tolist(), gate


@pytest.mark.filterwarnings("ignore")  # from other libraries
def test_rewards_and_attributes_are_those_of_the_published_structure(armorm, place, monkeypatch):
    """When this fails, rewards are mixed by the wrong token's gates, by an untransposed matrix, or before the last norm."""
    on_one = functools.partial(make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr("rapo_jax.score.responses.make_mesh", on_one)
    more = ["--model", armorm, "rows.length=512"]
    assert place.score("armorm", *more) == DONE, place.said
    published = Published(armorm)
    for row, line in zip(ROWS, place.lines(), strict=True):
        theirs = [published(row["prompt"], response) for response in row["responses"]]
        assert len({round(score, 4) for score, _, _ in theirs}) == len(theirs) and all(gate > 0 for *_, gate in theirs)
        np.testing.assert_allclose(line["rewards"], [score for score, _, _ in theirs], atol=1e-4)
        assert [list(each) for each in line["attributes"]] == [ATTRIBUTES] * len(theirs)
        np.testing.assert_allclose(
            [list(each.values()) for each in line["attributes"]], [r for _, r, _ in theirs], atol=1e-4
        )
    assert place.about() == {"kind": "armorm", "model": str(armorm)}


def test_what_is_no_armorm_is_refused(armorm, place, tmp_path):
    """When this fails, a directory without its heads ends in a traceback, or is scored by random ones."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in armorm.iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    tensors = load_file(armorm / "model.safetensors")
    save_file({name: value for name, value in tensors.items() if name.startswith("model.")}, bare / "model.safetensors")
    message = place.refused("armorm", "--model", bare)
    assert message.startswith(f"{bare} lacks regression_layer.weight, reward_transform_matrix, gating.logit_scale")
    message = place.refused("armorm", "--model", armorm, "data.chat_template=plain")
    assert (
        "would not end with Llama 3's header of the assistant, which ArmoRM reads; leave out data.chat_template"
        in message
    )


def test_a_directory_that_says_so_needs_no_name(armorm, place):
    """When this fails, the model that the paper used is refused for keys that we could read."""
    data = f"data.path={place.directory / 'none.jsonl'}"
    code = rapo(
        "score", place.directory / "config.yaml", "--model", armorm, "--reference", "x", "--out", place.out, data
    )
    assert code == USER_ERROR
    assert "--scorer=armorm does not read --reference" in place.capsys.readouterr().err
