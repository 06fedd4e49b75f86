"""Directories that are not models are told apart from broken ones, with the way to a model."""

import pytest

from rapo_jax.errors import UserError
from rapo_jax.models.directory import declared_stop_tokens, model_directory


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


@pytest.mark.parametrize("declared", ["2.5", "true", '"</s>"', "[1, null]", "{}"])
def test_stop_tokens_that_are_no_token_ids_are_refused(tmp_path, declared):
    """When this fails, a generation_config.json that was edited by hand ends in a TypeError."""
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {declared}}}')
    with pytest.raises(UserError, match=r"eos_token_id=.* must be a token id or a list of them; correct it\.$"):
        declared_stop_tokens(tmp_path)


@pytest.mark.parametrize(("declared", "tokens"), [("3", [3]), ("[3, 1]", [3, 1]), ("null", [])])
def test_stop_tokens_are_one_id_or_several(tmp_path, declared, tokens):
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {declared}}}')
    assert declared_stop_tokens(tmp_path) == tokens
