"""Files -> records: detection of columns, whole conversations, and every bad row with its message."""

import bz2
import csv
import gzip
import json
import lzma
import re
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rapo_jax.config.tree import Columns, Data
from rapo_jax.data.files import read_rows
from rapo_jax.errors import UserError
from rapo_jax.messages import Message
from tests.data.reading import read_file

PAIR = {"prompt": "Hi", "chosen": "Good", "rejected": "Bad", "score_chosen": 8.0, "score_rejected": 3.5}


@pytest.fixture
def write(tmp_path):
    """Writes rows (or raw text) to a JSON lines file and returns its path."""

    def write(*rows, name="pairs.jsonl"):
        file = tmp_path / name
        file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        return str(file)

    return write


def turns(*contents, roles=("user", "assistant")):
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def user(*contents):
    return tuple(Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents))


def read_one(path, **options):
    (record,) = read_file(path, **options).records
    return record


def error(path, **options):
    with pytest.raises(UserError) as caught:
        read_file(path, **options)
    return str(caught.value)


def test_a_row_of_strings_becomes_a_record(write):
    source = read_file(write(PAIR), scores=True)
    (record,) = source.records
    assert record.row == 1
    assert record.prompt == (Message("user", "Hi"),)
    assert record.responses == ("Good", "Bad")
    assert record.rewards == (8.0, 3.5)
    assert source.reward_source == "columns score_chosen, score_rejected"
    assert source.columns == Columns("prompt", "chosen", "rejected", "score_chosen", "score_rejected")
    assert (source.num_rows, source.dropped) == (1, {})


def test_ultrafeedback_binarized_takes_the_prompt_from_the_conversations(write):
    row = {**PAIR, "chosen": turns("Hi", "Good"), "rejected": turns("Hi", "Bad"), "messages": turns("Hi", "Good")}
    record = read_one(write(row))
    assert (record.prompt, record.responses) == (user("Hi"), ("Good", "Bad"))


def test_a_prompt_string_may_be_any_user_turn_of_a_longer_conversation(write):
    chosen, rejected = turns("Hi", "Hello", "More", "Good"), turns("Hi", "Hello", "More", "Bad")
    for prompt in ("Hi", "More"):
        record = read_one(write({"prompt": prompt, "chosen": chosen, "rejected": rejected}))
        assert (record.prompt, record.responses) == (user("Hi", "Hello", "More"), ("Good", "Bad"))


def test_trl_conversational_rows_take_the_prompt_from_its_column(write):
    prompt = [{"role": "system", "content": "Be brief"}, *turns("Hi", "Hello", "More")]
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    record = read_one(write({"prompt": prompt, **answers}))
    assert record.prompt == (Message("system", "Be brief"), *user("Hi", "Hello", "More"))
    assert record.responses == ("chosen", "rejected")


def test_without_a_prompt_column_the_prompt_is_what_both_conversations_share(write):
    record = read_one(
        write({"chosen": turns("Hi", "Hello", "More", "Good"), "rejected": turns("Hi", "Hello", "More", "Bad")})
    )
    assert (record.prompt, record.responses) == (user("Hi", "Hello", "More"), ("Good", "Bad"))


def test_hh_rlhf_transcripts_are_split_into_turns(write):
    shared = "\n\nHuman: Hi\n\nAssistant: Hello: you\n\nHuman: Two\n\nparagraphs\n\nAssistant:"
    record = read_one(write({"chosen": shared + " Good", "rejected": shared + " Bad"}))
    assert record.prompt == user("Hi", "Hello: you", "Two\n\nparagraphs")
    assert record.responses == ("Good", "Bad")
    assert read_one(write({"prompt": shared, "chosen": " Good", "rejected": "Bad"})).prompt == record.prompt


@pytest.mark.parametrize(
    ("row", "rewards"),
    [
        ({"messages": turns("Hi", "Good")}, None),
        ({"prompt": "Hi", "response": "Good"}, None),
        ({"prompt": turns("Hi"), "completion": turns("Good", roles=("assistant", ""))}, None),
        (PAIR, (8.0,)),
        ({"chosen": turns("Hi", "Good"), "chosen_score": 4}, (4,)),
    ],
)
def test_sft_takes_one_response_from_every_shape(write, row, rewards):
    record = read_one(write(row), want="one")
    assert (record.prompt, record.responses, record.rewards) == (user("Hi"), ("Good",), rewards)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("score_chosen", "score_rejected"),
        ("chosen_score", "rejected_score"),
        ("chosen-rating", "rejected-rating"),
        ("chosen_rating", "rejected_rating"),
        ("overall_score_chosen", "overall_score_rejected"),
        ("chosen_reward", "rejected_reward"),
        ("chosen_reward", "reject_reward"),
    ],
)
def test_every_known_pair_of_score_columns_is_found(write, chosen, rejected):
    row = {"prompt": "Hi", "chosen": "Good", "rejected": "Bad", chosen: 9, rejected: 2}
    source = read_file(write(row), scores=True)
    assert source.records[0].rewards == (9, 2)
    assert source.reward_source == f"columns {chosen}, {rejected}"


