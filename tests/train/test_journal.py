"""What a run leaves behind: metrics by the names that users know, a report of the data, and no secrets."""

import itertools
import json
import math
from types import SimpleNamespace

import pytest

from rapo_jax import space
from rapo_jax.config.files import from_dict, load_config
from rapo_jax.config.tree import Config
from rapo_jax.errors import UserError
from rapo_jax.train.journal import Journal, cut_back, last_record, said_of_gap
from rapo_jax.train.loop import times_due
from rapo_jax.train.screen import duration
from tests.tiny import PAIRS, RUN, rapo, write_model, write_rows

TOKEN = "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"
OF_GROUPS = {"loss", "logps/chosen", "logps/rejected"} | {
    f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")
}
OF_STEPS = {"step", "epoch", "learning_rate", "grad_norm", "pairs_per_s", "real_tokens_per_s", "real_token_fraction"}
OF_STEPS |= {"time/step_s", "time/waiting_for_data_s", "time/saving_s", "skipped_steps"}
SIDES = ("", "goal_chosen/", "goal_rejected/")
TIED = PAIRS[0] | {"score_chosen": 5, "score_rejected": 5}
EMPTY = PAIRS[0] | {"chosen": ""}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of two steps with an evaluation after each; one tied row, one unusable row, access tokens in the
    environment."""
    world = tmp_path_factory.mktemp("world")
    (world / "config.yaml").write_text(RUN)
    write_model(world / "model")
    write_rows(world / "pairs.jsonl", [*PAIRS, TIED, EMPTY])
    write_rows(world / "held_out.jsonl", PAIRS[:3])
    paths = {"model.path": "model", "data.path": "pairs.jsonl", "data.eval_path": "held_out.jsonl", "run_dir": "run"}
    overrides = [f"{key}={world / name}" for key, name in paths.items()]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
            patch.setenv(name, TOKEN)
        code = rapo("train", world / "config.yaml", *overrides, "train.eval_every=1", "data.bad_rows=drop")
    assert code == 0
    return world / "run"


@pytest.fixture(scope="module")
def records(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


# metrics.jsonl.


@pytest.mark.parametrize(
    ("line", "step"), [('{"loss": 1.0}', "None"), ('{"step": "x"}', "'x'"), ('{"step": 2.5}', "2.5")]
)
def test_a_foreign_line_among_the_metrics_is_named(tmp_path, line, step):
    """When this fails, a run whose record somebody wrote into ends in a KeyError and cannot be resumed."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    for read in (lambda: cut_back(path, 1), lambda: last_record(tmp_path)):
        with pytest.raises(UserError) as refused:
            read()
        assert str(refused.value) == (
            f"{path} line 2 is no record of a step: step={step}; remove the line, or move the file away; the checkpoints do "
            "not depend on it."
        )
    assert path.read_text() == f'{{"step": 1}}\n{line}\n'


@pytest.mark.slow
def test_every_step_is_one_record_with_every_name(records):
    """When this fails, plots and sweeps lack a name that they read, which is noticed weeks later."""
    names = OF_STEPS | {prefix + name for prefix in SIDES for name in OF_GROUPS}
    names |= {f"eval_{prefix}{name}" for prefix in SIDES for name in OF_GROUPS}
    names |= {f"eval_plain_{name}" for name in OF_GROUPS}  # the same rows without goals
    assert [record["step"] for record in records] == [1, 2]
    for record in records:
        assert set(record) == names


