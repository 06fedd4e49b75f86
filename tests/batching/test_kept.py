"""Tokens that are kept between starts: the same as those that are made, never another's, and never half of them."""

import dataclasses
import json
import threading

import numpy as np
import pytest

from rapo_jax.batching import kept as keeping
from rapo_jax.batching import pipeline
from rapo_jax.batching.groups import fingerprint_of_groups
from rapo_jax.batching.kept import Place
from rapo_jax.batching.pipeline import load_held_out, load_training
from rapo_jax.chat.goal_prompt import configured_goal_prompt
from rapo_jax.config.files import from_dict
from rapo_jax.errors import UserError
from rapo_jax.locks import IN_USE, holding, locked
from tests.tiny import CHAT_TEMPLATE, build_tokenizer

ROWS = [
    {
        "prompt": f"Q{n}?", "chosen": f"Yes {n}.", "rejected": f"No {n}.", "score_chosen": 0.5 + n % 7,
        "score_rejected": n % 3, "source": f"of {n % 2}",
    }
    for n in range(16)
]  # fmt: skip
LISTS = [
    {"prompt": f"Q{n}?", "responses": [f"A{n}{k}." for k in range(2 + n % 2)], "rewards": [n, 2, 7.5][: 2 + n % 2]}
    for n in range(12)
]
LABELLED = [{"prompt": f"Q{n}?", "completion": f"A{n}.", "label": n % 3 == 0} for n in range(12)]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def config(tmp_path):
    def config(data=None, *, rows=ROWS, **tree):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        more = {"path": str(path), "max_length": 256, "max_prompt_length": 192, **(data or {})}
        return from_dict(tree | {"data": more})

    return config


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "kept")


@pytest.fixture
def made(monkeypatch):
    """How often data were tokenized."""
    tokenized, calls = pipeline.tokenize_records, []

    def counting(*arguments, **options):
        calls.append(arguments)
        return tokenized(*arguments, **options)

    monkeypatch.setattr(pipeline, "tokenize_records", counting)
    return calls


def load(config, tokenizer, place):
    goal_prompt = configured_goal_prompt(config.relabel, placement="system", chat_template=tokenizer.chat_template)
    return load_training(config, tokenizer, goal_prompt=goal_prompt, place=place)


def entry_of(place):
    (entry,) = place.directory.iterdir()
    return entry


def as_text(data):
    """Everything in a data set as a text, so that two can be compared; NaN equals NaN."""
    groups = [
        {
            **dataclasses.asdict(group),
            "prompt": group.prompt.tolist(),
            "responses": [tokens.tolist() for tokens in group.responses],
            "rewards": [float(reward) for reward in group.rewards],
            "weight": float(group.weight),
            "unrelated": None if group.unrelated is None else group.unrelated.tolist(),
        }
        for group in data.groups
    ]
    drawn = data.distributions
    figure = {"margins": drawn.margins.tolist()}
    for name, sides in (("scores", drawn.scores), ("lengths", drawn.lengths)):
        figure |= {f"{name} {side}": (values.dtype.str, values.tolist()) for side, values in sides.items()}
    rest = [data.report, data.source_fingerprint, data.fingerprint, data.scales.tree(), data.largest_id]
    return json.dumps([groups, figure, *rest])


def assert_same(one, other):
    assert as_text(one) == as_text(other)
    assert all(
        tokens.dtype == np.int32
        for data in (one, other)
        for g in data.groups
        for tokens in (g.prompt, *g.continuations)
    )
    assert fingerprint_of_groups(one.groups) == fingerprint_of_groups(other.groups) == other.fingerprint


