"""`rapo plan --fastest`: the setting whose step is the fastest, by the roofline, among those that fit with a margin.

All settings are estimated in closed form; the configuration's own is compiled first, then the most promising one after
another, each teaching how far the estimates are off. The search ends when no other setting could be faster even at the lower
bound of its time, or after a number of compilations.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Thread

import jax

from rapo_jax.errors import UserError, counted
from rapo_jax.plan.assess import Assessment, Question, Seconds, assess
from rapo_jax.plan.settings import Setting, settings_for
from rapo_jax.plan.targets import GiB

# Share of a device's memory that stays free. The compiler's peak is that of the step alone: batches on their way, what a
# checkpoint or an evaluation holds, and fragmentation come on top.
MARGIN = 0.05
OPTIMISTIC = 0.7  # of the estimated temporaries, while nothing alike has been compiled
SIMILAR = 0.9  # of those expected from what is alike: settings differ by less
ALLOWANCE = 0.97  # of the seconds of matrix products: compiled FLOPs are within 2 % of the count by hand
MOST_COMPILES = 8


@dataclass(frozen=True)
class Tried:
    """A setting that was compiled. `error` is the compiler's, where it refused the program for another reason than memory."""

    setting: Setting
    assessment: Assessment | None
    error: str = ""

    @property
    def cost(self) -> float:
        """Seconds of a step and its share of the reference's pass."""
        assert self.assessment is not None and self.assessment.seconds is not None, "it fits"
        return self.setting.cost(self.assessment.seconds)

    @property
    def useful(self) -> float | None:
        flops = self.assessment.flops if self.assessment else None
        return flops.useful / flops.compiled if flops else None


@dataclass
class Search:
    """What is known so far; `settings` are all, the configuration's own first."""

    question: Question
    settings: list[Setting]
    tried: list[Tried] = field(default_factory=list)
    interrupted: bool = False

    @property
    def room(self) -> float:
        """Bytes of a device that a setting may take."""
        limit = self.question.target.chip.memory
        return float("inf") if limit is None else limit * (1 - MARGIN)

    @property
    def untried(self) -> list[Setting]:
        known = {each.setting.changes for each in self.tried}
        return [each for each in self.settings if each.changes not in known]

    @property
    def best(self) -> Tried | None:
        """The fastest that fits; of those as fast to three digits, the one that changes no numbers, then the least."""
        fit = [each for each in self.tried if self.fits(each)]
        return min(fit, key=lambda each: (rounded(each.cost), *simplicity(each.setting)), default=None)

    @property
    def own(self) -> Tried | None:
        return next((each for each in self.tried if not each.setting.changes), None)

    def fits(self, tried: Tried) -> bool:
        """Whether it leaves the margin; the configuration's own setting only has to fit."""
        found = tried.assessment
        return found is not None and found.fits and (not tried.setting.changes or found.memory.peak <= self.room)

    def expected_peak(self, setting: Setting) -> float:
        """The least peak to expect: the estimated one, its temporaries corrected by those of compiled settings that are alike."""
        memory = setting.estimate.memory
        certain = certain_bytes(setting)
        ratios = [
            (each.assessment.memory.peak - certain_bytes(each.setting))
            / (each.setting.estimate.memory.peak - certain_bytes(each.setting))
            for each in self.tried
            if each.assessment and each.assessment.compile_seconds is not None and alike(each.setting, setting)
        ]
        return certain + (SIMILAR * min(ratios) if ratios else OPTIMISTIC) * (memory.peak - certain)

    def expected_cost(self, setting: Setting) -> float:
        """Its seconds, if memory traffic and links exceed their lower bounds as they did in what was compiled."""
        done = [each for each in self.tried if each.assessment and each.assessment.seconds]
        done = [each for each in done if (each.setting.mesh["tensor"] > 1) == (setting.mesh["tensor"] > 1)] or done
        least = setting.estimate.seconds
        if not done or done[-1].assessment is None or done[-1].assessment.seconds is None:
            return setting.cost(least)
        real, bound = done[-1].assessment.seconds, done[-1].setting.estimate.seconds
        memory = least.memory * real.memory / bound.memory
        links = least.links * (real.links / bound.links if bound.links else 1.0)
        network = least.network * (real.network / bound.network if bound.network else 1.0)
        return setting.cost(Seconds(least.compute, memory, links, network))

    def promising(self) -> list[Setting]:
        """Untried settings that may fit and may be faster than the best, the most promising first."""
        best = self.best
        bound = float("inf") if best is None else best.cost
        may_win = [s for s in self.untried if self.expected_peak(s) <= self.room and least_cost(s) < bound]
        return sorted(may_win, key=lambda s: (rounded(self.expected_cost(s)), *simplicity(s), total(s)))

    def nearest(self) -> Setting:
        """The setting that needs the least memory."""
        return min(self.settings, key=self.expected_peak)


