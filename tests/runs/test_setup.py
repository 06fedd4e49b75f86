"""What a run resolves before it reads its data: the day that a chat template writes as today."""

from rapo_jax.config.files import from_dict, to_yaml
from rapo_jax.runs.setup import set_up
from tests import tiny

DATED = "{{ strftime_now('%d %b %Y') }}" + tiny.CHAT_TEMPLATE


def prompt(setup):
    return setup.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)


def test_the_day_of_a_run_is_its_first_and_that_of_a_run_from_its_export_too(tmp_path, monkeypatch):
    """When this fails, no run of a dated template resumes on the next day, and no cache of its references is found."""
    model = tiny.write_model(tmp_path / "model", chat_template=DATED)
    tree = {"model": {"path": str(model)}, "run_dir": str(tmp_path / "run")}
    monkeypatch.setattr("rapo_jax.opened.today", lambda: "2026-11-27")
    first = set_up(from_dict(tree))
    assert first.config.data.date == "2026-11-27"
    assert prompt(first) == "27 Nov 2026<|user|>Hi<|end|>"
    assert first.goal_prompt.chat_template == first.tokenizer.chat_template
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(first.config))
    monkeypatch.setattr("rapo_jax.opened.today", lambda: "2026-11-28")
    again = set_up(from_dict(tree))
    assert (again.config, prompt(again)) == (first.config, prompt(first))
    asked = set_up(from_dict(tree | {"data": {"date": "2024-07-26"}}))
    assert prompt(asked).startswith("26 Jul 2024")
    second = tiny.write_model(tmp_path / "second", chat_template=first.goal_prompt.chat_template)
    assert set_up(from_dict({"model": {"path": str(second)}})).config.data.date == "2026-11-27"


def test_a_template_without_a_date_has_no_day(tmp_path):
    model = tiny.write_model(tmp_path / "model")
    assert set_up(from_dict({"model": {"path": str(model)}})).config.data.date is None