KINDS = {
    "pairs": (ROWS, {}),
    "scaled by source": (ROWS, {"relabel": {"scale": {"fit": "minmax", "by": "source"}}, "seed": 3}),
    "unrelated responses": (ROWS, {"objective": {"name": "kto"}, "relabel": {"goals": []}}),
    "labels": (LABELLED, {"objective": {"name": "kto"}, "relabel": {"goals": []}}),
    "lists": (LISTS, {"objective": {"name": "infonca"}}),
    "best goals": (ROWS, {"objective": {"name": "dpo", "best_goal_weight": 0.5}}),
    "one response": (ROWS, {"objective": {"name": "sft"}, "relabel": {"goals": []}}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_what_is_made(config, tokenizer, place, made, capsys, kind):
    """When this fails, a second start trains on, or reports, something else than the first."""
    rows, tree = KINDS[kind]
    asked = config(rows=rows, **tree)
    without, first, second = (load(asked, tokenizer, where) for where in (None, place, place))
    assert len(made) == 2, "the second start finds the tokens"
    assert_same(without, first)
    assert_same(without, second)
    assert not second.groups[0].prompt.flags.owndata, "tokens are views of a mapped file"
    said = capsys.readouterr().out
    assert f"kept for later starts in {entry_of(place)}" in said
    assert f"tokens of {len(first.groups)} groups found in {entry_of(place)}" in said


def test_evaluation_sets_are_kept_beside_each_other(config, tokenizer, place, made):
    asked = config({"eval_fraction": 0.3}, relabel={"scale": {"fit": "minmax"}})
    goal_prompt = configured_goal_prompt(asked.relabel, placement="system", chat_template=tokenizer.chat_template)
    more = {"goal_prompt": goal_prompt, "scales": load(asked, tokenizer, place).scales}
    first = [load_held_out(asked, tokenizer, plain=plain, place=place, **more) for plain in (False, True)]
    assert len(made) == 3
    second = [load_held_out(asked, tokenizer, plain=plain, place=place, **more) for plain in (False, True)]
    assert len(made) == 3
    for one, other in zip(first, second, strict=True):
        assert_same(one, other)
    assert sorted(path.name.partition("-")[0] for path in place.directory.iterdir()) == ["eval", "eval_plain", "train"]
    other_scale = dataclasses.replace(more["scales"], reward=dataclasses.replace(more["scales"].reward, high=99.0))
    load_held_out(asked, tokenizer, place=place, **more | {"scales": other_scale})
    assert len(made) == 4, "the map of the training scores decides what the goals of the evaluation are"


OTHERS = {
    "lengths": ({"max_length": 255}, {}),
    "which rows": ({"drop_sources": ["of 1"]}, {}),
    "goals": ({}, {"relabel": {"goals": ["chosen"]}}),
    "words": ({}, {"relabel": {"template": "Aim for {goal}."}}),
    "seed": ({}, {"seed": 1}),
    "responses": ({}, {"objective": {"name": "sft"}, "relabel": {"goals": ["chosen"]}}),
    "divergence": ({}, {"objective": {"name": "kto"}}),
    "the term of algorithm 1": ({}, {"objective": {"name": "dpo", "best_goal_weight": 0.5}}),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_decides_the_tokens_is_tokenized_again(config, tokenizer, place, made, what):
    """When this fails, a run is trained on the tokens of another."""
    data, tree = OTHERS[what]
    load(config(), tokenizer, place)
    assert_same(load(config(data, **tree), tokenizer, place), load(config(data, **tree), tokenizer, None))
    assert len(made) == 3


def test_what_decides_nothing_finds_the_tokens(config, tokenizer, place, made):
    """When this fails, every run of a sweep tokenizes the same data."""
    load(config(), tokenizer, place)
    changes = {"objective": {"beta": 0.3}, "train": {"batch_size": 4}, "optimizer": {"learning_rate": 1e-4}}
    load(config({"eval_path": "elsewhere.jsonl"}, **changes), tokenizer, place)
    assert len(made) == 1


def test_other_files_are_other_data(config, tokenizer, place, made, tmp_path):
    """When this fails, a file that was corrected in its place is not read again."""
    extra = {"drop": tmp_path / "drop.txt", "scores": tmp_path / "scores.jsonl", "scale": tmp_path / "scale.json"}
    extra["drop"].write_text("Q1?\n")
    lines = [{"row": n + 1, "rewards": [n % 5, n % 3]} for n in range(len(ROWS))]
    extra["scores"].write_text("".join(json.dumps(line) + "\n" for line in lines))
    extra["scale"].write_text(json.dumps({"reward": {"low": 0, "high": 10}}))
    data = {"drop_prompts": str(extra["drop"]), "rewards": str(extra["scores"])}
    asked = {"relabel": {"scale": {"file": str(extra["scale"])}}}
    load(config(data, **asked), tokenizer, place)
    load(config(data, **asked), tokenizer, place)
    assert len(made) == 1
    load(config(data, rows=[*ROWS[:-1], ROWS[0]], **asked), tokenizer, place)
    extra["drop"].write_text("Q2?\n")
    load(config(data, **asked), tokenizer, place)
    extra["scores"].write_text("".join(json.dumps(line | {"rewards": [1, 2]}) + "\n" for line in lines))
    load(config(data, **asked), tokenizer, place)
    extra["scale"].write_text(json.dumps({"reward": {"low": 0, "high": 5}}))
    load(config(data, **asked), tokenizer, place)
    assert len(made) == 5


def test_another_tokenizer_template_or_code_is_another_origin(config, tokenizer, place, made, monkeypatch):
    load(config(), tokenizer, place)
    load(config(), build_tokenizer(CHAT_TEMPLATE + "{# another #}"), place)
    grown = build_tokenizer()
    grown.add_tokens(["Yes"])
    load(config(), grown, place)
    monkeypatch.setattr("rapo_jax.batching.origin.code_hash", lambda: "of a later version")
    load(config(), tokenizer, place)
    assert len(made) == 4


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "absent": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["texts.npy", "rewards.npy", "record.json"])
def test_damage_is_found_said_and_repaired(config, tokenizer, place, made, capsys, name, damage):
    """When this fails, a disk that lost a bit changes what is trained on, or no run starts before somebody cleans up."""
    first = load(config(), tokenizer, place)
    DAMAGES[damage](entry_of(place) / name)
    capsys.readouterr()
    again = load(config(), tokenizer, place)
    assert_same(first, again)
    assert len(made) == 2
    said = capsys.readouterr().out
    if (name, damage) != ("record.json", "absent"):  # which is what a killed writer leaves
        assert f"{entry_of(place)} is damaged ({name} is not what was written); its data are tokenized again." in said
    assert_same(first, load(config(), tokenizer, place))
    assert len(made) == 2


def test_the_entry_of_other_data_under_this_name_is_not_taken(config, tokenizer, place, made, capsys):
    load(config(), tokenizer, place)
    mine = entry_of(place)
    load(config(seed=1), tokenizer, place)
    (other,) = set(place.directory.iterdir()) - {mine}
    for file in mine.iterdir():
        file.unlink()
    for file in other.iterdir():
        (mine / file.name).write_bytes(file.read_bytes())
    capsys.readouterr()
    load(config(), tokenizer, place)
    assert len(made) == 3
    assert "is damaged (record.json is of other data)" in capsys.readouterr().out


def test_what_a_killed_writer_left_is_removed_and_said(config, tokenizer, place, made, capsys):
    """When this fails, half of a data set is taken for the whole, or stays on the disk for ever."""
    first = load(config(), tokenizer, place)
    entry = entry_of(place)
    (entry / "record.json").unlink()
    (entry / "pair.npy").rename(entry / "pair.npy.tmp")
    flip(entry / "texts.npy")
    (entry / IN_USE).write_text("process 1 on a host that died")
    num_left = len(list(entry.iterdir())) - 1
    capsys.readouterr()
    assert_same(first, load(config(), tokenizer, place))
    assert f"removed {num_left} files that an earlier start left in {entry}" in capsys.readouterr().out
    assert not list(entry.glob("*.tmp")) and not (entry / IN_USE).exists()
    assert_same(first, load(config(), tokenizer, place))
    assert len(made) == 2


def test_an_error_in_the_data_leaves_no_directories(config, tokenizer, tmp_path, made):
    """When this fails, a run that was refused leaves a run_dir that the next calls foreign."""
    asked = config(rows=[{"prompt": "Q?", "chosen": "", "rejected": "No", "score_chosen": 1, "score_rejected": 0}])
    with pytest.raises(UserError):
        load(asked, tokenizer, Place(tmp_path / "run" / "tokens", own=True))
    assert not (tmp_path / "run").exists()


def test_a_run_waits_for_the_one_that_writes(config, tokenizer, place, made, monkeypatch, capsys):
    """When this fails, the processes of a pod tokenize the same data at the same time, or write into one file."""
    monkeypatch.setattr(keeping, "LOOKS_EVERY", 0.01)
    written = load(config(), tokenizer, place)
    entry, aside = entry_of(place), place.directory / "aside"
    entry.rename(aside)
    lock = entry / IN_USE
    file = locked(lock)
    assert file is not None
    waits = threading.Event()

    def say(text):
        print(text)
        waits.set()

    monkeypatch.setattr(keeping, "say", say)

    def finish():
        with holding(file, lock):
            assert waits.wait(20)
            for each in aside.iterdir():
                each.rename(entry / each.name)
        aside.rmdir()

    writer = threading.Thread(target=finish)
    writer.start()
    found = load(config(), tokenizer, place)
    writer.join()
    assert_same(written, found)
    assert len(made) == 1
    assert f"{entry} is being written by " in capsys.readouterr().out


def test_a_writer_that_hangs_is_waited_for_with_a_bound(config, tokenizer, place, made, monkeypatch, capsys):
    monkeypatch.setattr(keeping, "LOOKS_EVERY", 0.01)
    monkeypatch.setattr(keeping, "MOST_WAITED", 0.05)
    expected = load(config(), tokenizer, place)
    entry = entry_of(place)
    (entry / "record.json").unlink()
    file = locked(entry / IN_USE)
    assert file is not None
    with holding(file, entry / IN_USE):
        assert_same(expected, load(config(), tokenizer, place))
        assert not (entry / "record.json").exists()
    assert len(made) == 2
    assert "was not written within" in capsys.readouterr().out


def test_a_full_disk_is_one_sentence_and_nothing_is_left(config, tokenizer, place, monkeypatch):
    monkeypatch.setattr("rapo_jax.space.free_at", lambda path: 1_000)
    with pytest.raises(
        UserError, match=r"no space left for .*train-\w{16}: it needs .* kB, and 1.0 kB .*data.cache= \(empty\)"
    ):
        load(config(), tokenizer, place)
    assert not place.directory.exists()


def test_an_error_while_writing_leaves_nothing(config, tokenizer, place, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rapo_jax.batching.stored.sha256_of", fail)
    monkeypatch.setattr("rapo_jax.batching.origin.sha256_of", lambda file: "0")
    with pytest.raises(UserError, match="no space left for"):
        load(config(), tokenizer, place)
    assert not place.directory.exists()


def test_a_run_of_its_own_place_goes_on_without_room_and_keeps_the_newest(
    config, tokenizer, tmp_path, monkeypatch, capsys
):
    """When this fails, a run that has trained before does not start, because of what only saves time."""
    place = Place(tmp_path / "run" / "tokens", own=True)
    load(config(), tokenizer, place)
    before = entry_of(place)
    load(config(seed=1), tokenizer, place)
    assert entry_of(place) != before
    monkeypatch.setattr(keeping, "free_at", lambda path: 1_000)
    load(config(seed=2), tokenizer, place)
    assert "are not kept in" in capsys.readouterr().out
    assert len(list(place.directory.iterdir())) == 1


def test_little_data_are_not_kept_in_a_place_for_much(config, tokenizer, tmp_path):
    place = Place(tmp_path / "run" / "tokens", own=True, least=2**24)
    assert load(config(), tokenizer, place).groups
    assert not (tmp_path / "run").exists()


def test_data_that_change_while_they_are_read_are_not_kept(config, tokenizer, place, made, monkeypatch, capsys):
    """When this fails, tokens of the file as it is now are found later for the file as it was."""
    asked = config()
    read = pipeline.read_part

    def changing(*arguments, **options):
        found = read(*arguments, **options)
        config(rows=ROWS[:-1])
        return found

    monkeypatch.setattr(pipeline, "read_part", changing)
    load(asked, tokenizer, place)
    assert "the data were changed while they were read" in capsys.readouterr().out
    assert not place.directory.exists()


def test_a_file_in_place_of_the_directory_is_refused(config, tokenizer, tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(UserError, match=r"^data.cache=.*kept is a file; it must be a directory.$"):
        load(config(), tokenizer, Place(tmp_path / "kept"))
