"""Every mistake at the command line is answered with one message that has the fact, the constraint and the setting to
change; exit code 2, no traceback, and nothing lost that was there before."""

import json
import math
import shutil

import pytest

from tests.tiny import CHAT_TEMPLATE, PAIRS, RUN, build_tokenizer, rapo, write_model, write_rows

NO_SCORES = [{key: value for key, value in row.items() if not key.startswith("score")} for row in PAIRS]
TURNS = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Are you there?"}]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A directory with config.yaml, model/ and pairs.jsonl."""
    world = tmp_path_factory.mktemp("world")
    (world / "config.yaml").write_text(RUN)
    write_model(world / "model")
    write_rows(world / "pairs.jsonl")
    return world


@pytest.fixture(scope="module")
def run(world):
    """A finished run of two steps, in the world."""
    assert rapo("train", *settings(world, world / "run")) == 0
    return world / "run"


@pytest.fixture
def place(world, tmp_path, monkeypatch):
    """An empty current directory to make mistakes in. The world must be unchanged afterwards."""
    before = contents(world)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert contents(world) == before


@pytest.fixture
def refused(capsys):
    """A function (*arguments) -> the one message with which `rapo *arguments` is refused."""

    def refused(*arguments):
        capsys.readouterr()
        code = rapo(*arguments)
        printed, message = capsys.readouterr()
        assert code == 2, f"exit code {code}: {printed}{message}"
        assert "Traceback" not in printed + message
        *usage, message = message.split(f"rapo {arguments[0] if arguments else ''}".rstrip() + ": ")
        assert all(text.startswith("usage: ") or not text for text in usage)
        return message.removeprefix("error: ").rstrip("\n")

    return refused


def settings(world, run_dir):
    """The arguments of `rapo train` for a run in this directory."""
    paths = {"model.path": world / "model", "data.path": world / "pairs.jsonl", "run_dir": run_dir}
    return [world / "config.yaml", *(f"{key}={path}" for key, path in paths.items())]


def contents(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def with_row(**change):
    """The pairs, with a change in the fourth; ... removes a column."""
    changed = {key: value for key, value in (PAIRS[3] | change).items() if value is not ...}
    return [*PAIRS[:3], changed, *PAIRS[4:]]


# Settings.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "argument VERB: invalid choice: 'frobnicate' (choose from "),
        ([], "the following arguments are required: VERB"),
        (["train"], "the following arguments are required: CONFIG"),
        (["train", "c.yaml", "--fast"], "unrecognized arguments: --fast"),
        (["export", "run", "out", "surplus"], "unrecognized arguments: surplus"),
        (["relabel", "c.yaml"], "the following arguments are required: --out"),
        (["export", "run", "out", "--goal", "9", "--no-goal"], "argument --no-goal: not allowed with argument --goal"),
        (["export", "run", "out", "--goal", "nan"], "argument --goal: nan is out of range; it must be a finite number"),
    ],
)
def test_a_malformed_command_is_answered_with_its_usage(capsys, arguments, message):
    assert rapo(*arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("usage: rapo") and message in printed and "Traceback" not in printed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "'seed' is not an override; write key=value, such as optimizer.learning_rate=1e-6."),
        ("objective.betta=1", "unknown key objective.betta; did you mean objective.beta?"),
        ("run_dir=", "run_dir is not set; add it to CONFIG or to the command line: run_dir=..."),
        ("run_dir=''", "run_dir is not set; add it to CONFIG or to the command line: run_dir=..."),
        (
            "relabel.template=Be good.",
            "relabel.template='Be good.' has no {goal}; write one with {goal} or name one of: paper, released_code.",
        ),
        (
            "lora.rank=12",
            "lora.rank=12 exceeds the smaller dimension of k (16 x 8), v (16 x 8); lower lora.rank to 8 or less, or take "
            "them out of lora.targets.",
        ),
        (
            "mesh.tensor=7",
            "mesh.data=1, mesh.fsdp=-1, mesh.tensor=7 cannot use 8 devices: the product of the sizes must equal the "
            "number of devices; change one of them, or set one to -1 (all remaining devices).",
        ),
        (
            "train.batch_size=100",
            "train.batch_size=100 exceeds the 24 pairs that the data gives after relabelling (train.num_epochs=1); "
            "lower train.batch_size or use more data.",
        ),
        (
            "train.wandb_project=mine",
            "train.wandb_project is set, but wandb is not installed: pip install 'rapo_jax[wandb]'.",
        ),
        ("data.eval_fraction=1e-9", "data.eval_fraction=1e-09 holds none of 12 rows out; raise it, or remove it."),
        (
            "data.eval_fraction=0.999999",
            "data.eval_fraction=0.999999 holds all of 12 rows out; lower it, or remove it.",
        ),
        (
            "data.chat_template=chatlm",
            "data.chat_template=chatlm is neither a preset nor a file; give "
            "data.chat_template=plain|chatml|zephyr|deepseek-r1|FILE.jinja.",
        ),
        (
            "rows.length=80",
            "11 groups of a prompt and its responses do not fit rows of 80 tokens; the longest, from row 12, has 87. "
            "Raise rows.length to 88, lower data.max_length, or set rows.split=always: each prompt fits with one response.",
        ),
    ],
)
def test_an_impossible_setting_is_refused_before_anything_is_written(world, place, refused, override, message):
    """When this fails, the mistake surfaces hours into a run, or after its directory was made."""
    assert refused("train", *settings(world, "new"), override) == message
    assert not any(place.iterdir())