def test_columns_can_be_named(write):
    columns = Columns(prompt="q", chosen="a", rejected="b", score_chosen="x", score_rejected="y")
    record = read_one(write({"q": "Hi", "a": "Good", "b": "Bad", "x": 2, "y": 1}), columns=columns)
    assert (record.responses, record.rewards) == (("Good", "Bad"), (2, 1))


def test_a_system_column_and_an_input_column_become_part_of_the_prompt(write):
    """When this fails, a question that stands in a column of its own is lost, and responses are trained to nothing."""
    row = PAIR | {"prompt": "Translate.", "system": "Be brief.", "input": "Guten Tag"}
    bare = PAIR | {"prompt": "Hi", "system": "", "input": None}
    path = write(row, bare)
    first, second = read_file(path, scores=True, columns=Columns(system="system", input="input")).records
    assert first.prompt == (Message("system", "Be brief."), Message("user", "Translate.\n\nGuten Tag"))
    assert second.prompt == (Message("user", "Hi"),)
    assert read_file(path, scores=True).notes == {"unread_column_system": 1, "unread_column_input": 1}
    own = row | {"prompt": turns("Be long.", "Hi", roles=("system", "user"))}
    assert "the prompt has a system turn, and system holds another" in error(
        write(own), columns=Columns(system="system")
    )


def test_a_named_column_that_is_absent_is_answered_with_the_nearest(write):
    message = error(write(PAIR), columns=Columns(score_chosen="score_chosn", score_rejected="score_rejected"))
    assert "not data.columns.score_chosen='score_chosn'; did you mean 'score_chosen'?" in message


def test_one_named_score_column_without_the_other_is_an_error(write):
    assert "must be given together" in error(write(PAIR), columns=Columns(score_chosen="score_chosen"))


def test_missing_scores_are_refused_with_the_existing_columns_and_both_remedies(write):
    message = error(write({"prompt": "Hi", "chosen": "Good", "rejected": "Bad", "points": 1}), scores=True)
    assert "has the columns 'prompt', 'chosen', 'rejected', 'points'" in message
    assert "chosen-rating + rejected-rating" in message
    assert "data.columns.score_chosen=..." in message
    assert "relabel.goals=[]" in message


def test_missing_texts_are_refused_with_the_existing_columns_and_the_setting(write):
    message = error(write({"question": "Hi", "answer": "Good"}))
    assert "'question', 'answer'" in message
    assert "data.columns.chosen=... and data.columns.rejected=..." in message
    assert "one of chosen, messages, response, completion" in error(write({"question": "Hi"}), want="one")
    assert "data.columns.prompt=..." in error(write({"chosen": "Good", "rejected": "Bad"}))