def search_fastest(question: Question, *, most_compiles: int, progress: Callable[[str], None]) -> Search:
    """Searches until nothing promising is left, `most_compiles` programs are compiled, or Ctrl-C."""
    refuse_what_cannot_be_compared(question)
    search, started = Search(question, settings_for(question)), time.monotonic()
    own, room = search.settings[0], search.room / GiB
    progress(
        f"{counted(len(search.settings), 'setting')} on {question.target.name}, with {room:.2f} GiB a device; own setting first"
    )
    compiled = 0
    try:
        try_setting(search, own)
        compiled += search.tried[0].assessment is None or search.tried[0].assessment.compile_seconds is not None
        while compiled < most_compiles:
            promising = search.promising()
            if not promising and search.best is None:
                promising = [s for s in [search.nearest()] if s in search.untried and certain_bytes(s) <= search.room]
            if not promising:
                break
            left = min(len(promising), most_compiles - compiled)
            each = (time.monotonic() - started) / max(1, compiled)
            progress(
                f"{said(search.tried[-1], search)}; at most {counted(left, 'program')} more, {left * each / 60:.0f} min"
            )
            progress(f"compiling {' '.join(promising[0].changes)} ...")
            try_setting(search, promising[0])
            compiled += 1
        progress(said(search.tried[-1], search))
    except KeyboardInterrupt:
        search.interrupted = True
    return search


def refuse_what_cannot_be_compared(question: Question) -> None:
    target = question.target
    if target.peak_flops is None or target.chip.memory_bandwidth is None or target.chip.link is None:
        raise UserError(
            f"--fastest compares the times of steps, and the speed of {target.name} is not known; name a target by --topology, "
            "such as v5e:4x4."
        )
    if question.config.mesh.context != 1:
        raise UserError(
            f"--fastest does not search meshes that share rows, and mesh.context={question.config.mesh.context}; leave it at 1, "
            "or plan this mesh without --fastest."
        )


def try_setting(search: Search, setting: Setting) -> None:
    """Compiles a setting in a thread of its own, so that Ctrl-C is heard meanwhile."""
    question, found = search.question, []

    def work() -> None:
        try:
            found.append(Tried(setting, assess(replace(question, changes=setting.changes), temporaries=0.0)))
        except jax.errors.JaxRuntimeError as error:
            found.append(Tried(setting, None, error=str(error).splitlines()[0][:200]))
        except BaseException as error:
            found.append(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if not isinstance(found[0], Tried):
        raise found[0]
    search.tried.append(found[0])


def said(tried: Tried, search: Search) -> str:
    """One line about a setting that was tried."""
    found, of = tried.assessment, f"of {search.room / GiB:.2f} GiB"
    if found is None:
        return f"  does not compile: {tried.error}"
    needs = f"  {found.memory.peak / GiB:.2f} {of}"
    return f"{needs}, {tried.cost:.3f} s a step" if search.fits(tried) else f"{needs}: no room"


def rounded(seconds: float) -> float:
    """Seconds to three digits: closer times are the same, as far as a roofline can tell."""
    return float(f"{seconds:.2e}")


def simplicity(setting: Setting) -> tuple[bool, int]:
    return setting.changes_numbers, len(setting.changes)


def total(setting: Setting) -> float:
    least = setting.estimate.seconds
    return least.compute + least.memory + least.links + least.network


def least_cost(setting: Setting) -> float:
    least = setting.estimate.seconds
    return setting.cost(Seconds(least.compute * ALLOWANCE, least.memory, least.links, least.network))


def certain_bytes(setting: Setting) -> float:
    return setting.estimate.memory.resident + setting.estimate.memory.gradients


def alike(one: Setting, other: Setting) -> bool:
    """Whether two settings' temporaries should be off by the same factor."""
    return one.config.model.remat == other.config.model.remat and (one.mesh["tensor"] > 1) == (other.mesh["tensor"] > 1)
