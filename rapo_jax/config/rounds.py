"""The section `rounds`: training on the model's own responses, round by round. Read by `rapo round` alone."""

from dataclasses import dataclass
from typing import Literal

from rapo_jax.config.fields import key
from rapo_jax.intervals import NOT_NEGATIVE, POSITIVE, UNIT, Interval

GoalOfSamples = Literal["none", "highest", "spread"]


@dataclass(frozen=True)
class Rounds:
    prompts: str = key("", "a file of prompts to sample responses to, as for `rapo generate`", affects="tokens")
    eval_prompts: str = key(
        "",
        'prompts that every round is judged by; "" holds out rounds.eval_fraction of rounds.prompts',
        affects="tokens",
    )
    eval_fraction: float = key(
        0.1,
        "share of rounds.prompts, by a hash, that is judged by and not trained on",
        affects="tokens",
        allowed=Interval(0, 1, low_open=True, high_open=True),
    )
    num_rounds: int = key(1, "rounds; a larger number goes on from the last", affects="nothing", allowed=POSITIVE)
    num_samples: int = key(5, "responses to each prompt (the paper's 5)", affects="tokens", allowed=Interval(2))
    goal: GoalOfSamples = key(
        "none",
        "what samples are asked for, once the model knows goals: none (the paper), the highest, or a spread over all",
        affects="tokens",
    )
    temperature: float = key(
        0.8, "of the samples, and of the answers that are judged", affects="tokens", allowed=NOT_NEGATIVE
    )
    top_p: float = key(0.95, "as temperature", affects="tokens", allowed=Interval(0, 1, low_open=True))
    top_k: int = key(0, "as temperature; 0 keeps all tokens", affects="tokens", allowed=Interval(0, 2**31 - 1))
    min_p: float = key(0.0, "as temperature", affects="tokens", allowed=UNIT)
    repetition_penalty: float = key(1.0, "as temperature; 1 is none", affects="tokens", allowed=Interval(0.01, 100))
    stop: tuple[str, ...] = key((), "texts that end a response, and are no part of it", affects="tokens")
    max_new_tokens: int = key(512, "longest response", affects="tokens", allowed=POSITIVE)
    max_prompt_length: int = key(4096, "longer prompts lose their middle", affects="tokens", allowed=Interval(2))
    scorer: str = key(
        "", "reward_model, python:MODULE:FUNCTION or command:PROGRAM, as for `rapo score`", affects="tokens"
    )
    scorer_model: str = key("", "the directory of rounds.scorer=reward_model", affects="tokens")
    start: Literal["previous", "first"] = key(
        "previous",
        "the model that a round trains, which is also its reference: the last round's, or model.path",
        affects="tokens",
    )
    num_goals: int = key(
        3,
        "goals, from the lowest to the highest, that a round's model is judged at",
        affects="tokens",
        allowed=POSITIVE,
    )
    batch_size: int = key(16, "prompts that are answered at once", affects="nothing", allowed=POSITIVE)