def test_sft_with_the_rejected_responses_goal_is_refused(world, place, refused):
    message = refused("train", *settings(world, "new"), "objective={name: sft}")
    assert message.startswith("objective.name=sft trains on one response and has no rejected one to take a goal from")
    assert message.endswith(
        "set relabel.goals=[chosen] (each response at its own score) or relabel.goals=[] (no goals)."
    )


def test_a_missing_config_is_named(place, refused):
    assert refused("train", "none.yaml") == "none.yaml does not exist; CONFIG must be a YAML file (examples: configs/)."
    assert refused("train", place) == f"{place} is a directory; CONFIG must be a YAML file (examples: configs/)."


# Data.


@pytest.mark.parametrize("option", ["data.path", "data.eval_path"])
def test_missing_data_is_named_with_its_option(world, place, refused, option):
    message = refused("train", *settings(world, "new"), f"{option}=none.jsonl")
    assert message.startswith(f"{option}=none.jsonl: no such file or directory, and no data set that can be loaded")
    assert f"with {option.replace('path', 'split')}=" in message
    given = "give a .jsonl, .json, .parquet or .csv file, a directory of them, one written by save_to_disk, or the id of a data set."
    assert given in message
    assert ("data.eval_path= (empty)" in message) == (option == "data.eval_path"), "how to do without an evaluation"


def test_a_line_that_is_not_json_is_named(world, place, refused):
    (place / "bad.jsonl").write_text((world / "pairs.jsonl").read_text() + '{"prompt": \n')
    assert refused("train", *settings(world, "new"), "data.path=bad.jsonl") == (
        "bad.jsonl line 13 is not JSON: Expecting value at character 12; one JSON object per line is needed."
    )


def test_a_missing_column_is_answered_with_the_existing_ones(world, place, refused):
    write_rows(place / "some.jsonl", [{"question": "Hi", "chosen": "Good", "answer": "Bad"}])
    assert refused("train", *settings(world, "new"), "data.path=some.jsonl") == (
        "data.path=some.jsonl has the columns 'question', 'chosen', 'answer'; needed: chosen and rejected. "
        "Name them with data.columns.chosen=... and data.columns.rejected=...."
    )


