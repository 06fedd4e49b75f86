"""`rapo export` of whole runs: which goal its chat template asks for, also when the run itself began from an export."""

import dataclasses
import json
import shutil

import pytest
from transformers import AutoTokenizer

from rapo_jax.chat.goal_prompt import read_goal_prompt
from rapo_jax.errors import UserError
from rapo_jax.export.run import ExportOptions, export_run
from rapo_jax.runs.setup import open_run_dir, read_training_data, set_up
from tests import tiny

pytestmark = pytest.mark.slow

SENTENCE = "implicitly achieving the following target score"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two runs, each with its export: the second starts from the first one's export."""
    place = tmp_path_factory.mktemp("runs")
    tiny.write_model(place / "model")
    data = tiny.write_rows(place / "pairs.jsonl")
    (place / "run.yaml").write_text(tiny.RUN)
    for start, name in (("model", "first"), ("first-export", "second")):
        options = [f"model.path={place / start}", f"data.path={data}", f"run_dir={place / name}"]
        assert tiny.rapo("train", place / "run.yaml", *options) == 0
        assert tiny.rapo("export", place / name, place / f"{name}-export") == 0
    return place


def asked(directory, *turns):
    """The prompt of a user who applies the chat template and knows nothing of goals."""
    turns = [{"role": "user", "content": turn} for turn in turns or ("Hi",)]
    return AutoTokenizer.from_pretrained(directory).apply_chat_template(turns, tokenize=False)


def test_a_run_from_an_export_writes_its_goals_once(place):
    """When this fails, each round of training adds another goal to every prompt, and the export one more."""
    setup = set_up(open_run_dir(place / "second"))
    prompts = [setup.tokenizer.decode(group.prompt) for group in read_training_data(setup).groups]
    assert {prompt.count(SENTENCE) for prompt in prompts} == {1}
    first = set_up(open_run_dir(place / "first"))
    assert prompts == [first.tokenizer.decode(group.prompt) for group in read_training_data(first).groups]


@pytest.mark.parametrize("name", ["first", "second"])
def test_an_export_asks_for_the_highest_goal_once(place, name):
    directory = place / f"{name}-export"
    assert asked(directory).count(SENTENCE) == 1 and "Overall score: 10." in asked(directory)
    prompt = read_goal_prompt(directory)
    assert prompt is not None and prompt.baked == 10 and prompt.chat_template == tiny.CHAT_TEMPLATE


def test_relabelled_files_from_an_export_have_the_goal_once(place):
    out = place / "relabelled.jsonl"
    options = [f"model.path={place / 'first-export'}", f"data.path={place / 'pairs.jsonl'}"]
    assert tiny.rapo("relabel", place / "run.yaml", *options, "--out", out) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [str(row["prompt"]).count(SENTENCE) for row in rows] == [1] * len(rows)


def test_an_export_of_an_export_can_ask_for_another_goal_or_for_none(place):
    for number, (options, sentence) in enumerate(
        [(ExportOptions(goal=7.0), "Overall score: 7."), (ExportOptions(bake=False), None)]
    ):
        out = place / f"other{number}"
        done = export_run(place / "second", out, options=options)
        assert done.goal_prompt == read_goal_prompt(out)
        assert asked(out).count(SENTENCE) == (sentence is not None)
        assert sentence is None or sentence in asked(out)


def test_what_cannot_be_exported_is_refused_before_anything_is_written(place, tmp_path):
    with pytest.raises(UserError, match="first-export is not empty; nothing was written"):
        export_run(place / "first", place / "first-export", options=ExportOptions())
    with pytest.raises(UserError, match=r"trained all weights and has no adapters .*; leave out --adapter"):
        export_run(place / "first", tmp_path / "out", options=ExportOptions(adapter=True))
    assert not list(tmp_path.iterdir())


def test_the_model_card_hides_the_training_machines_directories(place):
    """When this fails, a published model card reveals someone's home directory."""
    card = (place / "first-export" / "README.md").read_text()
    assert str(place) not in card
    assert "# model, reward-augmented dpo" in card and "  path: model\n" in card
    assert "The chat template asks for a score of 10 by itself, in the system turn:\n\n> You are" in card


