"""Where a run's loop begins: at its starting weights, or at its newest sound checkpoint."""

from dataclasses import dataclass

from rapo_jax.checkpoint import NONE_BEST, NONE_SKIPPED, Best, Skipped, Store
from rapo_jax.distributed import say
from rapo_jax.runs.identity import Identity, recorded, refuse_changes, steps_of
from rapo_jax.runs.setup import Setup
from rapo_jax.train.optim import adamw
from rapo_jax.train.state import State, abstract_state, first_state


@dataclass(frozen=True)
class Start:
    """Where the loop begins.

    `resuming_after` is the step of the checkpoint that `state` comes from, `skipped` counts the steps skipped up to it, and
    `planned` is how many steps the run was to have when it was saved; None where nothing is resumed. `best` is what
    train.stop_on had seen by then.
    """

    state: State
    resuming_after: int | None = None
    skipped: Skipped = NONE_SKIPPED
    planned: int | None = None
    best: Best = NONE_BEST


def starting_state(setup: Setup, first: dict | None, *, store: Store, identity: Identity, num_groups: int) -> Start:
    """The newest sound checkpoint, or the parameters `first` with fresh moments.

    Damaged checkpoints are set aside. Raises UserError where the checkpoint belongs to something else.
    """
    transform = adamw(setup.config.optimizer, setup.spec)
    restored = store.restore(
        abstract_state(setup.spec, setup.mesh, transform),
        accept=lambda before, step: refuse_changes(before, step, identity, setup, num_groups=num_groups),
    )
    if restored is None:
        assert first is not None, "a store with steps restores one of them or raises"
        return Start(first_state(first, setup.spec, setup.mesh, transform))
    for name in store.set_aside_after(restored.step):
        say(f"{store.directory / name} is damaged and was set aside; going on from step {restored.step}.")
    planned = steps_of(recorded(restored.identity).settings, num_groups)
    return Start(restored.state, restored.step, restored.skipped, planned, restored.best)