def test_data_without_scores_is_refused_with_both_remedies(world, place, refused):
    """When this fails, people give up or invent scores: this is the most frequent first mistake."""
    write_rows(place / "some.jsonl", NO_SCORES)
    message = refused("train", *settings(world, "new"), "data.path=some.jsonl")
    assert message.startswith(
        "data.path=some.jsonl has the columns 'prompt', 'chosen', 'rejected', none of which is known"
    )
    assert "(tried score_chosen + score_rejected, chosen_score + rejected_score, chosen-rating + " in message
    assert "name their columns with data.columns.score_chosen=... and data.columns.score_rejected=..." in message
    assert message.endswith("or train without goals by relabel.goals=[].")


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"score_chosen": math.nan}, "score_chosen is nan, not a finite number"),
        ({"score_chosen": math.inf}, "score_chosen is inf, not a finite number"),
        ({"score_rejected": "8"}, "score_rejected is '8', not a finite number"),
        ({"score_rejected": ...}, "score_rejected is missing, not a finite number"),
        ({"score_rejected": 10**400}, f"score_rejected is {10**39}, not a finite number"),
        ({"chosen": " \n"}, "the response in chosen is empty"),
        ({"rejected": None}, "rejected is missing"),
        ({"prompt": TURNS}, "turn 2 of the prompt is of role user, must be of role assistant"),
        (
            {"prompt": [{"role": "bot", "content": "x"}]},
            "prompt has the role 'bot'; known: system, user, assistant, tool",
        ),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_what_a_row_needs(world, place, refused, change, fact):
    write_rows(place / "some.jsonl", with_row(**change))
    assert refused("train", *settings(world, "new"), "data.path=some.jsonl") == (
        "1 of 12 rows cannot be used. A row needs turns that alternate and end with a user's, responses that are not "
        "empty and scores that are finite numbers; fix the rows or set data.bad_rows=drop.\n"
        f"  some.jsonl line 4: {fact}"
    )
    assert [path.name for path in place.iterdir()] == ["some.jsonl"]


# Rows that fit another objective.
LABELLED = [{"prompt": f"Is {n} even?", "completion": "Yes.", "label": n % 2} for n in range(4)]
ANSWERED = [{"prompt": f"Is {n} even?", "completion": "Yes."} for n in range(4)]
CONVERSATIONS = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}] * 4
ALPACA = [{"instruction": f"Is {n} even?", "input": "Say why.", "output": "Yes."} for n in range(4)]


@pytest.mark.parametrize(
    ("rows", "overrides", "others"),
    [
        (LABELLED, [], "kto or sft"),
        ([row | {"label": bool(row["label"])} for row in LABELLED], ["relabel.goals=[]"], "kto or sft"),
        (ANSWERED, [], "sft"),
        (CONVERSATIONS, [], "sft"),
        (ALPACA, [], "sft"),
        (ANSWERED, ["objective={name: kto}"], "sft"),
    ],
)
def test_rows_for_another_objective_are_told_which(world, place, refused, rows, overrides, others):
    """When this fails, people rename columns until something is accepted, and train on what they did not mean."""
    write_rows(place / "some.jsonl", rows)
    message = refused("train", *settings(world, "new"), "data.path=some.jsonl", *overrides)
    assert f" for objective.name={others}" in message


def test_pairs_are_refused_by_no_objective_that_reads_one_response_or_labels(world, place, refused):
    """When this fails, KTO or SFT on a file of pairs needs a copy of the file."""
    for name, what in {"kto": "24 groups", "sft": "12 responses"}.items():
        more = [f"objective={{name: {name}}}", "train.batch_size=100", "relabel.goals=" + "[chosen]" * (name == "sft")]
        more = more if name == "sft" else more[:2]
        assert f"exceeds the {what} that the data gives" in refused("train", *settings(world, "new"), *more)


def test_alpacas_columns_are_named_where_they_are_not_read(world, place, refused, capsys):
    """When this fails, the text that an instruction is about is left out of the prompt without a word."""
    write_rows(place / "some.jsonl", ALPACA)
    sft = ["data.path=some.jsonl", "objective={name: sft}", "relabel.goals=[]"]
    assert refused("train", *settings(world, "new"), *sft).endswith(
        "Name it with data.columns.response=output and data.columns.prompt=instruction; data.columns.input=input adds the "
        "text of 'input' to it, which is not read otherwise."
    )
    columns = ["data.columns.response=output", "data.columns.prompt=instruction", "data.columns.input=input"]
    message = refused("train", *settings(world, "new"), *sft, *columns, "train.batch_size=99")
    assert "exceeds the 4 responses that the data gives" in message
    assert refused(
        "generate", world / "model", "--prompts", "some.jsonl", "--out", "out.jsonl", "--max-prompt-length", 9
    )
    refused("generate", world / "model", "--prompts", "some.jsonl", "--out", "some.jsonl")
    (place / "some.jsonl").unlink()


