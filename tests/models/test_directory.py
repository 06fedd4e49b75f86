"""Directories that are not models are told apart from broken ones, with the way to a model."""

import pytest

from rapo_jax.errors import UserError
from rapo_jax.models.directory import model_directory


def refusal(directory):
    with pytest.raises(UserError) as caught:
        model_directory(str(directory), option="MODEL_DIR")
    return str(caught.value)


def test_adapters_are_not_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds LoRA adapters and no model; give the merged model: `rapo export RUN_DIR OUT_DIR`" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")  # a merged model beside them
    assert model_directory(str(tmp_path)) == tmp_path


def test_a_run_directory_is_not_a_model(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "checkpoints").mkdir()
    assert refusal(tmp_path).endswith(
        f"is a run directory; export it first: rapo export {tmp_path} OUT_DIR, and give OUT_DIR."
    )
