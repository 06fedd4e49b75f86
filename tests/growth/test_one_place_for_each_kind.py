"""What is added in one place, from outside the package, trains through the command line like what comes with it.

When one of these fails, adding a loss, a schema, a kernel or a metric needs edits all over the package. A model family is
added the same way in tests/models/test_families.py.
"""

from typing import Annotated

import pytest
import yaml
from jaxtyping import Array, Float

from rapo_jax.config.tree import Columns
from rapo_jax.data.schemas.registry import SCHEMAS
from rapo_jax.data.schemas.schema import FirstRow, Parsed, Schema
from rapo_jax.intervals import Interval
from rapo_jax.messages import Message, Record
from rapo_jax.models.attention.dispatch import KERNELS
from rapo_jax.models.attention.einsum import attend_einsum
from rapo_jax.models.attention.kernel import Kernel
from rapo_jax.objectives import OBJECTIVES, Logps, LossSpec
from rapo_jax.objectives.options import Beta
from rapo_jax.train.metrics import METRICS, Metric, Microbatch, Values
from tests import tiny

pytestmark = pytest.mark.slow

Reach = Annotated[float, Interval(0, 1), "the margin beyond which a pair costs nothing"]


def reaching(logps: Logps, *, beta: Beta = 0.1, reach: Reach = 0.5) -> Float[Array, "*groups"]:
    """(reach - beta d)^2, which is reach^2 as long as the policy is the reference."""
    return (reach - beta * logps.margin) ** 2


def test_an_objective_with_an_option_is_one_function_and_one_entry(train, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(OBJECTIVES, "reaching", LossSpec(reaching))
    text = tiny.RUN.replace("{beta: 0.1}", "{name: reaching, reach: 0.75}")
    steps = train(yaml=text)
    assert [step["step"] for step in steps] == [1, 2]
    assert steps[0]["loss"] == pytest.approx(0.5625, abs=1e-6)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["objective"]["reach"] == 0.75
    (tmp_path / "far.yaml").write_text(text.replace("0.75", "2.0"))
    assert tiny.rapo("train", tmp_path / "far.yaml", "model.path=x", "data.path=x", "run_dir=x") == 2
    assert "objective.reach=2.0" in capsys.readouterr().err


def response_tokens(groups: Microbatch) -> Values:
    return groups.logps.num_tokens.sum(-1), groups.everywhere


def test_a_metric_is_one_entry(train, monkeypatch):
    monkeypatch.setitem(METRICS, "tokens/responses", Metric(response_tokens))
    for step in train():
        assert step["tokens/responses"] > 10
        assert step["tokens/responses"] == pytest.approx(
            (step["goal_chosen/tokens/responses"] + step["goal_rejected/tokens/responses"]) / 2, rel=0.5
        )


def read_quiz(values, columns, options) -> Parsed:
    """{"question": ..., "answers": {"good": ..., "bad": ...}, "marks": [good's, bad's]}"""
    prompt = (Message("user", values[columns.prompt]),)
    responses = (values["answers"]["good"], values["answers"]["bad"])
    return Parsed(Record(row=0, prompt=prompt, responses=responses, rewards=tuple(values[columns.rewards])))


def is_quiz(first: FirstRow) -> bool:
    return first.has("question", "answers", "marks")


def test_a_data_schema_is_one_entry_that_detects_reads_and_describes_its_rows(train, monkeypatch):
    columns = Columns(prompt="question", rewards="marks")
    quiz = Schema(
        "quiz", "a question, a good and a bad answer and their marks", read_quiz, detects=is_quiz, usual=columns
    )
    monkeypatch.setitem(SCHEMAS, "quiz", quiz)
    rows = [
        {"question": row["prompt"], "answers": {"good": row["chosen"], "bad": row["rejected"]}}
        | {"marks": [row["score_chosen"], row["score_rejected"]]}
        for row in tiny.PAIRS
    ]
    assert deterministic(train(rows=rows)) == deterministic(train(name="as pairs"))


def deterministic(steps: list[dict[str, float]]) -> list[dict[str, float]]:
    clocked = ("pairs_per_s", "real_tokens_per_s", "time/")
    return [{name: value for name, value in step.items() if not name.startswith(clocked)} for step in steps]


def test_an_attention_kernel_is_one_entry(train, monkeypatch):
    shapes = []

    def attend(q_BTNH, k_BUKH, v_BUKH, **options):
        shapes.append((q_BTNH.shape, k_BUKH.shape))
        return attend_einsum(q_BTNH, k_BUKH, v_BUKH, **options)

    monkeypatch.setitem(KERNELS, "recording", Kernel(attend))
    steps = train("model.attention=recording")
    assert shapes, "the kernel was never called"
    assert deterministic(steps) == deterministic(train("model.attention=einsum", name="einsum"))
