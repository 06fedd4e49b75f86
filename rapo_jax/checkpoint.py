"""Checkpoints: state, data position and resolved configuration are committed together or not at all, and verified.

Orbax commits a step by an atomic rename but does not notice a flipped bit. Each step therefore stores a fingerprint of
every array (rapo_jax/fingerprints.py). A step that cannot be read, or whose fingerprint differs, is renamed to corrupt-N, and the
one before it is used. Identities are defined in rapo_jax/runs/identity.py.

Who saves waits until the arrays are copied to the host's memory, and for a save before that still runs. Fingerprints are
collected, and everything is written, in the background.
"""

import logging
import operator
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import jax
from jax import Array
from orbax.checkpoint import v1 as ocp

from rapo_jax.buckets import is_bucket, remove
from rapo_jax.checkpoint_directory import FORMAT, claimed_directory
from rapo_jax.distributed import anywhere, barrier, is_first
from rapo_jax.errors import UserError
from rapo_jax.fingerprints import begin, fingerprint, flat
from rapo_jax.saved import Corrupt, OwnFailure, Saved, SavedArrays, ended, hush_abandoned_reads, orbax_context
from rapo_jax.space import on_disk, require_space

Accept = Callable[[dict[str, Any], int], None]
# How TensorStore begins where a file system, or a bucket, refuses or is gone.
STATUS = re.compile(
    r"(PERMISSION_DENIED|UNAUTHENTICATED|NOT_FOUND|UNAVAILABLE|ABORTED|DATA_LOSS|FAILED_PRECONDITION|UNKNOWN): "
)
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Skipped:
    """How many steps of a run had no finite gradient and changed nothing: in all, and in a row up to the last."""

    total: int = 0
    in_a_row: int = 0


NONE_SKIPPED = Skipped()


@dataclass(frozen=True)
class Best:
    """The best value so far of a metric of evaluations, the step that had it, and how many evaluations since had none better."""

    metric: str = ""
    value: float | None = None
    step: int = 0
    since: int = 0


NONE_BEST = Best()


@dataclass(frozen=True)
class Restored:
    """A checkpoint that was read; identity and config are as they were saved."""

    step: int
    state: Any
    identity: dict[str, Any]
    config: dict[str, Any]
    skipped: Skipped = NONE_SKIPPED
    best: Best = NONE_BEST


def size_of(tree: Any) -> int:
    """The bytes of all arrays."""
    return sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(tree))


