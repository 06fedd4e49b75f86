"""What a machine cannot hold or show is one sentence with the settings that matter, and loses nothing."""

import io
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax import cli
from rapo_jax.batching.pipeline import number_of_steps
from rapo_jax.config.files import from_dict
from rapo_jax.errors import UserError
from tests.tiny import RUN, rapo


@pytest.mark.parametrize(
    ("allocate", "fact"),
    [
        (lambda: jnp.zeros((10**6, 10**6)), "(Out of memory allocating 4000000000000 bytes); "),
        (lambda: np.ones((10**6, 10**7)), "(Unable to allocate 72.8 TiB for an array with shape"),
    ],
)
@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["train", "CONFIG"], "rows.per_shard, rows.length or data.max_length, set model.remat=full, or share the model among "
         "more devices with mesh.fsdp, and long rows with mesh.context. What run_dir holds is safe, and the same command goes on from its last checkpoint."),
        (["score", "CONFIG", "--out", "x"], "with mesh.fsdp, and long rows with mesh.context. What was computed is kept"),
        (["evaluate", "x", "--model", "x", "--out", "x"], "with mesh.fsdp, and long rows with mesh.context. What was computed is kept"),
        (["generate", "x", "--prompts", "x", "--out", "x"], "lower --batch-tokens or --batch-size; --dtype bfloat16 takes less, with another --out. The answers so far are kept"),
    ],
)  # fmt: skip
def test_too_little_memory_is_one_sentence_with_the_settings_that_need_it(
    tmp_path, monkeypatch, capsys, allocate, fact, arguments, remedy
):
    """When this fails, rows that are too many for a device are a hundred lines of XLA's, which name no setting."""
    monkeypatch.setitem(cli.VERBS, arguments[0], lambda options: allocate())
    assert rapo(*arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"rapo {arguments[0]}: out of memory {fact}") and remedy in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("key", ["rows.per_shard", "rows.length", "data.max_length"])
def test_sizes_that_nothing_holds_are_refused_at_once(key):
    """When this fails, a digit too many fills the memory for hours."""
    section, name = key.split(".")
    with pytest.raises(UserError, match=rf"{key}=1000000000 must lie in \(0, "):
        from_dict({section: {name: 10**9}})


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ((1e308, None), "train.num_epochs=1e+308 reads inf pairs, with train.batch_size=8 and 24 pairs of data"),
        ((1.0, 10**9), "train.max_steps=1000000000 reads 8e+09 pairs, with train.batch_size=8 and 24 pairs of data"),
    ],
)
def test_more_steps_than_can_be_listed_are_refused(length, message):
    with pytest.raises(UserError) as refused:
        number_of_steps(*length, batch_size=8, num_groups=24)
    assert str(refused.value) == f"{message}, and the order of at most 1,000,000,000 is made; lower it."


def test_a_terminal_without_a_letter_shows_its_escape(tmp_path, monkeypatch):
    """When this fails, a command in an ASCII locale ends in a UnicodeEncodeError about its own message."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", screen)
    (tmp_path / "run.yaml").write_text(RUN)
    assert rapo("train", tmp_path / "run.yaml", "model.path=Zürich", "run_dir=x", "data.path=x") == 2
    screen.flush()
    assert b"model.path='Z\\xfcrich': no such directory" in screen.buffer.getvalue()