@pytest.mark.parametrize(
    ("change", "reason", "fact"),
    [
        ({"score_chosen": float("nan")}, "score_not_a_number", "score_chosen is nan, not a finite number"),
        ({"score_rejected": float("-inf")}, "score_not_a_number", "score_rejected is -inf, not a finite number"),
        ({"score_chosen": "8"}, "score_not_a_number", "score_chosen is '8', not a finite number"),
        ({"score_chosen": True}, "score_not_a_number", "score_chosen is True, not a finite number"),
        ({"score_chosen": None}, "score_not_a_number", "score_chosen is missing, not a finite number"),
        ({"score_chosen": ...}, "score_not_a_number", "score_chosen is missing, not a finite number"),
        ({"rejected": " \n"}, "empty_response", "the response in rejected is empty"),
        ({"rejected": None}, "missing_column", "rejected is missing"),
        ({"prompt": ...}, "missing_column", "prompt is missing"),
        ({"prompt": " "}, "empty_prompt", "the last user turn of the prompt is empty"),
        ({"prompt": []}, "empty_prompt", "there is no prompt before the response in chosen"),
        ({"prompt": 5}, "not_messages", "prompt is neither a string nor a list of {role, content}"),
        ({"chosen": {"text": "Good"}}, "not_messages", "chosen is neither a string nor a list of {role, content}"),
        ({"prompt": [{"role": "user", "content": 5}]}, "content_not_text", "a content in prompt is 5, not a string"),
        ({"prompt": "\ud83d"}, "content_not_text", "prompt holds half of a surrogate pair, which is not Unicode"),
        (
            {"prompt": [{"role": "bot", "content": "Hi"}]},
            "roles",
            "prompt has the role 'bot'; known: system, user, assistant, tool",
        ),
        ({"prompt": turns("Hi", "Hello")}, "roles", "the prompt does not end with a user turn"),
        (
            {"prompt": turns("Hi", "Hello")[1:]},
            "roles",
            "turn 1 of the prompt is of role assistant, must be of role user",
        ),
        (
            {"prompt": [*turns("Hi"), *turns("Hi")]},
            "roles",
            "turn 2 of the prompt is of role user, must be of role assistant",
        ),
        ({"prompt": [{"role": "system", "content": "S"}]}, "roles", "the prompt does not end with a user turn"),
        ({"chosen": turns("Hi")}, "roles", "chosen must end with an assistant turn"),
        ({"chosen": turns("Ho", "Good")}, "prompt_mismatch", "the prompt is not the one of the conversation in chosen"),
        (
            {"chosen": turns("Hi", "A", "B", "Good"), "rejected": turns("Hi", "Bad")},
            "prompt_mismatch",
            "the turns before the last one differ between chosen and rejected",
        ),
    ],
)
def test_a_bad_row_is_named_and_can_be_dropped(write, change, reason, fact):
    bad = {key: value for key, value in {**PAIR, **change}.items() if value is not ...}
    path = write(PAIR, "\n", bad)
    message = error(path)
    assert f"{path} line 3: {fact}" in message
    assert "1 of 2 rows cannot be used" in message
    assert "data.bad_rows=drop" in message
    source = read_file(path, scores=True, data=Data(bad_rows="drop"))
    assert [record.row for record in source.records] == [1]
    assert (source.num_rows, source.dropped) == (2, {reason: 1})


def test_all_bad_rows_are_one_error_that_shows_five(write):
    message = error(write(PAIR, *[{**PAIR, "chosen": ""}] * 7))
    assert message.startswith("7 of 8 rows cannot be used.")
    assert re.findall(r"line (\d+)", message) == ["2", "3", "4", "5", "6"]
    assert message.endswith("... and 2 more")


def test_identical_responses_are_dropped_and_counted_even_without_bad_rows(write):
    source = read_file(write(PAIR, {**PAIR, "rejected": "Good"}), scores=True)
    assert (len(source.records), source.dropped) == (1, {"identical_responses": 1})


def test_no_usable_row_is_an_error_that_says_why(write):
    assert "none of 1 row can be used; dropped: 1 empty_response" in error(
        write({**PAIR, "chosen": ""}), data=Data(bad_rows="drop")
    )
    assert "has no rows" in error(write("\n\n"))


def test_a_line_that_is_not_json_is_named_with_the_reason(write):
    path = write(PAIR, "\n", '{"prompt": \n')
    assert error(path).startswith(
        f"{path} line 3 is not JSON: Expecting value at character 12; one JSON object per line"
    )
    path = write(PAIR, "[1, 2]\n")
    assert error(path).startswith(
        f"{path} line 2 holds a list where a JSON object is expected; one JSON object per line is needed"
    )


def test_a_unicode_line_separator_does_not_end_a_line(write):
    row = json.dumps({**PAIR, "chosen": "one\u2028two\x85three"}, ensure_ascii=False)
    assert read_one(write(row + "\r\n")).responses[0] == "one\u2028two\x85three"


def test_a_json_file_may_be_an_array(write):
    source = read_file(write(json.dumps([PAIR, PAIR], indent=1), name="pairs.json"), scores=True)
    assert [record.row for record in source.records] == [1, 2]
    assert len(read_file(write(PAIR, PAIR, name="pairs.json"), scores=True).records) == 2
    broken = write("[{]", name="pairs.json")
    assert error(broken).startswith(f"{broken} is not JSON: ")


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.bz2", ".jsonl.xz", ".json.gz"])
def test_compressed_files_are_read(write, suffix):
    """When this fails, users decompress tens of gigabytes by hand."""
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[Path(suffix).suffix]
    text = json.dumps([PAIR, PAIR]) if suffix.startswith(".json.") else (json.dumps(PAIR) + "\n") * 2
    path = write(PAIR, name=f"pairs{suffix}")
    with opener(path, "wt") as file:
        file.write(text)
    assert len(read_file(path, scores=True).records) == 2
    Path(path).write_bytes(Path(path).read_bytes()[:-9])
    assert f"pairs{suffix} is not a whole {Path(suffix).suffix} file" in error(path)


