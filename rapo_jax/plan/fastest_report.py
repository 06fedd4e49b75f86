"""What `rapo plan --fastest` prints: the overrides as one line, and a table of what was tried."""

from textwrap import fill
from typing import Any

from rapo_jax.errors import counted
from rapo_jax.plan.fastest import MARGIN, Search, Tried, certain_bytes, least_cost
from rapo_jax.plan.report import as_json
from rapo_jax.plan.settings import BFLOAT16_MOMENT, CACHE
from rapo_jax.plan.targets import GiB

LEFT_OUT = (
    "Nothing was measured: a step is taken to last as long as its slowest resource (matrix products at their usual rate, memory, "
    "links), so the estimate leaves out what does not overlap and kernels that are slower."
)
INTERRUPTED = "interrupted: what follows is what was found so far"
WIDTH = 80
SHORT = {CACHE: "cache", BFLOAT16_MOMENT: "bf16 moment"}  # of a table that fits 80 columns


def fastest_screen(search: Search, *, name: str) -> str:
    """The report of a search on one screen."""
    blocks = [heading(search, name), table(search), verdict(search, name)]
    if search.best is not None:
        blocks += wrapped(*remarks(search), LEFT_OUT)
    return "\n\n".join(blocks)


def wrapped(*sentences: str) -> list[str]:
    return [fill(sentence, WIDTH) for sentence in sentences]


def heading(search: Search, name: str) -> str:
    target, allowed = search.question.target, search.room
    cannot = [s for s in search.settings if certain_bytes(s) > allowed]
    room = "" if target.chip.memory is None else f", {MARGIN:.0%} of {target.chip.memory / GiB:.2f} GiB kept free"
    said = wrapped(
        f"{name} on {target.name}: the fastest of {counted(len(search.settings), 'setting')}{room}",
        f"{len(cannot):,} cannot fit by arithmetic, {counted(len(search.tried), 'setting')} compiled; {left_in_words(search)}",
    )
    return "\n".join([*[INTERRUPTED] * search.interrupted, *said])


def left_in_words(search: Search) -> str:
    left = search.promising()
    if search.best is None or not left:
        return "none of the others could be faster"
    bound = min(map(least_cost, left))
    return f"{len(left):,} not compiled, of which the fastest takes at least {bound:.3f} s"


def table(search: Search) -> str:
    """A row for each setting that was compiled, fastest first."""
    head = f"  {'step, s':>8}{'GiB':>8}{'useful':>8}  {'data fsdp tensor':<18}{'remat':<11}{'rows':<10}also"
    rows = [line(each, search) for each in sorted(search.tried, key=lambda each: order(each, search))]
    return "\n".join([head, *rows])


def order(tried: Tried, search: Search) -> tuple[bool, float]:
    fits = search.fits(tried)
    return not fits, tried.cost if fits else 0.0


def line(tried: Tried, search: Search) -> str:
    setting, found = tried.setting, tried.assessment
    mesh = " x ".join(str(setting.mesh[axis]) for axis in ("data", "fsdp", "tensor"))
    also = [short for change, short in SHORT.items() if change in setting.changes]
    also += ["as it is"] * (not setting.changes)
    step, memory, useful, rows = "error", "-", "-", "-"
    if found is not None:
        memory = f"{found.memory.peak / GiB:.2f}"
        rows = (
            f"{found.packing.shape['B'] // (setting.mesh['data'] * setting.mesh['fsdp'])} x {found.packing.shape['T']}"
        )
        step = f"{tried.cost:.3f}" if search.fits(tried) else "no room"
        useful = "-" if tried.useful is None else f"{tried.useful:.0%}"
    mark = ">" if tried is search.best else " "
    cells = (
        f"{mark} {step:>8}{memory:>8}{useful:>8}  {mesh:<18}{setting.config.model.remat:<11}{rows:<10}{', '.join(also)}"
    )
    return "\n".join([cells.rstrip(), *[f"           {tried.error:.68}"] * bool(tried.error)])


def verdict(search: Search, name: str) -> str:
    best = search.best
    if best is None:
        return nothing_fits(search)
    if not best.setting.changes:
        return f"the fastest is the configuration as it is:\n  rapo train {name}"
    return f"the fastest, behind `rapo train {name}` and your own overrides:\n  {' '.join(best.setting.changes)}"


def nothing_fits(search: Search) -> str:
    """The setting that needs the least, and what it lacks."""
    if search.interrupted:
        return "no setting that fits has been found yet."
    target, nearest = search.question.target, search.nearest()
    tried = next((each for each in search.tried if each.setting is nearest and each.assessment), None)
    needs = tried.assessment.memory.peak if tried and tried.assessment else search.expected_peak(nearest)
    return fill(
        f"no setting fits {target.name}: the nearest, {' '.join(nearest.changes) or 'the configuration as it is'}, needs "
        f"{'' if tried else 'about '}{needs / GiB:.2f} GiB a device and may take {search.room / GiB:.2f}, so it lacks "
        f"{(needs - search.room) / GiB:.2f} GiB; take a larger slice (--smallest {target.kind} finds it).",
        WIDTH,
    )


def remarks(search: Search) -> list[str]:
    """What the fastest setting changes besides time and memory."""
    best, own = search.best, search.own
    assert best is not None, "something fits"
    said = []
    if best.setting.changes_numbers:
        said.append(
            f"{BFLOAT16_MOMENT} changes the numbers of the run: the first moment is rounded. The others change none."
        )
    if best.setting.once:
        said.append(
            f"{CACHE} computes the reference once before the first step; {best.setting.once:.3f} s a step are its share, and a "
            "second run with the same data saves them."
        )
    if own is not None and search.fits(own) and best is not own:
        said.append(
            f"the configuration as it is takes {own.cost:.3f} s a step, {own.cost / best.cost:.2f} times as long."
        )
    return said


def fastest_json(search: Search) -> dict[str, Any]:
    """Everything on the screen."""
    best = search.best
    return {
        "overrides": None if best is None else list(best.setting.changes),
        "changes_numbers": bool(best and best.setting.changes_numbers),
        "interrupted": search.interrupted,
        "considered": len(search.settings),
        "not_compiled_and_promising": len(search.promising()),
        "margin": MARGIN,
        "fastest": None if best is None or best.assessment is None else as_json(best.assessment),
        "tried": [tried_json(each, search) for each in search.tried],
    }


def tried_json(tried: Tried, search: Search) -> dict[str, Any]:
    estimate, found = tried.setting.estimate, tried.assessment
    timed = found is not None and found.seconds is not None
    return {
        "changes": list(tried.setting.changes),
        "mesh": tried.setting.mesh,
        "fits": search.fits(tried),
        "memory_bytes": found.memory.peak if found else None,
        "estimated_memory_bytes": estimate.memory.peak,
        "step_seconds": tried.cost if timed else None,
        "least_seconds": tried.setting.cost(estimate.seconds),
        "reference_pass_seconds_a_step": tried.setting.once,
        "useful_share": tried.useful,
        "error": tried.error or None,
    }
