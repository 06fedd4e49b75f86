"""`rapo score`: rewards that anyone else would compute, in a file that training accepts, and nothing lost or mixed
up."""

import functools
import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

from rapo_jax.locks import claimed
from rapo_jax.parallel import make_mesh
from rapo_jax.passes import forward_pass
from rapo_jax.passes.column import Column
from rapo_jax.score import responses as scoring
from tests.tiny import (
    CHAT_TEMPLATE,
    CONFIG,
    PAIRS,
    RUN,
    rapo,
    with_padding,
    write_model,
    write_rows,
)

DONE, USER_ERROR, INTERRUPTED = 0, 2, 75
BETA = 0.1  # of RUN
UNSCORED = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in PAIRS]
LISTS = [
    {"prompt": "What is two plus one?", "responses": ["It is 3.", "No idea", "Three!"]},
    {"prompt": "And one plus one?", "responses": ["2", "Well, it depends on what you call one."]},
    {"prompt": "Hi", "responses": ["Hello", "What?", "No"]},
]
NO_GOALS = ["relabel.goals=[]", "objective.beta=null"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A configuration, a model and its policy of other weights, unscored pairs and lists."""
    world = tmp_path_factory.mktemp("world")
    (world / "config.yaml").write_text(RUN)
    with_padding(write_model(world / "model"))
    with_padding(write_model(world / "policy", seed=1))
    write_rows(world / "pairs.jsonl", UNSCORED)
    write_rows(world / "lists.jsonl", LISTS)
    return world


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    on_one = functools.partial(make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr("rapo_jax.runs.setup.make_mesh", on_one)
    monkeypatch.setattr(scoring, "make_mesh", on_one)


@pytest.fixture(scope="module")
def reward_model(world):
    """An exported reward model after thirty steps on the tiny pairs, and the metrics of these steps."""
    directory = world / "reward"
    arguments = [*settings(world, directory / "run"), "objective.name=bradley_terry", *NO_GOALS, "train.max_steps=30"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rapo_jax.runs.setup.make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
        assert rapo("train", *arguments, "train.batch_size=12", "train.log_every=1") == DONE
        assert rapo("export", directory / "run", directory / "model") == DONE
    lines = (directory / "run" / "metrics.jsonl").read_text().splitlines()
    return directory / "model", [json.loads(line) for line in lines]


def settings(world, run_dir, *, model="model", data="pairs.jsonl"):
    """The arguments of `rapo train`."""
    return [world / "config.yaml", f"model.path={world / model}", f"data.path={world / data}", f"run_dir={run_dir}"]


def score(world, out, *more, model="policy", data="pairs.jsonl"):
    """Runs `rapo score`; its exit code. The reference is world/model."""
    config = settings(world, "", data=data)[:-1]
    return rapo("score", *config, "--model", world / model, "--out", out, *more)


def scores_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def refusal(capsys, code) -> str:
    message = capsys.readouterr().err
    assert code == USER_ERROR and "Traceback" not in message, message
    return message.removeprefix("rapo score: ").rstrip("\n")


def tokens_of(directory, prompt: str, response: str) -> tuple[list[int], int]:
    """The tokens of the rendered conversation, and how many of them are the prompt's."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]

    def ids(turns: list[dict], **more) -> list[int]:
        return tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **more)["input_ids"]

    before, whole = ids(turns[:1], add_generation_prompt=True), ids(turns)
    assert whole[: len(before)] == before
    return whole, len(before)


@functools.cache
def torch_model(directory: Path, kind: str):
    return (
        getattr(transformers, kind).from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    )


def torch_logp(directory: Path, tokens: list[int], start: int) -> float:
    """log p(tokens[start:] | those before), of one unpadded text."""
    with torch.no_grad():
        logits = torch_model(directory, "AutoModelForCausalLM")(torch.tensor([tokens])).logits[0].double()
    logps = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    return logps[start - 1 :].sum().item()


def torch_implicit_reward(world, prompt: str, response: str, *, reference: Path | None = None) -> float:
    """Of world/policy, by the plain template."""
    text = tokens_of(world / "model", prompt, response)
    return BETA * (torch_logp(world / "policy", *text) - torch_logp(reference or world / "model", *text))


def torch_score(directory: Path, prompt: str, response: str) -> float:
    tokens, _ = tokens_of(directory, prompt, response)
    with torch.no_grad():
        return torch_model(directory, "AutoModelForSequenceClassification")(torch.tensor([tokens])).logits[0, 0].item()