def test_too_few_groups_are_explained_by_what_was_left_out(world, place, refused):
    """When this fails, people look for their rows in the file, where they are, and not in the settings."""
    rows = [PAIRS[0] | {"prompt": f"How are you, {n}?"} for n in range(12)]
    for n in range(3):
        rows[n] |= {"rejected": rows[n]["chosen"]}
    rows[3] |= {"score_rejected": rows[3]["score_chosen"]}
    rows[4] |= {"chosen": "y" * 300, "rejected": "y" * 300 + "z"}
    write_rows(place / "some.jsonl", rows)
    lengths = ["data.max_length=200", "data.max_prompt_length=150"]
    message = refused("train", *settings(world, "new"), "data.path=some.jsonl", "train.batch_size=100", *lengths)
    assert message == (
        "train.batch_size=100 exceeds the 14 pairs that the data gives after relabelling (train.num_epochs=1); lower "
        "train.batch_size or use more data. Of 12 rows, 4 were left out: 3 identical_responses, 1 tied. Of 16 preferences, 2 "
        "were left out: 2 identical_after_truncation. A larger data.max_length keeps more of them."
    )


SET = {"prompt": "Hi", "responses": ["A", "B", "C"], "rewards": [3, 1, 2]}


@pytest.mark.parametrize(
    ("row", "overrides", "message"),
    [
        (SET | {"rewards": ...}, [], "none of which is known as the scores of its responses; goals come from scores"),
        (
            SET | {"rewards": ...},
            ["relabel.goals=[]"],
            "row 1 has 3 responses and no rewards to choose among them; name the column of their scores with",
        ),
        (
            SET | {"rewards": [2, 2, 2]},
            ["relabel.scale.fit=minmax"],
            "relabel.scale.fit=minmax: the scale of the 3 rewards goes from 2 to 2, a width of zero",
        ),
        (
            SET,
            ["relabel.attributes=[wit]"],
            "relabel.attributes=[wit]: 1 of 1 row lack an attribute. Name the column that holds them",
        ),
        (
            SET | {"rewards": ...},
            ["relabel.goals=[]", "objective.name=nca"],
            "data.rewards=FILE.jsonl, or choose another objective.",
        ),
        (SET, ["data.columns.rewards=reward"], "not data.columns.rewards='reward'; did you mean 'rewards'?"),
        (SET, ["data.rewards=none.jsonl"], "data.rewards=none.jsonl: no such file; it must be constant, or a .jsonl"),
        (SET, ["data.rewards=constant"], "row 1 has 3 responses in no order of preference; it suits chosen"),
        (SET, ["data.drop_sources=[web]", "data.columns.source=web"], "not data.columns.source='web'; known: prompt"),
        (SET, ["data.schema=nectar"], "data.schema=nectar needs answers. Name them with data.columns.*."),
    ],
)
def test_responses_that_cannot_be_compared_are_refused_with_remedies(world, place, refused, row, overrides, message):
    write_rows(place / "some.jsonl", [{key: value for key, value in row.items() if value is not ...}])
    assert message in refused("train", *settings(world, "new"), "data.path=some.jsonl", *overrides)
    assert [path.name for path in place.iterdir()] == ["some.jsonl"]


def test_an_enormous_score_is_accepted(world, place):
    """When this fails, squared distances overflow and one row ends the run with a traceback."""
    write_rows(place / "some.jsonl", with_row(score_chosen=1e300))
    assert rapo("relabel", *settings(world, "new"), "data.path=some.jsonl", "--out", "out.jsonl") == 0


def test_a_score_that_is_infinite_on_the_device_is_refused_before_training(world, place, refused):
    write_rows(place / "some.jsonl", with_row(score_chosen=1e20))
    assert refused("train", *settings(world, "new"), "data.path=some.jsonl") == (
        "row 4: its rewards under the goal 1e+20 are -0, -1e+40, beyond 3.4e+38, the largest float32; correct the scores, or "
        "map them to the goal scale with relabel.scale.fit."
    )


def test_when_no_row_is_left_the_message_says_why_rows_were_dropped(world, place, refused):
    lengths = ["data.max_length=40", "data.max_prompt_length=20"]
    assert refused("train", *settings(world, "new"), *lengths) == (
        f"data.path={world / 'pairs.jsonl'}: nothing is left of its 12 rows, which gave 24 preferences; dropped: 24 "
        "goal_does_not_fit. What does not fit needs a larger data.max_length=40; ties are kept by relabel.ties=keep."
    )


