"""Everything that decides the content of a tokenized data set, so that one that was kept is never taken for another.

Files count with their content, code and libraries with their version. What cannot be told, such as the content of a data set
that is in memory alone, is not kept.
"""

import functools
import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

import rapo_jax
from rapo_jax.batching.stored import Origin, sha256_of
from rapo_jax.chat.goal_prompt import GoalPrompt
from rapo_jax.config.files import as_dict
from rapo_jax.config.tree import Config
from rapo_jax.data.configured import Part, sources_of_part
from rapo_jax.data.files import files_of
from rapo_jax.data.rewards import CONSTANT
from rapo_jax.data.scaling import Scales

LIBRARIES = ("transformers", "tokenizers", "jinja2")
# Of our own code, the rooms and modules through which a row becomes a group.
CODE = ("batching", "chat", "config", "data", "objectives", "batch", "borders", "intervals", "messages", "relabel")
Kind = Literal["train", "eval", "eval_plain"]  # eval_plain has no goals
ONLY_OF_EVAL = ("eval_path", "eval_split", "eval_rewards")


def origin_of(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    *,
    goal_prompt: GoalPrompt,
    kind: Kind,
    scales: Scales | None = None,
    least: int = 0,
) -> Origin | None:
    """What a data set of a kind belongs to; None where its content cannot be told, or its files have less than `least`
    bytes. `scales` are as in `read_part`."""
    part: Part = "train" if kind == "train" else "eval"
    files = input_files(config, part)
    if files is None or sum(file.stat().st_size for file in files) < least:
        return None
    tree = as_dict(config)
    data = {key: value for key, value in tree["data"].items() if key != "cache"}
    if part == "train":
        data = {key: value for key, value in data.items() if key not in ONLY_OF_EVAL}
    origin = {
        "kind": kind,
        "data": data,
        "relabel": tree["relabel"],
        "objective": what_counts_of_objective(config),
        "seed": config.seed,
        "goal_prompt": asdict(goal_prompt),
        "scales": None if scales is None else scales.tree(),
        "tokenizer": tokenizer_hash(tokenizer),
        "files": [sha256_of(file) for file in files],
        "code": code_hash(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    return json.loads(json.dumps(origin))


def what_counts_of_objective(config: Config) -> dict[str, Any]:
    """What of the objective the data depend on; a loss may change its beta and find the tokens."""
    objective = config.objective
    needs = [what for what in ("reference", "rewards", "prompt", "divergence", "weight") if objective.needs(what)]
    return {
        "names": [term.name for term in objective.terms],
        "responses": objective.responses,
        "needs": needs,
        "best_goal_weight": objective.best_goal_weight,
        "is_reward_model": objective.is_reward_model,
    }


def input_files(config: Config, part: Part) -> list[Path] | None:
    """The files that are read for a part: rows, scores, questions to leave out, the map of scores."""
    found: list[Path] = []
    for source in sources_of_part(config, part):
        options = source.options
        rows = files_of(options.path, split=options.split, revision=options.revision, option=source.option)
        if rows is None:
            return None
        found += rows
        if options.rewards not in ("", CONSTANT):
            scores = Path(options.rewards).expanduser()
            found += [scores, *(side for side in [scores.with_suffix(".json")] if side != scores and side.exists())]
    found += [Path(name).expanduser() for name in (config.data.drop_prompts, config.relabel.scale.file) if name]
    return found if all(file.is_file() for file in found) else None


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    parts = [type(tokenizer).__name__, backend.to_str(), tokenizer.chat_template, tokenizer.special_tokens_map]
    parts.append(getattr(tokenizer, "split_special_tokens", False))
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()


@functools.cache
def code_hash() -> str:
    """A hash of the code that makes groups of rows: another version of it makes its own."""
    root, digest = Path(rapo_jax.__file__).parent, hashlib.sha256(rapo_jax.__version__.encode())
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).with_suffix("").parts[0] in CODE:
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
