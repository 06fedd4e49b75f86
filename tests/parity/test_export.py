"""What `rapo export` writes is, for transformers, the model that was trained, asked as it was trained to be asked.

Qwen-2's template keeps a system turn, and its checkpoint here is float32; Gemma-2's refuses one, and its checkpoint is
bfloat16. Both Gemma-2 and Mistral have windows of 8 tokens, which every prompt exceeds.
"""

import functools
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors import safe_open

from rapo_jax.batch import CHOSEN_SIDE, REJECTED_SIDE
from rapo_jax.batching import pipeline
from rapo_jax.batching.batch_plan import Group
from rapo_jax.checkpoint import Store
from rapo_jax.config.files import load_config
from rapo_jax.generate.decode import Sampling, answer_tokens
from rapo_jax.models.decoder import abstract_decoder, plain_layout
from rapo_jax.opened import open_model
from rapo_jax.runs.setup import Setup, set_up
from rapo_jax.train.state import abstract_parameters
from tests.parity import trajectory
from tests.tiny import file_tensors, rapo

pytestmark = pytest.mark.slow

DTYPES = {"qwen2": torch.float32, "gemma2": torch.bfloat16}
QUESTION = "Which tree is that?"
SENTENCE = (
    "You are an assistant that generates responses for the instruction while implicitly achieving the following "
    "target score (on a scale of 1-10, where 1 is lowest and 10 is highest): Overall score: {goal}."
)
# Rows of one exchange, whose goals are the scores 10 and 7.
ROWS = [
    {"prompt": question, "chosen": "A rowan.", "rejected": "No idea.", "score_chosen": 10.0, "score_rejected": 7.0}
    for question in (QUESTION, "And the birch?", "Oak or elm?", "Name three more.")
]
PROMPTS = ["Oak?", QUESTION, "Is the yew by the gate older than the larch that stands behind the wall?", "Elm, or ash?"]
CONFIG = """\
model: {dtype: float32, remat: none}
objective: {beta: 0.1}
optimizer: {learning_rate: 1e-3, warmup_ratio: 0}
train: {batch_size: 4, max_steps: 2}
rows: {length: 250}
mesh: {data: -1, fsdp: 1}
"""


@dataclass(frozen=True)
class Trained:
    """A finished run, the directory it started from and the one that `rapo export` wrote."""

    family: str
    source: Path
    run_dir: Path
    exported: Path
    groups: list[Group]
    setup: Setup

    def prompt(self, goal: float) -> list[int]:
        """The token ids by which training asked QUESTION under `goal`."""
        side = {10: CHOSEN_SIDE, 7: REJECTED_SIDE}[goal]
        return next(group.prompt.tolist() for group in self.groups if group.row == 1 and group.side == side)

    def parameters(self) -> dict:
        """The last checkpoint, float32."""
        store = Store(self.run_dir, writes=False)
        restored = store.restore({"parameters": abstract_parameters(self.setup.spec, self.setup.mesh)})
        store.close()
        return restored.state["parameters"]


