"""What the documents say can be followed: links, files, commands and configuration keys."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

from rapo_jax.arguments import parse
from rapo_jax.config.files import load_config
from rapo_jax.config.keys import affects
from rapo_jax.objectives.registry import OBJECTIVES

ROOT = Path(__file__).parents[1]
DOCUMENTS = {
    name: (ROOT / name).read_text()
    for name in (
        "README.md",
        "CHANGELOG.md",
        ".github/CONTRIBUTING.md",
        "configs/README.md",
        "launch/README.md",
        "rapo_jax/README.md",
        "tests/benchmarks/README.md",
    )
}
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
PLACEHOLDERS = {"N": "1", "I": "0", "T": "1", "key=value": "train.log_every=1"}
OPTIONS = {option for objective in OBJECTIVES.values() for option in objective.options}
KEY = re.compile(r"(?<![\w.-])((?:[a-z]\w*\.)+[a-z]\w*)=")


def expand(text: str) -> list[str]:
    """Braces as a shell expands them.

    >>> expand("configs/{a,b}-{x,y}.yaml")[:2]
    ['configs/a-x.yaml', 'configs/a-y.yaml']
    """
    parts = [part.split(",") for part in re.split(r"[{}]", text)]
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def without_comments(line: str) -> str:
    """A command line without what follows it: a comment, or several spaces and words."""
    return re.split(r"\s{2,}|\s#\s", line.strip())[0]


def commands(text: str) -> list[str]:
    """Every `rapo ...` command of a document or of a configuration's header: code blocks and inline code."""
    text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    text = re.sub(r"\s*\\\n\s*", " ", text)  # continued lines
    blocks = re.findall(r"^(?: {2,}|After: +|Before: +)(?:After: +|Before: +)?(rapo .*)$", text, flags=re.MULTILINE)
    inline = [" ".join(code.split()) for code in re.findall(r"`(rapo [^`]+)`", text)]
    lines = [part for line in [*map(without_comments, blocks), *inline] for part in line.split("; ")]
    return [line for line in lines if re.match(r"rapo (--)?[a-z]", line) and len(line.split()) > 2]


def words(command: str) -> list[str]:
    """Arguments as typed: optional ones are given, placeholders have a value."""
    plain = re.sub(r"\[([A-Za-z-][^\]=]*|key=value)(?: \.\.\.)?\]", r"\1", command)
    return [PLACEHOLDERS.get(word, word) for word in shlex.split(plain)][1:]


SOURCES = DOCUMENTS | {str(path.relative_to(ROOT)): path.read_text() for path in CONFIGS}
COMMANDS = [(name, command) for name, text in SOURCES.items() for command in dict.fromkeys(commands(text))]


def test_the_readme_is_short_enough_to_be_read():
    """When this fails, a first visitor leaves before the two commands. Details belong in a directory's README."""
    assert len(DOCUMENTS["README.md"].split()) <= 1300


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_relative_link_leads_somewhere(name):
    """When this fails, a reader follows a link to a file that was moved."""
    links = re.findall(r"\]\(([^)#]+)\)", DOCUMENTS[name])
    missing = [link for link in links if "://" not in link and not (ROOT / name).parent.joinpath(link).exists()]
    assert not missing


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_configuration_that_is_named_exists(name):
    """When this fails, the command for a row of the paper's tables names no file."""
    named = re.findall(r"configs/[\w./{},-]+?\.yaml", DOCUMENTS[name])
    missing = [path for each in named for path in expand(each) if not (ROOT / path).is_file()]
    assert not missing


def test_every_configuration_is_in_the_list():
    """When this fails, there is a configuration that nobody finds."""
    text = DOCUMENTS["configs/README.md"]
    listed = {path for each in re.findall(r"configs/[\w./{},-]+?\.yaml", text) for path in expand(each)}
    listed |= {f"configs/{link}" for link in re.findall(r"\]\(([\w-]+\.yaml)\)", text)}
    there = {str(path.relative_to(ROOT)) for path in CONFIGS if not path.name.startswith("quickstart-")}
    assert there <= listed


def test_every_room_is_in_the_architecture():
    """When this fails, a reader of the code looks for a room that moved, or finds one that nobody explains."""
    table = DOCUMENTS["rapo_jax/README.md"].partition("## Rooms")[2].partition("## One pair")[0]
    rooms = {path.stem for path in (ROOT / "rapo_jax").iterdir() if not path.name.startswith("_")} - {"README", "py"}
    assert {name.rstrip("/") for name in re.findall(r"`(\w+/?)`", table)} == rooms


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[command for _, command in COMMANDS])
def test_every_command_can_be_typed(name, command):
    """When this fails, a command copied from a document ends in a usage message."""
    options = parse(words(command))
    if (ROOT / getattr(options, "config", "none")).is_file():
        load_config(ROOT / options.config, options.overrides)


@pytest.mark.parametrize("name", SOURCES)
def test_every_key_that_is_set_exists(name):
    """When this fails, an override copied from a document is refused as unknown."""
    for key in KEY.findall(SOURCES[name]):
        section, _, rest = key.partition(".")
        assert affects(key)
        assert section != "objective" or rest in OPTIONS | {"name", "weight", "plus", "best_goal_weight"}


def test_the_commands_were_found():
    """When this fails, a pattern finds nothing and the tests above pass without checking anything."""
    assert {words(command)[0] for _, command in COMMANDS} >= {
        "relabel",
        "train",
        "export",
        "generate",
        "score",
        "plan",
        "keys",
    }
    assert len(COMMANDS) > 70
