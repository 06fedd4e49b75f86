"""What a newcomer reads first is complete and names only what exists."""

import io
from pathlib import Path

import pytest

from rapo_jax import cli
from rapo_jax.arguments import parser
from tests.tiny import rapo

ROOT = Path(__file__).parents[2]
VERBS = {
    "relabel": ["CONFIG", "--out", "relabel.goals"],
    "train": ["CONFIG", "key=value", "run_dir", "--distributed", "--cpu-devices", "--coordinator", "--num-processes", "--process-id"],
    "export": ["RUN_DIR", "OUT_DIR", "--step", "--goal", "--no-goal", "--adapter"],
    "generate": ["MODEL_DIR", "--prompts", "--out", "--goal", "--no-goal", "--raw", "--max-new-tokens", "--max-prompt-length",
                 "--temperature", "--top-p", "--top-k", "--min-p", "--repetition-penalty", "--stop", "--logps", "--seed", "--num-samples", "--batch-size", "--dtype", "--chat-template", "--engine", "--engine-sends"],
    "answers": ["MODEL_DIR", "--benchmark", "--input", "--out", "--name", "--goal", "--temperature", "--engine", "alpaca_eval"],
    "score": ["CONFIG", "--model", "--reference", "--out", "objective.beta"],
    "round": ["CONFIG", "key=value", "--rounds", "rounds.scorer"],
    "evaluate": ["CONFIG", "--model", "--suite", "--goals", "--pairs", "--reference", "--out", "--scorer",
                 "--scale", "--prompts", "--base", "--any-goal", "--best-of", "--engine"],
    "report": ["PATH", "--out", "--title", "--json", "--csv"],
    "plan": ["CONFIG", "key=value", "--topology", "--devices", "--smallest", "--json"],
    "keys": ["PREFIX", "objective.dpo"],
}  # fmt: skip


@pytest.mark.parametrize("script", ["launch/quickstart.sh", "tests/run.sh"])
def test_the_readme_names_existing_scripts(script):
    """When this fails, the first two commands that anyone types do not work."""
    assert script in (ROOT / "README.md").read_text()
    assert (ROOT / script).is_file()


def test_help_lists_every_verb(capsys):
    assert rapo("--help") == 0
    printed = capsys.readouterr().out
    for verb in VERBS:
        assert f"rapo {verb} " in printed


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_names_its_arguments(capsys, verb):
    assert rapo(verb, "--help") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: rapo {verb}")
    for name in VERBS[verb]:
        assert name in printed


def test_every_verb_has_an_implementation():
    """When this fails, --help offers a verb that takes its arguments and ends in a traceback."""
    (verbs,) = (action.choices for action in parser()._actions if action.dest == "name")
    assert list(verbs) == list(cli.VERBS) == list(VERBS)


def test_the_version_is_printed(capsys):
    assert rapo("--version") == 0
    assert capsys.readouterr().out.startswith("rapo_jax ")


def test_a_terminal_that_is_not_utf8_shows_what_it_can(monkeypatch):
    """When this fails, a name with an accent ends a command in a traceback, after its work, under an ASCII locale."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setitem(cli.VERBS, "keys", lambda options: print("Gr\u00fc\u00dfe") or 0)
    with pytest.raises(SystemExit):
        cli.main(["keys"])
    out.flush()
    assert out.buffer.getvalue() == b"Gr\\xfc\\xdfe\n"