def test_an_evaluation_row_that_does_not_fit_is_found_before_training(world, place, refused):
    """When this fails, the row is found at the end of the first epoch, with hours of training not saved."""
    write_rows(place / "some.jsonl", with_row(prompt="x" * 100))
    message = refused("train", *settings(world, "new"), "data.eval_path=some.jsonl", "rows.length=96")
    assert message.startswith("data.eval_path=some.jsonl: 2 groups of a prompt and its responses do not fit rows of 96")
    assert [path.name for path in place.iterdir()] == ["some.jsonl"]


# The model.


@pytest.mark.parametrize("verb", ["train", "relabel", "generate"])
def test_a_missing_model_is_named(world, place, refused, verb):
    arguments = {
        "train": ["train", *settings(world, "new"), "model.path=nowhere"],
        "relabel": ["relabel", *settings(world, "new"), "model.path=nowhere", "--out", "out.jsonl"],
        "generate": ["generate", "nowhere", "--prompts", world / "pairs.jsonl", "--out", "out.jsonl"],
    }[verb]
    option = "MODEL_DIR" if verb == "generate" else "model.path"
    assert refused(*arguments) == (
        f"{option}='nowhere': no such directory; give a Hugging Face model directory or a hub id."
    )
    assert not any(place.iterdir())


def test_a_tokenizer_without_chat_template_is_refused_with_the_choices(world, place, refused):
    write_model(place / "base", chat_template=None)
    assert refused("train", *settings(world, "new"), "model.path=base") == (
        "base: its tokenizer has no chat template; choose one with data.chat_template=plain|chatml|zephyr|deepseek-r1|FILE.jinja."
    )
    assert refused("generate", "base", "--prompts", world / "pairs.jsonl", "--out", "out.jsonl") == (
        "base: its tokenizer has no chat template; choose one with --chat-template=plain|chatml|zephyr|deepseek-r1|FILE.jinja."
    )
    assert [path.name for path in place.iterdir()] == ["base"]


def test_a_reward_model_whose_padding_would_end_its_texts_is_refused_before_training(world, place, refused):
    """When this fails, days of training end in weights that `rapo export` refuses to write."""
    objective = ["objective.name=bradley_terry", "objective.beta=null", "relabel.goals=[]"]
    assert refused("train", *settings(world, "new"), *objective) == (
        "all special tokens of the tokenizer end a turn, and transformers finds the end of a text by its "
        "padding; give the starting model's tokenizer a pad_token of its own."
    )
    assert not any(place.iterdir())


# Directories that belong to someone else.


def test_a_run_dir_that_is_not_ours_is_left_alone(world, place, refused):
    """When this fails, a run writes into the directory that holds someone's thesis."""
    (place / "thesis").mkdir()
    (place / "thesis" / "chapter.tex").write_text("...")
    message = "run_dir=thesis exists and is not a run of rapo_jax; choose another run_dir."
    assert refused("train", *settings(world, "thesis")) == message
    assert contents(place) == {place / "thesis" / "chapter.tex": b"..."}


def test_a_checkpoints_directory_that_is_not_ours_is_left_alone(world, place, refused):
    (place / "other" / "checkpoints").mkdir(parents=True)
    (place / "other" / "checkpoints" / "model.pt").write_text("...")
    assert refused("train", *settings(world, "other")) == (
        f"{place / 'other' / 'checkpoints'} is not empty and was not written by rapo_jax; nothing was changed. "
        "Choose another run_dir."
    )
    assert contents(place) == {place / "other" / "checkpoints" / "model.pt": b"..."}


def test_a_run_dir_inside_a_file_is_refused(world, place, refused):
    (place / "file").write_text("...")
    assert refused("train", *settings(world, "file/run")).startswith("cannot write or read there: [Errno 20] Not a dir")


# Resuming with something changed.