class Store:
    """The checkpoints of a run, in its directory or `elsewhere`. One writer at a time; readers use `writes=False`.

    Keeps the last `keep_last` (at least two, because the latest can be damaged) and, of those that were saved with
    metrics, the `keep_best` of which `rank` is the lowest.
    """

    def __init__(
        self,
        run_dir: Path,
        elsewhere: str | None = None,
        *,
        keep_last: int = 2,
        keep_best: int = 0,
        rank: Callable[[dict[str, float]], float] = operator.itemgetter("eval_loss"),
        writes: bool = True,
    ):
        self.writes = writes
        self.directory = claimed_directory(run_dir, elsewhere, writes=writes)
        policies = ocp.training.preservation_policies
        keep: list[Any] = [policies.LatestN(max(2, keep_last))]
        if keep_best:
            keep.append(
                policies.BestN(
                    get_metric_fn=rank,
                    reverse=True,
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        try:
            self._checkpointer = ocp.training.Checkpointer(
                str(self.directory),
                context=orbax_context(),
                # orbax's own policies do not match the protocols that it declares for them
                save_decision_policy=cast(Any, ocp.training.save_decision_policies.FixedIntervalPolicy(1)),
                preservation_policy=cast(Any, policies.AnyPreservationPolicy(keep)),
                cleanup_tmp_directories=writes,
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{self.directory} holds a step whose _CHECKPOINT_METADATA was written by something else ({error}); move "
                "that step away. Nothing was changed."
            ) from error
        self._pending, self._writing, self._told, self._left = None, (0, 0), False, False
        self._own_failure = OwnFailure()

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return sorted(c.step for c in self._checkpointer.checkpoints)

    def save(
        self,
        step: int,
        state: Any,
        *,
        identity: dict[str, Any],
        config: dict[str, Any],
        metrics: dict[str, float] | None = None,
        skipped: Skipped = NONE_SKIPPED,
        best: Best = NONE_BEST,
    ) -> None:
        """Starts writing in the background; `state` may be donated afterwards. Raises the error of the previous save, if it failed."""
        self.wait()
        self._writing = (step, size_of(state))
        found, arrays = begin(state), flat(state)
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        meta = {"format": FORMAT, "step": step, "identity": identity, "config": config, "skipped": vars(skipped)}
        meta |= {"best": vars(best)} if best.metric else {}
        with self._space():
            self._pending = self._checkpointer.save_checkpointables_async(
                step,
                {"state": arrays, "meta": lambda: meta | {"shapes": shapes, "fingerprint": found.collect()}},
                metrics=cast(Any, metrics),
            )
        if self._pending is None:
            raise RuntimeError(f"orbax declined to save step {step}; {self.directory} holds {self.steps()}")

    def check(self) -> None:
        """Returns at once. Raises the error of the last save if it has failed by now, as `wait` does."""
        if self._pending is None:
            return
        if not self._checkpointer.is_saving_in_progress():
            self.wait()
        elif error := self._own_failure.look():
            with self._space():
                self._give_up(error)

    def wait(self) -> None:
        """Waits until the last save is committed. Raises its error if it failed: UserError for a full disk."""
        if self._pending is not None:
            pending, self._pending, self._told = self._pending, None, True
            with self._space():
                while not ended(pending):
                    if error := self._own_failure.look():
                        self._give_up(error)
            self._told = False

    def _give_up(self, error: BaseException) -> NoReturn:
        """Raises the error of a save that failed in this process alone, and leaves orbax where it waits: the others end with
        this process (rapo_jax/peers.py)."""
        self._pending, self._told, self._left = None, True, True
        raise error

    @contextmanager
    def _space(self) -> Iterator[None]:
        """Around the writing of a step: of a full disk it says what is safe, and gives back what the step took of it."""
        step, need = self._writing
        safe = [str(s) for s in self.steps() if s != step]
        said = f"Safe: {'step' if len(safe) == 1 else 'steps'} {', '.join(safe)}." if safe else "No step is saved yet."
        try:
            with on_disk(self.directory / str(step), need=need, safe=said):
                yield
        except UserError:
            for part in self.directory.glob(f"{step}.*tmp*"):
                remove(part)
            raise
        except (OSError, ValueError) as error:
            if not (isinstance(error, OSError) or STATUS.match(str(error))):
                raise
            reason = str(error).strip().splitlines()[0][:300]
            raise UserError(
                f"step {step} could not be saved in {self.directory} ({reason}). {said} See to it that it can be "
                "written, and run the same command again."
            ) from error

    def require_space(self, state: Any) -> None:
        """Raises UserError where a step like `state` certainly does not fit on the disk, before any work is done for it."""
        if is_bucket(self.directory):
            return
        steps = [self.directory / str(step) for step in self.steps()]
        if steps:
            need = sum(path.stat().st_size for path in steps[-1].rglob("*") if path.is_file())
        else:  # moments that are still zero take no space, and weights cannot be compressed by more than this
            need = int(0.8 * size_of(state.parameters))
        require_space(self.directory / "the next step", need)

    def restore(
        self,
        abstract: Any,
        *,
        step: int | None = None,
        accept: Accept | None = None,
    ) -> Restored | None:
        """The newest sound checkpoint as a tree like `abstract` (shapes, dtypes, shardings); None without checkpoints.

        Damaged steps are skipped; `set_aside_after` renames them. With `step`, only that one is read.
        `accept(identity, step)` is called before arrays are read, and may raise. Raises UserError when there are
        checkpoints and none is sound.
        """
        return self._newest(lambda candidate: self._load(candidate, abstract, accept), step, damage=Exception)

    def use_newest(self, use: Callable[[Saved], T], abstract: Any, *, step: int | None = None) -> T | None:
        """What `use` makes of the newest sound checkpoint, which has arrays like those of `abstract` and which it reads in
        parts; None without checkpoints.

        `use` calls `require_sound` of the arrays when it has read them. It is called again with the checkpoint before where
        that or reading raises Corrupt, so that nothing of it may remain. Raises UserError like `restore`.
        """
        return self._newest(lambda candidate: use(self._open(candidate, abstract)), step, damage=Corrupt)

    def _newest(self, read: Callable[[int], T], step: int | None, *, damage: type[Exception]) -> T | None:
        """What `read` returns for the newest step for which it raises no `damage`, or for `step`."""
        if not self.writes:  # the run may have gone on
            self._checkpointer.reload()
        steps = self.steps()
        if step is not None and step not in steps:
            raise UserError(f"{self.directory} has no step {step}; it has: {', '.join(map(str, steps)) or 'none'}.")
        hush_abandoned_reads()
        damaged = []
        for candidate in [step] if step is not None else reversed(steps):
            try:
                return read(candidate)
            except (UserError, TypeError, AttributeError, NameError, jax.errors.JaxRuntimeError):
                raise  # the files are not damaged: no memory, or another process is gone
            except damage as error:  # Orbax and TensorStore raise bare Exceptions for damaged files
                if not (
                    self.directory / str(candidate)
                ).exists():  # the run has removed it meanwhile, and has newer ones
                    return self._newest(read, step, damage=damage)
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                log.warning("checkpoint %d is damaged (%s)", candidate, reason)
                damaged.append(candidate)
        if not damaged:
            return None
        raise UserError(
            f"no sound checkpoint in {self.directory}: {', '.join(map(str, damaged))} are damaged. "
            f"Start again in another run_dir, or restore the files from a backup."
        )

    def recorded_config(self, step: int | None) -> dict[str, Any] | None:
        """The configuration that was saved with a step (None: the newest whose record can be read); None without one."""
        for candidate in [step] if step is not None else reversed(self.steps()):
            try:
                return self._record(candidate)["config"]
            except Exception as error:  # as in `restore`, which says what is damaged
                log.debug("the record of checkpoint %s cannot be read (%s)", candidate, error)
        return None

    def _record(self, step: int) -> dict[str, Any]:
        """What a step records beside its arrays. Earlier versions kept it as a tree of arrays and texts, not as JSON."""
        if (self.directory / str(step) / "meta" / "_METADATA").is_file():
            with self._alone():
                return ocp.load_checkpointables(str(self.directory / str(step)), {"meta": None})["meta"]
        return self._checkpointer.load_checkpointables(step, {"meta": None})["meta"]

    def _checked_record(self, step: int) -> dict[str, Any]:
        """The same, of this format and this step."""
        meta = self._record(step)
        if meta["format"] != FORMAT:
            raise UserError(f"step {step} in {self.directory} has format {meta['format']!r}, expected {FORMAT!r}.")
        if meta["step"] != step:
            raise Corrupt(f"it is a copy of step {meta['step']}")
        return meta

    def _open(self, step: int, abstract: Any) -> Saved:
        """A step whose arrays can be read. Raises, on every process, Corrupt where the record of one cannot be, and UserError where
        the arrays are of another model."""
        meta, damage = {}, None
        try:
            meta = self._checked_record(step)
        except (UserError, TypeError, AttributeError, NameError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # as in `_newest`
            damage = Corrupt(str(error).strip() or type(error).__name__)
        if anywhere(damage is not None):
            raise damage or Corrupt("another process could not read its record")
        self._require_arrays(step, meta, flat(abstract))
        arrays = SavedArrays(self.directory / str(step) / "state", meta["fingerprint"])
        return Saved(step, arrays, meta["identity"], meta["config"])

    def _load(self, step: int, abstract: Any, accept: Accept | None) -> Restored:
        meta = self._checked_record(step)
        if accept:
            accept(meta["identity"], step)
        wanted = flat(abstract)
        self._require_arrays(step, meta, wanted)
        arrays = self._read(step, wanted)
        found = fingerprint(arrays)
        changed = [name for name in wanted if found[name] != meta["fingerprint"][name]]
        if changed:
            raise Corrupt(f"fingerprint differs in {', '.join(changed[:3])}")
        state = jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in wanted])
        skipped = Skipped(**meta.get("skipped", {}))  # earlier versions did not count them
        best = Best(**meta.get("best", {}))
        return Restored(step, state, identity=meta["identity"], config=meta["config"], skipped=skipped, best=best)

    def _require_arrays(self, step: int, meta: dict[str, Any], wanted: dict[str, Any]) -> None:
        """Raises UserError where the arrays of a step are of another model."""
        stored = meta["fingerprint"]
        if not set(wanted) <= set(stored):
            raise self._other_model(step, f"lacks {', '.join(sorted(set(wanted) - set(stored))[:3])}")
        for name, shape in meta.get("shapes", {}).items():
            if name in wanted and list(wanted[name].shape) != shape:
                raise self._other_model(step, f"has {name} of shape {shape}, not {list(wanted[name].shape)}")

    def _alone(self) -> ocp.Context:
        """An Orbax context without barriers, at which the other processes would wait for one whose part is damaged."""
        context = ocp.Context()
        context.pytree.loading.partial_load = True  # export reads the parameters without the moments
        if jax.process_count() > 1:
            me = jax.process_index()
            context.multiprocessing.primary_host = me
            context.multiprocessing.active_processes = {me}
            context.multiprocessing.barrier_sync_key_prefix = f"process{me}"
        return context

    def _read(self, step: int, wanted: dict) -> dict[str, Array]:
        """The arrays of a step. Raises on every process where any of them cannot read its part."""
        arrays, error = None, None
        try:
            with self._alone():
                arrays = ocp.load_checkpointables(str(self.directory / str(step)), {"state": wanted})["state"]
        except Exception as raised:
            error = raised
        if anywhere(error is not None):
            error = error or Corrupt("another process could not read its part")
        if error:
            raise error
        return cast(dict[str, Array], arrays)

    def _other_model(self, step: int, fact: str) -> UserError:
        return UserError(
            f"step {step} in {self.directory} {fact}: it was trained from another model or with another optimizer. "
            f"Undo the change, or choose another run_dir. Nothing was overwritten."
        )

    def set_aside_after(self, step: int | None) -> list[str]:
        """Renames steps newer than `step` to corrupt-N, or corrupt-N-2 and so on where a step is damaged again, so that
        saving can continue from it. Returns the new names."""
        names = {s: self._free_name(f"corrupt-{s}") for s in self.steps() if step is None or s > step}
        if names:
            barrier("names for damaged checkpoints are chosen")
        if is_first():
            for s, name in names.items():
                (self.directory / str(s)).rename(self.directory / name)
        if names:
            barrier("damaged checkpoints are renamed")
            self._checkpointer.reload()
        return list(names.values())

    def _free_name(self, name: str) -> str:
        names = (name, *(f"{name}-{n}" for n in range(2, 10**6)))
        return next(free for free in names if not (self.directory / free).exists())

    def close(self) -> None:
        """Waits for the last save. Raises its error, unless `wait` has raised it before."""
        self.wait()
        if self._left:
            return
        try:
            with self._space():
                self._checkpointer.close()
        except Exception:  # orbax tells of a failed save once more
            if not self._told:
                raise