@pytest.fixture(scope="module")
def implicit(world):
    """The policy's scores of the unscored pairs, as the verb wrote them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
        assert score(world, world / "implicit.jsonl") == DONE
    return world / "implicit.jsonl"


# The numbers.


@pytest.mark.slow
def test_implicit_rewards_of_pairs_are_those_of_two_torch_models(world, implicit):
    """When this fails, a second round of relabelling asks for goals that no response has."""
    lines = scores_of(implicit)
    assert [line["row"] for line in lines] == list(range(1, 13))
    theirs = [[torch_implicit_reward(world, r["prompt"], r[name]) for name in ("chosen", "rejected")] for r in UNSCORED]
    assert np.ptp(theirs) > 0.1
    np.testing.assert_allclose([line["rewards"] for line in lines], theirs, atol=1e-5)


@pytest.mark.slow
def test_implicit_rewards_of_lists_are_those_of_two_torch_models(world, tmp_path):
    """When this fails, in rows of unequal size, a response gets the reward of another or of one that does not exist."""
    assert score(world, tmp_path / "scores.jsonl", data="lists.jsonl") == DONE
    lines = scores_of(tmp_path / "scores.jsonl")
    assert [(line["row"], len(line["rewards"])) for line in lines] == [(1, 3), (2, 2), (3, 3)]
    for row, line in zip(LISTS, lines, strict=True):
        theirs = [torch_implicit_reward(world, row["prompt"], response) for response in row["responses"]]
        np.testing.assert_allclose(line["rewards"], theirs, atol=1e-5)


@pytest.mark.slow
def test_log_probabilities_are_written_on_request(world, implicit, tmp_path, capsys):
    """When this fails, what implicit rewards are made of cannot be looked at, or is another model's."""
    out = tmp_path / "scores.jsonl"
    assert score(world, out, "--scorer", "implicit", "--write", "logps") == DONE
    for row, line, before in zip(UNSCORED, scores_of(out), scores_of(implicit), strict=True):
        for which, model in (("policy_logps", "policy"), ("reference_logps", "model")):
            texts = [tokens_of(world / "model", row["prompt"], row[name]) for name in ("chosen", "rejected")]
            np.testing.assert_allclose(line[which], [torch_logp(world / model, *each) for each in texts], atol=1e-4)
        differences = np.subtract(line["policy_logps"], line["reference_logps"])
        np.testing.assert_allclose(line["rewards"], BETA * differences, atol=1e-6)
        assert {"row": line["row"], "rewards": line["rewards"]} == before
    message = refusal(capsys, score(world, tmp_path / "more.jsonl", "--scorer", "reward_model"))
    assert message == (
        f"--model={world / 'policy'} is a language model, and --scorer=reward_model needs a classifier of one label; name one, "
        "or take --scorer=implicit."
    )