@pytest.fixture
def changes(world, place):
    """What to change: name -> (override, what the message says of it)."""
    write_model(place / "other_model", seed=1)
    shutil.copytree(world / "model", place / "other_tokenizer")
    build_tokenizer("A conversation. " + CHAT_TEMPLATE).save_pretrained(place / "other_tokenizer")
    shutil.copytree(world / "model", place / "other_shape")
    config = json.loads((place / "other_shape" / "config.json").read_text())
    (place / "other_shape" / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    write_rows(place / "other.jsonl", with_row(score_chosen=3))
    return {
        "model": (["model.path=other_model"], "the model (other_model)"),
        "tokenizer": (["model.path=other_tokenizer"], "the tokenizer (other_tokenizer)"),
        "shape": (
            ["model.path=other_shape", "model.random_init=true"],
            "the model (other_shape); model.random_init (False -> True)",
        ),
        "data": (["data.path=other.jsonl"], "the data (other.jsonl)"),
        "settings": (["objective.beta=0.2", "seed=1"], "objective.beta (0.1 -> 0.2); seed (0 -> 1)"),
        "goals": (["relabel.goals=[chosen]"], "relabel.goals (['chosen', 'rejected'] -> ['chosen'])"),
        "length": (["train.max_steps=1"], "train.max_steps (2 -> 1)"),
    }


@pytest.mark.slow
def test_resuming_with_something_changed_names_it_and_changes_nothing(world, run, changes, refused, capsys):
    """When this fails, one run is half of one experiment and half of another. `place` checks that no file is touched;
    once the change is undone, the run resumes as if nothing had happened."""
    for name, (overrides, changed) in changes.items():
        longer = " A run can become longer, not shorter." if name == "length" else ""
        assert refused("train", *settings(world, run), *overrides) == (
            f"{run} was trained up to step 2 with something else; changed: {changed}. Undo the change, or "
            f"choose another run_dir.{longer} Nothing was overwritten."
        )
    assert rapo("train", *settings(world, run)) == 0
    assert f"nothing to do: {run} is complete at step 2.\n" in capsys.readouterr().out


@pytest.mark.slow
def test_settings_that_affect_no_update_may_change_on_resuming(world, run, place, capsys):
    """When this fails, a run cannot be moved, logged at other steps or continued on another machine."""
    shutil.copytree(run, place / "run")
    shutil.copytree(world / "model", place / "moved")
    overrides = ["run_dir=run", "model.path=moved", "train.log_every=5", "rows.length=128", "mesh.data=2"]
    assert rapo("train", *settings(world, run), *overrides) == 0
    assert "nothing to do: run is complete at step 2." in capsys.readouterr().out


# Export.


@pytest.mark.slow
def test_an_export_never_writes_into_a_nonempty_directory(run, place, refused):
    (place / "out").mkdir()
    (place / "out" / "mine").write_text("...")
    assert refused("export", run, "out") == (
        "out is not empty; nothing was written. Choose another OUT_DIR or empty it yourself."
    )
    assert contents(place) == {place / "out" / "mine": b"..."}


@pytest.mark.slow
def test_exporting_something_that_is_not_a_run_is_refused(world, run, place, refused):
    message = "is not a run directory of rapo_jax (it has no config.yaml)."
    assert refused("export", "nowhere", "out") == f"nowhere {message}"
    assert refused("export", world / "model", "out") == f"{world / 'model'} {message}"
    (place / "early").mkdir()
    shutil.copy(run / "config.yaml", place / "early")
    assert refused("export", "early", "out") == (
        f"{place / 'early' / 'checkpoints'} holds no checkpoints of rapo_jax; RUN_DIR must be the run_dir of a training run."
    )
    (place / "early" / "checkpoints").mkdir()
    shutil.copy(run / "checkpoints" / "rapo_jax.json", place / "early" / "checkpoints")
    assert refused("export", "early", "out") == "early has no checkpoint yet; train it first."
    assert not (place / "out").exists()


@pytest.mark.slow
def test_exporting_a_missing_step_lists_the_existing_ones(run, place, refused):
    assert refused("export", run, "out", "--step", "7") == (f"{run / 'checkpoints'} has no step 7; it has: 2.")
    assert not any(place.iterdir())


@pytest.mark.slow
def test_adapters_of_a_run_without_any_are_not_exported(run, place, refused):
    assert refused("export", run, "out", "--adapter") == (
        f"{run} trained all weights and has no adapters (lora.rank was not set); leave out --adapter."
    )
    assert not any(place.iterdir())


@pytest.mark.slow
def test_an_export_with_a_model_of_another_shape_is_not_called_damage(run, changes, place, refused):
    """When this fails, users are told to restore sound checkpoints from a backup."""
    shutil.copytree(run, place / "run")
    changed = RUN.replace("model: {", "model: {path: other_shape, ")
    (place / "run" / "config.yaml").write_text(changed)
    message = refused("export", "run", "out")
    assert message.startswith(f"step 2 in {place / 'run' / 'checkpoints'} has parameters.blocks.")
    assert ": it was trained from another model or with another optimizer. Undo the change, or choose" in message
    assert not (place / "out").exists()


# Relabel and generate.


def test_relabel_never_overwrites_a_file(world, place, refused):
    (place / "out.jsonl").write_text("...")
    assert refused("relabel", *settings(world, "new"), "--out", "out.jsonl") == (
        "out.jsonl exists; nothing was written. Choose another --out."
    )
    assert contents(place) == {place / "out.jsonl": b"..."}


def test_relabel_takes_overrides_after_its_options_too(world, place, capsys):
    """When this fails, `rapo relabel CONFIG --out FILE relabel.goals=[]`, as people type it, is refused for
    "unrecognized arguments"."""
    assert rapo("relabel", *settings(world, "new"), "--out", "out.jsonl", "relabel.goals=[]") == 0
    assert capsys.readouterr().out == "out.jsonl: rows 12, dropped 0, ties 0, no goal 12\n"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "Hi", "id": 3},
            "prompts.jsonl line 1 has no prompt; its columns are text, id, and a prompt must be in one of prompt, "
            "messages, instruction, question.",
        ),
        (
            {"prompt": 5},
            "prompts.jsonl line 1: a prompt must be a text or a list of messages, each with the texts role and content.",
        ),
        (
            {"prompt": [{"role": "user", "content": None}]},
            "prompts.jsonl line 1: a content in prompt is None, not a string.",
        ),
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
            "prompts.jsonl line 1: a prompt must end with a user turn.",
        ),
    ],
)
def test_an_invalid_prompt_is_named_with_its_line(world, place, refused, row, message):
    write_rows(place / "prompts.jsonl", [row])
    assert refused("generate", world / "model", "--prompts", "prompts.jsonl", "--out", "out.jsonl") == message
    assert [path.name for path in place.iterdir()] == ["prompts.jsonl"]