def train_and_export(family: str, directory: Path) -> Trained:
    source = trajectory.write_model(directory / "model", family, dtype=DTYPES[family], loudness=2.0)
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (directory / "run.yaml").write_text(CONFIG)
    run_dir, exported = directory / "run", directory / "exported"
    where = (f"run_dir={run_dir}", f"model.path={source}", f"data.path={directory / 'rows.jsonl'}")
    assert rapo("train", directory / "run.yaml", *where) == 0
    assert rapo("export", run_dir, exported) == 0
    setup = set_up(load_config(run_dir / "config.yaml"))
    groups = pipeline.load_training(setup.config, setup.tokenizer, goal_prompt=setup.goal_prompt).groups
    return Trained(family, source, run_dir, exported, groups, setup)


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """family -> its run and export, made once."""
    return functools.cache(lambda family: train_and_export(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(params=DTYPES)
def trained(request, exports) -> Trained:
    return exports(request.param)


def export_as(trained: Trained, out_dir: Path, *options) -> transformers.PreTrainedTokenizerBase:
    assert rapo("export", trained.run_dir, out_dir, *options) == 0
    return transformers.AutoTokenizer.from_pretrained(out_dir)


def ask(tokenizer, *messages: tuple[str, str]) -> str:
    """The prompt of a user who has never heard of goals."""
    turns = [{"role": role, "content": content} for role, content in messages]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def load(directory: Path, **options):
    """The model in float32, whatever its file holds."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"} | options
    return transformers.AutoModelForCausalLM.from_pretrained(directory, **options).eval()


def test_transformers_computes_from_the_export_what_the_trained_parameters_compute(trained):
    """When this fails, the model that people download is not the one that was trained and evaluated."""
    spec, parameters = trained.setup.spec, trained.parameters()
    stored = jnp.float32 if DTYPES[trained.family] == torch.float32 else jnp.bfloat16
    graph, _ = abstract_decoder(spec)
    tokens_BT = np.random.default_rng(0).integers(0, spec.V, (2, 48))

    @jax.jit
    def logits(parameters):
        decoder = nnx.merge(graph, jax.tree.map(lambda x: x.astype(stored).astype(jnp.float32), parameters))
        tokens = jnp.asarray(tokens_BT)
        return decoder.logits(decoder(tokens, plain_layout(tokens)))

    with torch.no_grad():
        theirs = load(trained.exported)(torch.tensor(tokens_BT)).logits.numpy()
        before = load(trained.source)(torch.tensor(tokens_BT)).logits.numpy()
    assert np.abs(theirs - before).max() > 0.1, "two steps must show, or an export of the start would pass"
    np.testing.assert_allclose(np.asarray(logits(parameters)), theirs, atol=1e-4)


def test_the_export_has_the_dtype_and_the_tensors_of_the_checkpoint_it_started_from(trained):
    """When this fails, a 16-bit model comes back at twice its size, or loads with tensors missing or made up."""
    dtype = DTYPES[trained.family]
    names = {}
    for directory in (trained.source, trained.exported):
        with safe_open(directory / "model.safetensors", framework="pt") as file:
            names[directory] = set(file.keys())
            assert {file.get_tensor(name).dtype for name in file.keys()} == {dtype}  # noqa: SIM118
    assert names[trained.source] == names[trained.exported]
    assert json.loads((trained.exported / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert load(trained.exported, dtype="auto").dtype == dtype
    rounded = file_tensors(trained.parameters(), trained.setup.spec, dtype=np.dtype(np.float32))
    for name, tensor in load(trained.exported).named_parameters():
        assert torch.equal(torch.tensor(rounded[name]).to(dtype).float(), tensor), name


def test_a_plain_question_to_the_export_is_the_prompt_that_training_used_for_the_highest_goal(trained):
    """When this fails, users get the model without the behaviour it was trained for, and nothing tells them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained.exported)
    text, sentence = ask(tokenizer, ("user", QUESTION)), SENTENCE.format(goal=10)
    expected = {
        "qwen2": f"<|im_start|>system\n{sentence}<|im_end|>\n"
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        "gemma2": f"<bos><start_of_turn>user\n{sentence}\n\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n",
    }
    assert text == expected[trained.family]
    assert ids_of(tokenizer, text) == trained.prompt(10.0)


def test_no_goal_leaves_the_chat_template_of_the_source(trained, tmp_path):
    """When this fails, a baseline is exported with a goal that it never saw."""
    source = transformers.AutoTokenizer.from_pretrained(trained.source)
    tokenizer = export_as(trained, tmp_path / "out", "--no-goal")
    assert tokenizer.chat_template == source.chat_template
    conversation = (("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
    assert ask(tokenizer, *conversation) == ask(source, *conversation)


def test_another_goal_is_asked_for_as_training_asked_for_it(trained, tmp_path):
    """When this fails, --goal writes a sentence that the model has never read."""
    tokenizer = export_as(trained, tmp_path / "out", "--goal", 7)
    text = ask(tokenizer, ("user", QUESTION))
    assert SENTENCE.format(goal=7) in text and SENTENCE.format(goal=10) not in text
    assert ids_of(tokenizer, text) == trained.prompt(7.0)


# Generation. The windowed Mistral is random: what is compared needs no training.


@pytest.fixture(scope="module")
def windowed(tmp_path_factory) -> Path:
    return trajectory.write_model(tmp_path_factory.mktemp("mistral") / "model", "mistral")


@pytest.fixture(params=["qwen2", "gemma2", "mistral"])
def directory(request, exports, windowed) -> Path:
    return windowed if request.param == "mistral" else exports(request.param).exported


def their_greedy(model, prompt: list[int], **options) -> list[int]:
    """transformers' new tokens, a stop token included."""
    tokens = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": 24, "attention_mask": torch.ones_like(tokens)} | options
    return model.generate(tokens, **options)[0, len(prompt) :].tolist()


def prompts_of(tokenizer) -> list[list[int]]:
    return [ids_of(tokenizer, ask(tokenizer, ("user", prompt))) for prompt in PROMPTS]


def test_greedy_answers_are_those_of_transformers_token_by_token(directory):
    """When this fails, what our evaluations say about a model is not what its users see. The prompts share one batch of
    unequal lengths, and the windows are shorter than all of them."""
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(directory), load(directory)
    prompts = prompts_of(tokenizer)
    sampling = Sampling(max_new_tokens=24)
    opened = replace(open_model(directory), stop_tokens=())
    ours = answer_tokens(opened, [np.array(p, np.int32) for p in prompts], sampling=sampling)
    assert len({token for answer in ours for token in answer.tokens}) > 10, "endless repetition would prove little"
    model.generation_config.eos_token_id = None
    for prompt, answer in zip(prompts, ours, strict=True):
        assert answer.finish_reason == "length"
        assert answer.tokens == their_greedy(model, prompt)
        with torch.no_grad():  # and without any cache
            logits = model(torch.tensor([[*prompt, *answer.tokens]]), use_cache=False).logits[0]
        assert answer.tokens == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_rapo_generate_stops_where_transformers_stops(directory, tmp_path):
    """When this fails, answers run on past their end, or are cut where the checkpoint declares no stop."""
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(directory), load(directory)
    prompts = prompts_of(tokenizer)
    model.generation_config.eos_token_id = None
    endless = [their_greedy(model, prompt) for prompt in prompts]
    counts = {token: sum(token in answer for answer in endless) for answer in endless for token in answer[2:]}
    chosen = next(token for token, count in counts.items() if count < len(endless))
    shutil.copytree(directory, tmp_path / "model")
    declared = json.loads((directory / "generation_config.json").read_text())
    known = declared["eos_token_id"] if isinstance(declared["eos_token_id"], list) else [declared["eos_token_id"]]
    stops = [*known, chosen]
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(declared | {"eos_token_id": stops}))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    files = ("--prompts", tmp_path / "prompts.jsonl", "--out", tmp_path / "answers.jsonl")
    assert rapo("generate", tmp_path / "model", *files, "--max-new-tokens", 24, "--batch-size", 3) == 0
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    model = load(tmp_path / "model")
    assert {answer["finish_reason"] for answer in answers} == {"stop", "length"}
    for prompt, answer in zip(prompts, answers, strict=True):
        theirs = their_greedy(model, prompt)
        assert answer["finish_reason"] == ("stop" if theirs[-1] in stops else "length")
        theirs = theirs[:-1] if theirs[-1] in stops else theirs
        assert answer["num_tokens"] == len(theirs)
        assert answer["response"] == tokenizer.decode(theirs, skip_special_tokens=True)