def test_csv_is_read_with_numbers_as_numbers(tmp_path):
    """When this fails, data from a spreadsheet is "not JSON"."""
    columns = ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")
    rows = [columns, ("Why, then?", 'He said "so"', "N/A", 9, 2), ("And\nnow?", "007", "None", 8.5, 1)]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    first, second = read_file(str(tmp_path / "pairs.csv"), scores=True).records
    assert (first.prompt[0].content, first.responses, first.rewards) == (
        "Why, then?",
        ('He said "so"', "N/A"),
        (9.0, 2),
    )
    assert (second.prompt[0].content, second.responses, second.rewards) == ("And\nnow?", ("007", "None"), (8.5, 1))


def test_ids_and_dates_of_a_csv_stay_as_they_are(tmp_path):
    """When this fails, "01234" comes back as 1234, and an id of twenty digits as another id."""
    names = ("prompt", "chosen", "rejected", "score_chosen", "score_rejected", "zip", "id", "phone", "day", "share")
    cells = ("Hi", "A", "B", "9", "2.5", "01234", "12345678901234567891", "+4915112345678", "2026_01", "-0.50")
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([names, cells])
    (row,) = read_rows(str(tmp_path / "pairs.csv"), split="", option="data.path")
    kept = [row.values[name] for name in names[3:]]
    assert kept == [9, 2.5, "01234", "12345678901234567891", "+4915112345678", "2026_01", -0.5]


@pytest.mark.parametrize(
    ("cell", "number"),
    [("9", 9.0), (".5", 0.5), ("5.", 5.0), ("+1.5", 1.5), (" 4.5", 4.5), ("1e-300", 1e-300), ("-0", 0.0)],
)
def test_a_score_of_a_csv_is_a_float_however_it_is_written(cell, number, tmp_path):
    """When this fails, one cell makes a text of a column of scores; or a run of such data no longer resumes, because its
    fingerprint holds "9.0" and not "9"."""
    rows = [("prompt", "chosen", "rejected", "score_chosen", "score_rejected"), ("Hi", "A", "B", cell, "-1")]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (record,) = read_file(str(tmp_path / "pairs.csv"), scores=True).records
    assert record.rewards == (number, -1.0) and all(type(reward) is float for reward in record.rewards)


def test_files_in_utf16_and_of_zstd_are_read(tmp_path):
    """When this fails, what Excel or the hub's archives wrote has to be converted by hand."""
    lines = (json.dumps(PAIR) + "\n") * 2
    (tmp_path / "wide.jsonl").write_bytes(lines.encode("utf-16"))
    (tmp_path / "wide.csv").write_bytes(
        "prompt,chosen,rejected,score_chosen,score_rejected\nHi,A,B,2,1\n".encode("utf-16")
    )
    with pyarrow.output_stream(tmp_path / "pairs.jsonl.zst", compression="zstd") as file:
        file.write(lines.encode())
    assert len(read_file(str(tmp_path / "wide.jsonl"), scores=True).records) == 2
    assert read_file(str(tmp_path / "wide.csv"), scores=True).records[0].rewards == (2.0, 1.0)
    assert len(read_file(str(tmp_path / "pairs.jsonl.zst"), scores=True).records) == 2


def test_objects_may_be_spread_over_lines(write):
    """When this fails, a file that an editor has formatted is "not JSON"."""
    rows = "\n".join(json.dumps(PAIR | {"score_chosen": score}, indent=2) for score in (7, 8))
    assert [r.rewards for r in read_file(write(rows, name="pairs.json"), scores=True).records] == [(7, 3.5), (8, 3.5)]


def test_an_empty_csv_has_no_rows(write):
    assert error(write("", name="pairs.csv")).endswith("pairs.csv has no rows; at least one is needed.")