@pytest.mark.slow
def test_the_first_step_is_where_policy_and_reference_are_the_same(records):
    first = records[0]
    for prefix in SIDES:
        assert first[f"{prefix}loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert first[f"{prefix}rewards/margins"] == pytest.approx(0, abs=1e-6)
        assert first[f"{prefix}logps/chosen"] < 0 > first[f"{prefix}logps/rejected"]
    assert first["grad_norm"] > 0


@pytest.mark.slow
def test_counters_count(records):
    """12 pairs give 24 preferences, 8 a step: a third of an epoch each. The first rate of a warmup is 0."""
    assert [record["epoch"] for record in records] == [pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert [record["learning_rate"] for record in records] == [0, pytest.approx(1e-3)]
    assert all(record["pairs_per_s"] > 0 and 0 < record["real_token_fraction"] <= 1 for record in records)


@pytest.mark.slow
def test_margins_are_chosen_minus_rejected_and_the_sides_average_to_the_whole(records):
    """The held-out rows give as many goals of chosen as of rejected responses."""
    for record in records:
        difference = record["rewards/chosen"] - record["rewards/rejected"]
        assert record["rewards/margins"] == pytest.approx(difference, abs=1e-5)
        for name in OF_GROUPS:
            sides = [record[f"eval_goal_{side}/{name}"] for side in ("chosen", "rejected")]
            assert record[f"eval_{name}"] == pytest.approx(sum(sides) / 2, abs=1e-4)


@pytest.mark.slow
def test_goals_reverse_which_response_is_chosen(records):
    """At g = r_w the row's chosen response is preferred, at g = r_l its rejected one: the same two, the other way round.
    Their log-probabilities differ only by the number in the goal."""
    first = records[0]
    for ours, other in (("chosen", "rejected"), ("rejected", "chosen")):
        forward, backward = (
            first[f"eval_goal_{side}/logps/{name}"] for side, name in (("chosen", ours), ("rejected", other))
        )
        assert forward == pytest.approx(backward, rel=0.1)


@pytest.mark.slow
def test_an_update_shows_in_the_next_evaluation(records):
    """After the second step, the first with a learning rate, the policy has left its reference on the held-out rows."""
    assert records[0]["eval_rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert records[1]["eval_loss"] < math.log(2)
    assert records[1]["eval_rewards/margins"] > 0


# Everything else in the run directory.


@pytest.mark.slow
def test_the_run_directory_holds_what_it_says_it_holds(run_dir):
    names = {path.name for path in run_dir.iterdir()}
    assert names == {
        "config.yaml",
        "data_report.json",
        "data_report.png",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
    }
    assert any(path.stat().st_size for path in (run_dir / "tensorboard").iterdir())
    assert load_config(run_dir / "config.yaml").train.eval_every == 1


@pytest.mark.slow
def test_the_data_report_accounts_for_every_row(run_dir):
    """When this fails, a fifth of the data can be dropped or truncated without anyone being told."""
    report = json.loads((run_dir / "data_report.json").read_text())
    train = report["train"]
    assert (train["rows_read"], train["rows_dropped"]) == (14, {"empty_response": 1})
    assert train["ties"] == {"found": 1, "dropped": 1}
    assert train["preferences"] == {"chosen": 12, "rejected": 12}
    assert train["groups"] == 24
    assert train["scores_from"] == "columns score_chosen, score_rejected"
    assert train["scores"] == {"chosen": {"5": 1, "7": 4, "8": 4, "9": 4}, "rejected": {"3": 12, "5": 1}}
    assert train["label_against_scores"] == 0
    assert train["goal_placement"] == "system"
    assert (train["cut"]["prompt_tokens_cut"], train["cut"]["response_tokens_cut"]) == (0, 0)
    assert set(train["tokens"]) == {"prompt", "response", "group"}
    assert report["eval"]["groups"] == 6
    assert (report["plan"]["steps"], report["plan"]["groups_left_over"]) == (2, 8)


@pytest.mark.slow
def test_a_run_becomes_a_page(run_dir, tmp_path):
    """When this fails, what a run writes and what a page reads are no longer the same."""
    assert rapo("report", run_dir, "-o", tmp_path / "page.html", "--json", tmp_path / "numbers.json") == 0
    (run,) = json.loads((tmp_path / "numbers.json").read_text())["runs"]
    assert (run["steps"], run["planned_steps"], run["config"]["objective.beta"]) == (2, 2, 0.1)
    assert run["data"]["run"]["mesh"] == {"data": 1, "fsdp": 8, "context": 1, "tensor": 1}
    assert run["data"]["run"]["parameters"] > 1000 and run["data"]["run"]["device"] == "cpu"
    assert len(run["curves"]["goal_chosen/rewards/accuracies"]["step"]) == 2
    assert "cpu (1 data x 8 fsdp x 1 tensor)" in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_no_secret_is_written_anywhere(run_dir):
    """When this fails, secrets leak with run directories, which are shared, uploaded and published."""
    files = [path for path in run_dir.parent.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


# The journal itself.


def lines(*steps):
    return "".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in steps)


@pytest.mark.parametrize(
    ("before", "last_step", "after"),
    [
        (lines(1, 2, 3), 3, lines(1, 2, 3)),
        (lines(1, 2, 3), 2, lines(1, 2)),
        (lines(1, 2) + '{"step": 3, "lo', 2, lines(1, 2)),
        (lines(1, 2) + '{"step": 3, "lo', 5, lines(1, 2)),
        (lines(1, 2), 0, ""),
    ],
)
def test_a_resumed_record_holds_every_step_once_and_no_half_line(tmp_path, before, last_step, after):
    """When this fails, after a kill, the record holds steps twice, or a line that is not JSON."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(before)
    cut_back(path, last_step)
    assert path.read_text() == after
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_there_is_nothing_to_cut_back_in_a_new_run(tmp_path):
    cut_back(tmp_path / "metrics.jsonl", 0)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("steps", "first_step", "log_every", "said"),
    [
        ([], 0, 1, None),
        ([1, 2, 3], 2, 1, None),
        ([5, 10], 12, 5, None),
        ([1, 2, 3], 0, 1, "reaches step 3, but there is no checkpoint: the run starts anew."),
        ([1, 2], 4, 1, "ends at step 2, the checkpoint is of step 4: the steps between are missing from it."),
        ([], 4, 1, "is not there, the checkpoint is of step 4: the steps between are missing from it."),
    ],
)
def test_a_record_that_does_not_fit_the_checkpoint_is_said(steps, first_step, log_every, said, tmp_path):
    """When this fails, a run whose checkpoints were removed starts from nothing without a word, or a gap in a curve has no
    explanation."""
    path = tmp_path / "metrics.jsonl"
    if steps:
        path.write_text("".join(f'{{"step": {step}}}\n' for step in steps))
    assert said_of_gap(path, first_step, log_every=log_every) == (said and f"{path} {said}")


def test_a_disk_that_is_nearly_full_stops_the_run_before_a_line_is_torn(tmp_path, monkeypatch):
    """When this fails, TensorBoard's thread dies of a full disk, and the run waits for it for ever."""
    journal = Journal(tmp_path, Config(), num_steps=2, first_step=0)
    journal.write(1, {"loss": 0.7})
    monkeypatch.setattr(space, "free_at", lambda path: 5_000)
    with pytest.raises(
        UserError, match=r"it needs 65.5 kB, and 5.0 kB of its disk are free. Every step up to here is in it."
    ):
        journal.write(2, {"loss": 0.6})
    journal.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.7}\n'


def test_a_side_without_groups_is_left_out_but_a_nan_loss_is_not(tmp_path):
    """When this fails, NaN where there is nothing to average looks like divergence, or real divergence is left out."""
    journal = Journal(tmp_path, Config(), num_steps=1, first_step=0)
    journal.write(1, {"loss": math.nan, "goal_rejected/loss": math.nan, "goal_chosen/loss": 0.7})
    journal.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "loss": None, "goal_chosen/loss": 0.7}
    assert "NaN" not in text  # which is not JSON


def screen_of(tmp_path, monkeypatch, capsys, config, metrics, *, seconds, evaluation=None):
    """What a run of 10 steps prints for reports of steps 1, 2 and 7 whose steps took `seconds`."""
    clock = itertools.count(step=60)
    monkeypatch.setattr("rapo_jax.train.journal.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    journal = Journal(tmp_path, from_dict(config), num_steps=10, first_step=0)
    for step, took in zip((1, 2, 7), seconds, strict=True):
        journal.progress(step, metrics | {"pairs_per_s": 3.2, "time/step_s": took})
    if evaluation:
        journal.evaluation(7, evaluation)
    journal.close()
    return capsys.readouterr().out.splitlines()


def test_the_time_left_leaves_out_the_compilation_and_the_rate_names_what_it_counts(tmp_path, monkeypatch, capsys):
    """When this fails, a run of two minutes announces a quarter of an hour at its first step, or counts responses as pairs."""
    config = {"objective": {"name": "sft"}, "relabel": {"goals": []}}
    assert screen_of(tmp_path, monkeypatch, capsys, config, {"loss": 2.0}, seconds=(60, 10, 12)) == [
        "     step     loss  responses/s       left",
        "     1/10   2.0000            -          -",
        "     2/10   2.0000          3.2   1 m 20 s",
        "     7/10   2.0000          3.2       33 s",
    ]


def test_margin_and_accuracy_are_shown_by_goal_side_within_80_columns(tmp_path, monkeypatch, capsys):
    """When this fails, a run whose goals are learnt looks like one that fails: the mean over both sides hides them."""
    names = [f"goal_{side}/rewards/{name}" for side in ("chosen", "rejected") for name in ("margins", "accuracies")]
    metrics = dict(zip(names, (0.0123, 0.75, math.nan, math.nan), strict=True)) | {"loss": 0.6893, "rewards/margins": 0}
    held_out = {f"eval_{name}": value for name, value in metrics.items()}
    shown = screen_of(tmp_path, monkeypatch, capsys, {}, metrics, seconds=(9, 1, 1), evaluation=held_out)
    assert shown == [
        "     step     loss     margin for        accuracy for         pairs/s       left",
        "                      chosen  rejected   chosen rejected",
        "     1/10   0.6893   +0.0123         -     0.75        -            -          -",
        "     2/10   0.6893   +0.0123         -     0.75        -          3.2        8 s",
        "     7/10   0.6893   +0.0123         -     0.75        -          3.2        3 s",
        "     7/10   0.6893   +0.0123         -     0.75        -  held out",
    ]
    assert max(map(len, shown)) <= 80


def test_evaluations_and_saves_still_to_come_are_counted_once_at_the_end():
    """When this fails, the time left of a run with slow evaluations is a fraction of what it takes."""
    assert [times_due(10, step, 25) for step in (0, 9, 10, 19, 20, 24, 25)] == [3, 3, 2, 2, 1, 1, 0]
    assert [times_due(10, step, 20) for step in (0, 10, 19, 20)] == [2, 1, 1, 0]
    assert [times_due(None, step, 20) for step in (0, 19, 20)] == [1, 1, 0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (45.4, "45 s"), (200, "3 m 20 s"), (3599.6, "1 h 00 m"), (7500, "2 h 05 m")],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text
