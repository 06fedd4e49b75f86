"""`rapo score --compare`: what two files of scores agree on, by numbers that a person can check."""

import json

import pytest

from rapo_jax.score.compare import agreement
from tests.tiny import rapo, write_rows

A = [
    {"row": 1, "rewards": [1, 2, 3]},
    {"row": 2, "rewards": [5, 5]},
    {"row": 3, "rewards": [1]},
    {"row": 9, "rewards": [4]},
]
B = [{"row": 1, "rewards": [10, 30, 20]}, {"row": 2, "rewards": [1, 2]}, {"row": 3, "rewards": [7]}]


@pytest.fixture
def files(tmp_path):
    return [write_rows(tmp_path / name, rows) for name, rows in (("a.jsonl", A), ("b.jsonl", B))]


def test_what_is_printed_is_what_two_files_agree_on(files, tmp_path, capsys):
    """When this fails, two scorers are believed to agree, or not to."""
    assert rapo("score", "--compare", *files, "--out", tmp_path / "both.png") == 0
    printed = capsys.readouterr().out
    assert "6 responses of 3 rows that are in both\n" in printed
    assert f"1 row of {files[0]} is not in the other" in printed
    # Of three pairs within row 1 two agree: (2 - 1) / 3. In row 2 the first file has no order.
    assert "Kendall's tau   +0.333 within a prompt (mean of 1 prompt), " in printed
    assert "same best       25.0% of 2 prompts (by chance 41.7%)\n" in printed and "same worst      75.0%" in printed
    assert "1 prompt has equal scores alone in one of the files" in printed
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_scores_agree_and_opposite_ones_do_not():
    rows = [((1.0, 2.0, 4.0), (-1.0, 0.0, 3.0)), ((2.0, 1.0), (9.0, 8.0))]
    same, opposite = agreement(rows), agreement([(a, tuple(-x for x in b)) for a, b in rows])
    assert (same.tau_within, same.best, same.worst) == (1, 1, 1)
    assert (opposite.tau_within, opposite.best, opposite.worst) == (-1, 0, 0)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ([{"row": 5, "rewards": [1]}], "have no row with rewards in common; compare scores of the same data."),
        ([{"row": 1, "rewards": [1, 2]}], "row 1 has 3 rewards in "),
        ([{"row": 1, "rewards": ["x"]}], "rewards[0] is 'x', not a finite number"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(second, said, files, tmp_path, capsys):
    other = write_rows(tmp_path / "c.jsonl", second)
    assert rapo("score", "--compare", files[0], other) == 2
    assert said in capsys.readouterr().err


def test_a_missing_file_and_what_is_no_picture_are_refused(files, tmp_path, capsys):
    assert rapo("score", "--compare", files[0], tmp_path / "none.jsonl") == 2
    assert "no such file" in capsys.readouterr().err
    assert rapo("score", "--compare", *files, "--out", tmp_path / "both.jsonl") == 2
    assert "with --compare it is a picture" in capsys.readouterr().err
    assert rapo("score", "config.yaml", "--compare", *files) == 2
    assert "--compare reads two files of scores and nothing else; leave out CONFIG." in capsys.readouterr().err
    given = ["--judge-concurrency", 8, "--scorer-timeout", 600, "--write", "logps", "--step", 0, "--judge-compare"]
    assert rapo("score", "--compare", *files, *given) == 2
    said = capsys.readouterr().err
    assert all(option in said for option in given[::2])
    assert rapo("score", "--out", tmp_path / "x.jsonl") == 2
    assert "CONFIG, a YAML file, is needed; see rapo score --help." in capsys.readouterr().err
    assert json.loads(files[1].read_text().splitlines()[0]) == B[0]