@pytest.mark.parametrize("damage", ["cut", "footer", "pages", "empty", "header"])
def test_a_damaged_parquet_file_is_one_sentence(tmp_path, damage):
    """When this fails, a download that broke off ends in a traceback of pyarrow's."""
    path = tmp_path / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([PAIR] * 100), path)
    whole = path.read_bytes()
    damaged = {
        "cut": whole[: len(whole) // 2],
        "footer": whole[:-12] + bytes(12),
        "pages": b"PAR1" + bytes(100) + whole[104:],
        "empty": b"",
        "header": b"\0" * 8 + whole[8:],
    }
    path.write_bytes(damaged[damage])
    assert error(str(path)).startswith(f"{path} is not a parquet file that can be read (")


def test_a_score_beyond_the_integers_of_a_float_is_the_nearest_float(write):
    """When this fails, statistics and parquet files of such scores end in a traceback."""
    record = read_file(write(PAIR | {"score_chosen": 2**63, "score_rejected": 2**53}), scores=True).records[0]
    assert record.rewards == (2.0**63, 2**53) and list(map(type, record.rewards)) == [float, int]


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        (
            "pairs.csv",
            b"prompt,chosen\n1,2,3\n",
            "is not CSV that can be read: row 1 has more cells than the first line",
        ),
        ("pairs.csv", b"prompt,prompt\n1,2\n", "is not CSV that can be read: its first line names 'prompt' twice"),
        ("pairs.jsonl", "[{]".encode("utf-16"), "is not JSON: Expecting property name"),
        ("pairs.json", json.dumps(PAIR, indent=1).encode() + b"3", "row 2 is 3; objects are needed, one for each row."),
        ("pairs.jsonl.zst", b"anything", "cannot be read (ZSTD decompress"),
        ("pairs.csv", b"prompt\n\xff\n", "is not CSV that can be read: 'utf-8' codec can't decode"),
    ],
)
def test_a_format_that_is_not_read_is_told_by_name(name, content, fact, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert error(str(tmp_path / name)).startswith(f"{tmp_path / name} {fact}")


def test_parquet_and_saved_data_sets_give_the_same_records_as_json_lines(write, tmp_path):
    rows = [{**PAIR, "chosen": turns("Hi", f"Good {i}"), "rejected": turns("Hi", "Bad")} for i in range(3)]
    expected = read_file(write(*rows), scores=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "dict")
    for name in ("pairs.parquet", "plain", "dict"):
        assert read_file(str(tmp_path / name), scores=True) == expected
    assert "has no data.split=test; known: train" in error(str(tmp_path / "dict"), split="test")


def test_a_broken_parquet_file_is_named(write):
    assert "pairs.parquet is not a parquet file" in error(write(PAIR, name="pairs.parquet"))


def test_a_directory_is_read_by_split_and_rows_are_numbered_across_files(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name, chosen in (("train-0", "A"), ("train-1", "B"), ("train_sft-0", "C"), ("test-0", "D")):
        rows = [{**PAIR, "chosen": f"{chosen}{i}"} for i in range(2)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), data / f"{name}.parquet")
    records = read_file(str(tmp_path), scores=True).records
    assert [(record.row, record.responses[0]) for record in records] == [(1, "A0"), (2, "A1"), (3, "B0"), (4, "B1")]
    assert "has no file of data.split=dev (found: test-0.parquet" in error(str(tmp_path), split="dev")


def test_a_file_beside_its_compressed_copy_is_read_once(write):
    """When this fails, every row is trained on twice."""
    directory = write(PAIR, name="train.jsonl").removesuffix("train.jsonl")
    for suffix in (".gz", ".zst"):
        write(PAIR, name=f"train.jsonl{suffix}")
    assert len(read_file(directory, scores=True).records) == 1


def test_a_directory_whose_file_names_name_no_split_is_read_whole(write):
    directory = write(PAIR, name="a.jsonl").removesuffix("a.jsonl")
    write(PAIR, name="b.jsonl")
    assert len(read_file(directory, scores=True).records) == 2


@pytest.mark.parametrize("path", ["pairs.jsonl", "./pairs", "/nowhere/pairs", "a/b/c", "dir/pairs.parquet"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert error(path).startswith(f"data.path={path}: no such file or directory")


def test_a_hub_id_is_loaded_and_its_failure_is_reported(monkeypatch):
    asked = []

    def load_dataset(path, *, split, revision="newest"):
        asked.append((path, split, revision))
        if path == "org/absent":
            raise ConnectionError("Couldn't reach the Hub")
        return datasets.Dataset.from_list([PAIR])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_one("org/pairs", split="train_prefs").responses == ("Good", "Bad")
    assert read_one("org/pairs", revision="40b4365").responses == ("Good", "Bad")
    assert asked == [("org/pairs", "train_prefs", "newest"), ("org/pairs", "train", "40b4365")]
    message = error("org/absent")
    assert message.startswith("data.path=org/absent: no such file or directory")
    assert message.endswith("The hub said: Couldn't reach the Hub")