def test_generate_names_the_file_that_is_missing_or_in_the_way(world, place, refused):
    message = refused("generate", world / "model", "--prompts", "none.jsonl", "--out", "out.jsonl")
    assert message.startswith("--prompts=none.jsonl: no such file or directory")
    (place / "out.jsonl").write_text("...")
    assert refused("generate", world / "model", "--prompts", world / "pairs.jsonl", "--out", "out.jsonl") == (
        "out.jsonl exists; nothing was written. Choose another --out."
    )
    assert contents(place) == {place / "out.jsonl": b"..."}


@pytest.mark.parametrize(
    ("option", "limit"),
    [
        (["--batch-size", "0"], "at least 1"),
        (["--max-new-tokens", "0"], "at least 1 and at most 1e+06"),
        (["--max-new-tokens", "3000000000"], "at least 1 and at most 1e+06"),
        (["--max-prompt-length", "1"], "at least 2"),
        (["--temperature", "-1"], "at least 0"),
        (["--temperature", "inf"], "at least 0"),
        (["--top-p", "0"], "at least 1e-06 and at most 1"),
        (["--top-p", "1.5"], "at least 1e-06 and at most 1"),
        (["--top-k", "-1"], "at least 0 and at most 2.14748e+09"),
        (["--min-p", "1.01"], "at least 0 and at most 1"),
        (["--repetition-penalty", "0"], "at least 0.01 and at most 100"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_range(world, place, refused, option, limit):
    message = refused("generate", world / "model", "--prompts", world / "pairs.jsonl", "--out", "out.jsonl", *option)
    assert message == f"argument {option[0]}: {option[1]} is out of range; it must be a finite number of {limit}"


# What is not the user's mistake.


def test_a_bug_of_ours_keeps_its_traceback(world, place, capsys, monkeypatch):
    """When this fails, bugs are reported as "rapo: KeyError" and cannot be found."""

    def broken(config, **more):
        raise KeyError("ours")

    monkeypatch.setattr("rapo_jax.runs.train.train_or_resume", broken)
    assert rapo("train", *settings(world, "new")) == 13
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_before_the_work_has_begun_is_one_line(world, place, capsys, monkeypatch):
    """When this fails, Ctrl-C during the seconds in which a command starts prints a page of traceback."""

    def interrupted(config, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("rapo_jax.runs.train.train_or_resume", interrupted)
    assert rapo("train", *settings(world, "new")) == 130
    assert capsys.readouterr().err == "rapo train: interrupted; nothing more was saved. Run the same command again.\n"