def test_a_configuration_that_was_edited_after_training_changes_no_export(place, tmp_path, capsys):
    """When this fails, a model is exported with a template that asks for goals that it has never seen."""
    run = shutil.copytree(place / "first", tmp_path / "run")
    text = (run / "config.yaml").read_text()
    assert "goal_max: 10.0" in text
    (run / "config.yaml").write_text(text.replace("goal_max: 10.0", "goal_max: 5.0"))
    done = export_run(run, tmp_path / "out", options=ExportOptions())
    assert done.goal_prompt.goal_max == 10 and "Overall score: 10." in asked(tmp_path / "out")
    note = "note: config.yaml is not what trained the checkpoint, which counts here: relabel.goal_max (10.0 -> 5.0)"
    assert note in capsys.readouterr().out


def test_a_checkpoint_under_another_steps_name_is_not_taken_for_it(place, tmp_path, caplog):
    """When this fails, a copy of an early checkpoint passes for the last one."""
    run = shutil.copytree(place / "first", tmp_path / "run")
    shutil.copytree(run / "checkpoints" / "2", run / "checkpoints" / "7")
    assert export_run(run, tmp_path / "out", options=ExportOptions()).step == 2
    assert "checkpoint 7 is damaged (it is a copy of step 2)" in caplog.text
    with pytest.raises(UserError, match=r"no sound checkpoint in .*: 7 are damaged"):
        export_run(run, tmp_path / "other", options=ExportOptions(step=7))


def test_the_files_of_an_export_are_spelled_for_every_version_of_transformers(place):
    """When this fails, transformers 4, and vLLM with it, refuses the export or computes something else from it."""
    directory = place / "second-export"
    tokenizer = json.loads((directory / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["chat_template"] == (directory / "chat_template.jinja").read_text()
    config = json.loads((directory / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float32"
    modes = {path.name: oct(path.stat().st_mode) for path in directory.iterdir()}
    assert len(set(modes.values())) == 1, modes


SWITCH = "{% if enable_thinking is defined and not enable_thinking %}(closed){% endif %}"
CLOSED = "data.template_options={enable_thinking: false}"


def test_options_of_a_chat_template_are_those_of_the_run_its_export_and_the_runs_after_it(place, capsys):
    """When this fails, a model that was trained with its thoughts switched off thinks when it is used."""
    tiny.write_model(place / "thinks", chat_template=SWITCH + tiny.CHAT_TEMPLATE)
    options = [f"data.path={place / 'pairs.jsonl'}", f"run_dir={place / 'closed'}"]
    assert tiny.rapo("train", place / "run.yaml", f"model.path={place / 'thinks'}", *options, CLOSED) == 0
    assert "the chat template is given enable_thinking=False, also when exported" in capsys.readouterr().out
    assert tiny.rapo("export", place / "closed", place / "closed-export") == 0
    setup = set_up(open_run_dir(place / "closed"))
    prompts = [setup.tokenizer.decode(group.prompt) for group in read_training_data(setup).groups]
    assert all(prompt.startswith("(closed)<|system|>") for prompt in prompts)
    exported = AutoTokenizer.from_pretrained(place / "closed-export")
    hi = [{"role": "user", "content": "Hi"}]
    plain, open_ = (
        exported.apply_chat_template(hi, tokenize=False, add_generation_prompt=True, **given)
        for given in ({}, {"enable_thinking": True})
    )
    assert plain.startswith("(closed)<|system|>") and open_.startswith("<|system|>")
    again = dataclasses.replace(open_run_dir(place / "closed").model, path=str(place / "closed-export"))
    start = dataclasses.replace(open_run_dir(place / "first"), model=again, run_dir="")
    assert set_up(start).config.data.template_options == {"enable_thinking": False}
    assert set_up(start).goal_prompt.chat_template == setup.goal_prompt.chat_template
    changed = "data.template_options.enable_thinking=true"
    assert tiny.rapo("train", place / "closed" / "config.yaml", changed, "train.max_steps=3") == 2
    assert "changed: data.template_options.enable_thinking (False -> True)." in " ".join(
        capsys.readouterr().err.split()
    )


def test_answers_are_asked_for_with_the_options_of_the_command_line(place, capsys):
    (place / "asked.jsonl").write_text('{"prompt": "Hi"}\n')
    command = ["generate", place / "closed-export", "--prompts", place / "asked.jsonl", "--max-new-tokens", "2"]
    for number, given in enumerate([(), ("--template-options", "{enable_thinking: true}")]):
        assert tiny.rapo(*command, "--out", place / f"answers{number}.jsonl", *given) == 0
    wrong = ("--template-options", "{enable_thinkin: true}", "--out", place / "answers2.jsonl")
    assert tiny.rapo(*command, *wrong) == 2
    assert (
        "--template-options: the chat template reads no variable 'enable_thinkin'; did you mean"
        in capsys.readouterr().err
    )
