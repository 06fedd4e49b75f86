"""The prompts of all rounds: read once, divided into those that are trained on and those that rounds are judged by."""

from pathlib import Path
from typing import Any

from rapo_jax.borders import json_line, write_json_lines
from rapo_jax.config.rounds import Rounds
from rapo_jax.data.draws import prompt_share
from rapo_jax.errors import UserError, counted
from rapo_jax.generate.prompts import Prompt, read_prompts


def divide(rounds: Rounds, *, seed: int, train: Path, judge: Path) -> tuple[int, int]:
    """Writes both files and returns how many prompts each has. A prompt that stands in both is not trained on.

    Raises UserError where one of them would be empty.
    """
    prompts = distinct(read_prompts(rounds.prompts))
    if rounds.eval_prompts:
        held_out = distinct(read_prompts(rounds.eval_prompts))
    else:
        held_out = {
            text: prompt
            for text, prompt in prompts.items()
            if prompt_share(prompt.messages, seed=seed, purpose="eval") < rounds.eval_fraction
        }
    left = {text: prompt for text, prompt in prompts.items() if text not in held_out}
    said = (
        f"rounds.eval_prompts={rounds.eval_prompts}"
        if rounds.eval_prompts
        else f"rounds.eval_fraction={rounds.eval_fraction}"
    )
    for number, what in ((len(left), "to train on"), (len(held_out), "to judge rounds by")):
        if not number:
            raise UserError(
                f"{said} leaves none of {counted(len(prompts), 'prompt')} of rounds.prompts={rounds.prompts} {what}; change it, or "
                "give more prompts."
            )
    for path, chosen in ((train, left), (judge, held_out)):
        write_json_lines(path, map(plain_row, chosen.values()))
    return len(left), len(held_out)


def distinct(prompts: list[Prompt]) -> dict[str, Prompt]:
    """Every conversation once, by its text: what is sampled twice would be compared with itself."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(json_line(plain_row(prompt)), prompt)
    return found


def plain_row(prompt: Prompt) -> dict[str, Any]:
    """A prompt as its messages, with its tools if it has any."""
    messages = [turn.as_dict() for turn in prompt.messages]
    return {"prompt": messages} | ({"tools": prompt.tools} if prompt.tools else {})