@pytest.mark.slow
def test_devices_change_no_reward(world, implicit, tmp_path, monkeypatch):
    """When this fails, on several devices, responses get each other's rewards, or rows at the end get none."""
    monkeypatch.setattr(scoring, "make_mesh", make_mesh)
    assert score(world, tmp_path / "scores.jsonl", "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2") == DONE
    mine, other = ([line["rewards"] for line in scores_of(path)] for path in (tmp_path / "scores.jsonl", implicit))
    np.testing.assert_allclose(mine, other, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # from other libraries
def test_scores_of_a_reward_model_are_those_of_transformers(world, reward_model, tmp_path):
    """When this fails, responses are scored at a token other than their last, or in another chat template."""
    directory, _ = reward_model
    assert score(world, tmp_path / "scores.jsonl", model=directory, data="lists.jsonl") == DONE
    for row, line in zip(LISTS, scores_of(tmp_path / "scores.jsonl"), strict=True):
        theirs = [torch_score(directory, row["prompt"], response) for response in row["responses"]]
        assert len(set(theirs)) == len(theirs)
        np.testing.assert_allclose(line["rewards"], theirs, atol=1e-5)
    assert json.loads((tmp_path / "scores.json").read_text()) == {"kind": "reward_model", "model": str(directory)}


@pytest.mark.slow
def test_a_reward_model_learns_to_prefer_what_is_chosen(world, reward_model, tmp_path):
    """When this fails, reward models train on swapped pairs, at a wrong token, or with a head that does not move."""
    directory, steps = reward_model
    assert [step["step"] for step in steps] == list(range(1, 31))
    assert steps[0]["loss"] == pytest.approx(0.6931, abs=0.01) and steps[-1]["loss"] < 0.5
    assert steps[-1]["rewards/accuracies"] == 1.0
    assert score(world, tmp_path / "scores.jsonl", model=directory) == DONE
    rewards = [line["rewards"] for line in scores_of(tmp_path / "scores.jsonl")]
    assert len(rewards) == 12 and all(chosen > rejected for chosen, rejected in rewards)


@pytest.mark.slow
def test_responses_are_scored_without_a_goal(world, tmp_path):
    """When this fails, a second round is scored under the goal that the first round's export asks for."""
    scored = write_rows(tmp_path / "scored.jsonl")
    assert rapo("train", *settings(world, tmp_path / "run", data=scored)) == DONE
    assert rapo("export", tmp_path / "run", tmp_path / "first") == DONE
    assert len(tokens_of(tmp_path / "first", "Hi", "A")[0]) > len(tokens_of(world / "model", "Hi", "A")[0])
    assert score(world, tmp_path / "scores.jsonl", "--reference", tmp_path / "first", data="lists.jsonl") == DONE
    for row, line in zip(LISTS, scores_of(tmp_path / "scores.jsonl"), strict=True):
        for response, reward in zip(row["responses"], line["rewards"], strict=True):
            expected = torch_implicit_reward(world, row["prompt"], response, reference=tmp_path / "first")
            assert reward == pytest.approx(expected, abs=1e-5)


# What the rewards are used for.


@pytest.mark.slow
def test_unscored_pairs_with_implicit_rewards_are_relabelled_and_trained_on(world, implicit, tmp_path):
    """When this fails, preferences without scores, most of what is published, cannot be reward-augmented."""
    arguments = [*settings(world, tmp_path / "run"), f"data.rewards={implicit}", "relabel.scale.fit=minmax"]
    assert rapo("train", *arguments) == DONE
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert f"{implicit} (kind implicit_reward, model {world / 'policy'}" in json.dumps(report)
    assert rapo("relabel", *arguments, "--out", tmp_path / "rows.jsonl") == DONE
    rows = scores_of(tmp_path / "rows.jsonl")
    rewards = np.array([line["rewards"] for line in scores_of(implicit)])
    on_scale = 1 + 9 * (rewards - rewards.min()) / np.ptp(rewards)
    assert len(rows) == 24 and {row["goal_of"] for row in rows} == {"chosen", "rejected"}
    for row in rows:
        end = np.max if row["goal_of"] == "chosen" else np.min
        assert row["goal"] == pytest.approx(end(on_scale[row["source_row"] - 1]), abs=0.0501)  # to one decimal


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # from other libraries
def test_direct_reward_optimization_from_text_to_model_by_the_command_line(world, tmp_path):
    """When this fails, the paper's three models can each be trained alone, but do not fit together."""

    def trained(name: str, *more: object, start: Path) -> Path:
        arguments = [
            world / "config.yaml",
            f"run_dir={tmp_path / name}",
            f"model.path={start}",
            *more,
            "relabel.goals=[]",
        ]
        assert rapo("train", *arguments, f"data.path={world / 'pairs.jsonl'}") == DONE
        assert rapo("export", tmp_path / name, tmp_path / f"{name}-hf") == DONE
        return tmp_path / f"{name}-hf"

    tuned = trained("sft", "objective.name=sft", "objective.beta=null", start=world / "model")
    judge = trained("rm", "objective.name=bradley_terry", "objective.beta=null", start=tuned)
    scores = tmp_path / "scores.jsonl"
    assert score(world, scores, model=judge) == DONE
    first, row = scores_of(scores)[0], UNSCORED[0]
    theirs = [torch_score(judge, row["prompt"], row[name]) for name in ("chosen", "rejected")]
    np.testing.assert_allclose(first["rewards"], theirs, atol=1e-5)
    last = trained(
        "dro", "objective.name=dro_pointwise", f"data.rewards={scores}", "relabel.scale.fit=zscore", start=tuned
    )
    before, after = (torch_model(path, "AutoModelForCausalLM").state_dict() for path in (tuned, last))
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    lines = [json.loads(line) for line in (tmp_path / "dro" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines)


# Rows that training treats differently.


@pytest.mark.slow
def test_rows_that_training_leaves_out_are_scored_all_the_same(world, tmp_path):
    """When this fails, training refuses the file for lack of scores of truthful_qa rows, which it drops later."""
    rows = [row | {"source": "truthful_qa" if n == 3 else "other"} for n, row in enumerate(UNSCORED)]
    write_rows(tmp_path / "rows.jsonl", rows)
    scores = tmp_path / "scores.jsonl"
    assert score(world, scores, data=tmp_path / "rows.jsonl") == DONE
    assert [line["row"] for line in scores_of(scores)] == list(range(1, 13))
    arguments = [*settings(world, tmp_path / "run", data=tmp_path / "rows.jsonl"), f"data.rewards={scores}"]
    assert rapo("relabel", *arguments, "relabel.scale.fit=minmax", "--out", tmp_path / "out.jsonl") == DONE
    assert 4 not in {row["source_row"] for row in scores_of(tmp_path / "out.jsonl")}


@pytest.mark.slow
def test_responses_that_the_model_cannot_tell_apart_have_one_reward(world, tmp_path):
    """When this fails, a pair that differs in a line feed, which training drops and counts, makes scoring impossible,
    with advice to raise a length that is not at fault."""
    trims = CHAT_TEMPLATE.replace("message['content'] +", "message['content'] | trim +")
    (tmp_path / "trims.jinja").write_text(trims)
    same = {"prompt": "Why?", "chosen": "Because.", "rejected": "Because.\n"}
    write_rows(tmp_path / "rows.jsonl", [same, *UNSCORED])
    template = f"data.chat_template={tmp_path / 'trims.jinja'}"
    scores = tmp_path / "scores.jsonl"
    assert score(world, scores, template, data=tmp_path / "rows.jsonl") == DONE
    first, second = scores_of(scores)[:2]
    assert first["rewards"][0] == pytest.approx(first["rewards"][1], abs=1e-5)
    theirs = torch_implicit_reward(world, UNSCORED[0]["prompt"], UNSCORED[0]["chosen"])
    assert second["rewards"][0] == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
def test_truncated_responses_are_counted(world, tmp_path, capsys):
    """When this fails, half a response is scored, and nobody is told."""
    rows = [UNSCORED[0], UNSCORED[1] | {"rejected": "No! " * 80}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert score(world, tmp_path / "scores.jsonl", data=tmp_path / "rows.jsonl") == DONE
    assert "1 of 2 rows have responses that are scored up to data.max_length=256 tokens only" in capsys.readouterr().out
    assert score(world, tmp_path / "again.jsonl", "data.max_length=1024", data=tmp_path / "rows.jsonl") == DONE
    assert "data.max_length" not in capsys.readouterr().out


# Interruptions.

FEW_A_ROW = ["rows.per_shard=1", "rows.length=256"]


@pytest.fixture
def interrupted(world, tmp_path, monkeypatch):
    """The output of a pass that was stopped at the first batch of its first model."""
    monkeypatch.setattr("rapo_jax.passes.forward_pass.WRITE_EVERY", 0.0)
    make = forward_pass.make_logps_step

    def stop_at_the_first(*arguments):
        step = make(*arguments)

        def signalled(*inputs):
            signal.raise_signal(signal.SIGTERM)
            return step(*inputs)

        return signalled

    out = tmp_path / "scores.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr("rapo_jax.passes.forward_pass.make_logps_step", stop_at_the_first)
        assert score(world, out, *FEW_A_ROW) == INTERRUPTED
    assert not out.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["scores.jsonl.unfinished"]
    return out


@pytest.mark.slow
def test_an_interrupted_pass_goes_on_where_it_stopped(world, implicit, interrupted, monkeypatch):
    """When this fails, scoring that is preempted in its third hour begins again at the first row."""
    known = ~np.isnan(np.load(f"{interrupted}.unfinished/policy.npy")).any(1)
    assert 0 < known.sum() < 12
    interrupted.with_suffix(".json").write_text("{}")  # the last thing before the scores themselves
    computed, write = [], Column.write

    def write_and_count(column, members, logps):
        write(column, members, logps)
        computed.append((column.numbers.stem, set(map(int, members))))

    monkeypatch.setattr(Column, "write", write_and_count)
    assert score(world, interrupted, *FEW_A_ROW) == DONE
    of = lambda name: set().union(*(members for column, members in computed if column == name))  # noqa: E731
    assert of("policy") == set(np.flatnonzero(~known)) and of("reference") == set(range(12))
    assert sorted(path.name for path in interrupted.parent.iterdir()) == ["scores.json", "scores.jsonl"]
    mine, whole = ([line["rewards"] for line in scores_of(path)] for path in (interrupted, implicit))
    np.testing.assert_allclose(mine, whole, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "model", "changed"),
    [
        ([], "model", "weights"),
        (["model.dtype=bfloat16"], "policy", "weights; dtype"),
        (["data.max_length=30", "data.max_prompt_length=25"], "policy", "tokens"),
    ],
)
def test_what_another_pass_left_unfinished_is_refused_with_what_differs(
    more, model, changed, world, interrupted, capsys
):
    """When this fails, the scores of two models are mixed in one file."""
    kept = Path(f"{interrupted}.unfinished")
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    message = refusal(capsys, score(world, interrupted, *FEW_A_ROW, *more, model=model))
    assert str(kept) in message and f"changed: {changed}. " in message
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before and not interrupted.exists()


def test_refusing_an_unfinished_pass_names_scores_and_the_out_option(world, tmp_path, capsys):
    """When this fails, someone scoring responses reads about log-probabilities and a directory no option sets."""
    kept = tmp_path / "scores.jsonl.unfinished"
    kept.mkdir()
    identity = {"weights": "another model's", "tokens": "other texts'", "dtype": "float32"}
    (kept / "policy.json").write_text(json.dumps({"identity": identity}))
    assert refusal(capsys, score(world, tmp_path / "scores.jsonl")) == (
        f"{kept} holds scores of something else; changed: weights; tokens. Choose another --out, or remove this directory. "
        "Nothing was overwritten."
    )


def finished_but_kept(world, tmp_path, *, rewards):
    """What a command leaves that was killed between writing its scores and removing what it had kept."""
    out = tmp_path / "scores.jsonl"
    origin = {
        "kind": "implicit_reward",
        "model": str(world / "policy"),
        "reference": str(world / "model"),
        "beta": BETA,
    }
    out.with_suffix(".json").write_text(json.dumps(origin))
    write_rows(out, [{"row": number, "rewards": rewards} for number in range(1, 13)])
    (tmp_path / "scores.jsonl.unfinished").mkdir()
    return out


def test_a_command_that_was_killed_after_writing_its_scores_ends_at_once(world, tmp_path, capsys, monkeypatch):
    """When this fails, the leftover of a finished command makes it refuse for ever. The next step that it names is the one
    of the documents: the quantiles of implicit rewards, whose extremes are outliers."""
    out = finished_but_kept(world, tmp_path, rewards=[0.5, -1.0])
    before = out.read_bytes()
    monkeypatch.delattr("rapo_jax.opened.load_parameters")
    assert score(world, out) == DONE
    assert out.read_bytes() == before and not Path(f"{out}.unfinished").exists()
    said = capsys.readouterr().out
    assert f"{out}: 24 responses of 12 rows (kind implicit_reward" in said and "from -1 to 0.5, mean -0.25\n" in said
    assert f"next: rapo train CONFIG data.rewards={out} relabel.scale.fit=quantile\n" in said


@pytest.mark.parametrize(("rewards", "model"), [([0.5], "policy"), ([0.5, -1.0], "model")])
def test_scores_of_something_else_are_never_taken_for_the_commands_own(world, tmp_path, capsys, rewards, model):
    out = finished_but_kept(world, tmp_path, rewards=rewards)
    message = refusal(capsys, score(world, out, model=model))
    assert message == f"{out} exists; nothing was written. Choose another --out."
    assert out.exists() and Path(f"{out}.unfinished").exists()


def test_two_commands_never_score_into_one_file(world, tmp_path, capsys):
    """When this fails, two terminals mix their scores in one file."""
    kept = tmp_path / "scores.jsonl.unfinished"
    kept.mkdir()
    with claimed(kept, said="it"):
        assert f"{kept} is in use by process" in refusal(capsys, score(world, tmp_path / "scores.jsonl"))
    assert list(kept.iterdir()) == []


# Mistakes.


def with_config(directory: Path, **changes) -> Path:
    """A model directory of another shape; its weights are never read."""
    write_model(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    return directory


def test_a_model_of_another_shape_than_its_reference_is_refused(world, tmp_path, capsys):
    """When this fails, an implicit reward is the difference of two unrelated models."""
    other = with_config(tmp_path / "other", num_hidden_layers=CONFIG["num_hidden_layers"] + 1, intermediate_size=48)
    message = refusal(capsys, score(world, tmp_path / "scores.jsonl", model=other))
    assert message == (
        f"{other} was not trained from {world / 'model'} (L 3 and 2; F 48 and 24): an implicit reward compares a policy "
        "with the model that it started from. Name that one with --reference, or with model.path."
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_a_model_of_another_vocabulary_than_its_reference_is_refused(world, tmp_path, capsys):
    """When this fails, two models read the same token ids as different words."""
    other = with_padding(write_model(tmp_path / "other"))
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"<|user|>"', '"<|human|>"'))
    message = refusal(capsys, score(world, tmp_path / "scores.jsonl", model=other))
    assert f"{other} was not trained from {world / 'model'} (another vocabulary)" in message


def test_a_reference_is_named_where_the_configuration_has_another_model(world, tmp_path, capsys):
    other = with_config(tmp_path / "other", intermediate_size=48)
    arguments = ["--model", world / "policy", "--out", tmp_path / "scores.jsonl", f"data.path={world / 'pairs.jsonl'}"]
    message = refusal(capsys, rapo("score", world / "config.yaml", *arguments, f"model.path={other}"))
    assert f"{world / 'policy'} was not trained from {other} (F 24 and 48)" in message
    message = refusal(capsys, rapo("score", world / "config.yaml", *arguments))
    assert "no such directory; give a Hugging Face model directory or a hub id" in message


@pytest.mark.slow
def test_a_reference_given_with_a_reward_model_is_refused(world, reward_model, tmp_path, capsys):
    """When this fails, someone believes that a reward model's scores were compared with a reference."""
    directory, _ = reward_model
    out = tmp_path / "scores.jsonl"
    message = refusal(capsys, score(world, out, "--reference", world / "model", model=directory))
    assert message == (f"--model={directory} is a reward model, whose scores need no reference; leave out --reference.")
    message = refusal(capsys, score(world, out, "--reference", directory))
    assert message.startswith(f"the reference {directory} is a reward model") and "a language model" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["scores.jsonl", "scores.json"])
def test_nothing_that_exists_is_overwritten(name, world, tmp_path, capsys):
    """When this fails, typing a command again destroys hours of scoring, or a user's file beside them."""
    (tmp_path / name).write_text("mine\n")
    message = refusal(capsys, score(world, tmp_path / "scores.jsonl"))
    assert message == f"{tmp_path / name} exists; nothing was written. Choose another --out."
    assert (tmp_path / name).read_text() == "mine\n" and len(list(tmp_path.iterdir())) == 1


def test_scores_must_go_to_a_jsonl_file(world, tmp_path, capsys):
    """When this fails, the record of what made the scores overwrites them, or cannot be found beside them."""
    message = refusal(capsys, score(world, tmp_path / "scores.json"))
    assert message == f"--out={tmp_path / 'scores.json'}: scores are JSON lines; give a name that ends with .jsonl."


def test_a_row_that_does_not_fit_is_refused_before_anything_is_computed(world, tmp_path, capsys):
    """When this fails, training refuses the file an hour later, for one row without scores."""
    message = refusal(capsys, score(world, tmp_path / "scores.jsonl", "data.max_length=9", "data.max_prompt_length=2"))
    assert message == (
        "12 of 12 rows do not fit data.max_length=9 and would have no scores (the first: row 1); raise it."
    )
    assert list(tmp_path.iterdir()) == []


def test_several_sources_are_scored_one_at_a_time(world, tmp_path, capsys):
    arguments = ["--model", world / "policy", "--out", tmp_path / "scores.jsonl", f"model.path={world / 'model'}"]
    source = f"data.sources=[{{path: {world / 'pairs.jsonl'}}}]"
    message = refusal(capsys, rapo("score", world / "config.yaml", *arguments, source))
    assert message == "data.sources: scores are made for one source at a time; give data.path=... in its place."
    message = refusal(capsys, rapo("score", world / "config.yaml", *arguments))
    assert message.startswith("data.path is not set")


def test_an_objective_without_beta_has_no_implicit_reward(world, tmp_path, capsys):
    options = ["objective.name=sft", *NO_GOALS]
    message = refusal(capsys, score(world, tmp_path / "scores.jsonl", *options))
    assert message == "objective.name=sft has no beta, by which implicit rewards are multiplied."
