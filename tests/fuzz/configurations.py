"""YAML files and overrides."""

from typing import Any

import yaml
from hypothesis import strategies as st

from rapo_jax.config.files import as_dict, load_config, to_yaml
from rapo_jax.config.tree import Config
from rapo_jax.runs.settings import dotted
from tests.fuzz.hostile import SCALARS, altered, damaged
from tests.fuzz.place import Border, Place

SNIPPETS = (
    "objective: &a\n  name: dpo\n  with: [*a]\n",
    "a: &a [*a]\n",
    "&a [*a]\n",
    "model: &m\n  path: x\n  <<: *m\n",
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
    "run_dir: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n",
    "seed: !!int x\n", "seed: !!float x\n", "seed: !!bool x\n", "seed: !!timestamp x\n", "seed: !!binary é\n",
    "seed: !!set {a, b}\n", "seed: !!omap [a: 1]\n", "seed: !!pairs [a: 1]\n", "seed: !!null x\n", "seed: !!map [1]\n",
    "seed: 2026-13-40\n", "seed: 2026-01-01 99:99:99\n", "seed: 0x\n", "seed: 0b2\n", "seed: 1:99:99\n", "seed: .inf\n",
    "? [a, b]\n: c\n", "? {a: b}\n: c\n", "1: 2\n", "null: 3\n", "2026-01-01: 3\n", "true: 1\n", "<<: 3\n", "<<: [3]\n",
    "- a\n- b\n", "--- a\n--- b\n", "%YAML 9.9\n--- a\n", "extends: .\n", "extends: run.yaml\n", "extends: ''\n",
    "extends: \"a\\0b\"\n", f"extends: {'x' * 300}\n", "extends: /dev/null\n", "extends: loop\n", "a: \"\\ud800\"\n",
    "data: {path: \"\\0\"}\n", "train: {num_epochs: 1e308}\n", "seed: 1" + "0" * 400 + "\n", "{" * 2000, "[" * 2000,
    "a: " * 500, "- " * 3000, "&a " * 100, "!" * 100, "'" * 99, "\t", "\0", "# only a comment\n", "@", "`", "a: b: c\n",
)  # fmt: skip
KEYS = tuple(sorted(dict(dotted(as_dict(Config())))))
TEXTS = [
    *map(str, SCALARS),
    *SNIPPETS,
    "[a",
    "{a: 1}",
    "[{path: x}]",
    "[[1]]",
    "!!int x",
    "2026-13-40",
    "*a",
    "&a [*a]",
]


def yaml_bytes(tree: Any) -> bytes:
    """YAML, also of what SafeDumper writes but SafeLoader may refuse."""
    try:
        return yaml.safe_dump(tree, allow_unicode=False).encode()
    except (yaml.YAMLError, UnicodeError):
        return repr(tree).encode("utf-8", "replace")


def read_yaml(place: Place, given: tuple[bytes, list[str]]) -> object:
    config, overrides = given
    directory = place.write({"run.yaml": config})
    (directory / "loop").symlink_to("loop")
    loaded = load_config(directory / "run.yaml", overrides)
    return to_yaml(loaded)


OVERRIDE = st.one_of(
    st.tuples(st.sampled_from(KEYS), st.one_of(st.sampled_from(TEXTS), st.text(max_size=6))).map("=".join),
    st.sampled_from(["", "=", "a", ".=1", "..=1", "a.b.c=1", "seed.x=1", "data=1", "data.sources=[{path: {x: 1}}]"]),
)
BASE = as_dict(Config())
YAML = st.tuples(
    st.one_of(
        altered(
            [
                *({name: section} for name, section in BASE.items()),
                {"data": {"path": "x"}, "objective": {"name": "dpo", "with": [{"name": "sft"}]}},
            ]
        ).map(yaml_bytes),
        st.sampled_from(SNIPPETS).map(lambda text: text.encode("utf-8", "surrogatepass")),
        damaged(yaml.safe_dump({name: BASE[name] for name in ("data", "relabel")}).encode()),
    ),
    st.just([]),
)
OVERRIDES = st.tuples(st.just(b"seed: 1\n"), st.lists(OVERRIDE, min_size=1, max_size=3))


CONFIGURATIONS = {"yaml": Border(YAML, read_yaml, 15), "overrides": Border(OVERRIDES, read_yaml, 15)}
