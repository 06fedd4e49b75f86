"""The scored pairs that models are evaluated on."""

from dataclasses import replace

from rapo_jax.batching.pipeline import evaluation_source, read_part
from rapo_jax.config.objective import Objective
from rapo_jax.config.tree import Config
from rapo_jax.data.mixture import sample
from rapo_jax.distributed import say
from rapo_jax.errors import UserError, counted
from rapo_jax.messages import Record

NOT_HELD_OUT = "of data.path (data.eval_path or data.eval_fraction would hold some out)"


def held_out_pairs(config: Config, *, most: int | None) -> list[Record]:
    """At most so many pairs, scores on the goal scale, the larger first: those held out or, where none are, of data.path.

    They are read as for DPO, whatever the configuration's objective compares. Raises UserError where scores are missing.
    """
    relabel = replace(config.relabel, goals=("chosen", "rejected"), attributes=(), goal_kind="levels")
    wanted = replace(config, relabel=relabel, objective=Objective())
    held_out = config.data.eval_path or config.data.eval_fraction
    prepared = read_part(wanted, "train")
    if held_out:
        with evaluation_source(config):
            prepared = read_part(wanted, "eval", scales=prepared.scales)
    pairs = [better_first(record) for record in prepared.records if len(record.responses) == 2]
    if not pairs:
        raise UserError(f"{prepared.said} has no pairs of scored responses to evaluate on.")
    if all(better == worse for better, worse in map(rewards_of, pairs)):
        raise UserError(f"{prepared.said}: all pairs have equal scores, so that no goal prefers a response.")
    if others := len(prepared.records) - len(pairs):
        say(f"  note   {counted(others, 'record')} with another number of responses than two left out")
    drawn = sample(pairs, most or len(pairs), seed=config.seed)
    of_all = f" of {len(pairs):,}" if len(drawn) < len(pairs) else ""
    say(f"  data   {len(drawn):,}{of_all} pairs {'held out' if held_out else NOT_HELD_OUT}")
    return drawn


def rewards_of(record: Record) -> tuple[float, ...]:
    assert record.rewards is not None  # rows without scores were refused when they were read
    return record.rewards


def better_first(record: Record) -> Record:
    """The record of a pair with the response of the larger reward first."""
    better, worse = rewards_of(record)
    if better >= worse:
        return record
    turned = {
        name: tuple(reversed(value))
        for name in ("responses", "rewards", "attributes", "labels", "more")
        if (value := getattr(record, name))
    }
    return replace(record, **turned)
