"""train.stop_on ends a run where its evaluations stop improving, and a resumed run ends there too."""

import json

import pytest

from tests import tiny
from tests.tiny import runs

pytestmark = pytest.mark.slow
# A learning rate that changes nothing: the first evaluation stays the best.
STILL = ["optimizer.learning_rate=1e-30", "train.eval_every=1", "train.save_every=null", "train.stop_on=eval_loss", "train.patience=3"]  # fmt: skip


def test_a_run_ends_when_nothing_gets_better_also_when_it_was_interrupted(world, tmp_path, capsys):
    """When this fails, patience begins anew with every preemption, and a run that should end goes on for days."""
    once, again = tmp_path / "once", tmp_path / "again"
    assert tiny.rapo(*world.train(once, *STILL)) == runs.DONE
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "step 4 ends the run by train.stop_on: the lowest eval_loss, 0.6931, is of step 1, 3 evaluations ago." in said
    )
    assert f"done: {once} is complete at step 4" in said
    assert runs.steps_of(once) == [1, 4], "the best is saved although nothing else asked for it"
    assert tiny.rapo_until(3, world.train(again, *STILL)) == runs.INTERRUPTED
    assert tiny.rapo(*world.train(again, *STILL)) == runs.DONE
    assert runs.metrics_of(again) == runs.metrics_of(once) and len(runs.metrics_of(again)) == 4
    capsys.readouterr()
    assert tiny.rapo(*world.train(again, *STILL)) == runs.DONE
    said = " ".join(capsys.readouterr().out.split())
    assert "nothing to do" in said and "train.patience=6" in said
    assert tiny.rapo(*world.train(again, *STILL, "train.patience=5")) == runs.DONE
    assert runs.steps_of(again)[-1] == 6, "a longer patience goes on"


def test_the_best_checkpoint_by_any_metric_is_kept(world, tmp_path):
    """Beside the last two, the step whose evaluation has the lowest, or the highest, loss."""
    more = ["train.max_steps=4", "train.eval_every=1", "train.save_every=1", "train.keep_last=2"]
    kept = {}
    for by in ("eval_loss", "highest eval_loss"):
        run_dir = tmp_path / by.replace(" ", "-")
        assert tiny.rapo(*world.train(run_dir, *more, f"train.keep_best_by={by}")) == runs.DONE
        losses = [json.loads(line)["eval_loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        best = (max if by.startswith("highest") else min)(losses)
        kept[by] = runs.steps_of(run_dir)
        assert kept[by] == sorted({3, 4, 1 + losses.index(best)})
    assert kept["eval_loss"] != kept["highest eval_loss"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["train.stop_on=eval_los", "train.eval_every=1"], "evaluations of this run have no eval_los; did you mean 'eval_loss'?"),
        (["train.keep_best_by=highest eval_acc"], "evaluations of this run have no eval_acc"),
        (["train.stop_on=eval_loss", "train.eval_every=null"], "train.eval_every is not set"),
        (["train.stop_on=eval_loss", "data.eval_path="], "nothing is held out: set data.eval_path or data.eval_fraction"),
        (["train.patience=0"], "train.patience=0"),
        (["train.keep_best_by="], "train.keep_best_by is empty"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_before_anything_is_computed(more, message, world, tmp_path, capsys):
    assert tiny.rapo(*world.train(tmp_path / "run", *more)) == runs.USER_ERROR
    said = " ".join(capsys.readouterr().err.split())
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()
