"""One style for every figure: series differ in shape and lightness, so that they can be told apart in grey; saved as a PNG file, or
as SVG that takes its colours from the page it stands in. What is drawn is decided by the rooms that have the numbers.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INK, QUIET, GRID, LOST = "#1b1d21", "#8d99ae", "#dfe3e8", "#c9ada7"
# Colours in the order of their use, dark and light in turn, with the marker and the line that go with each.
SERIES = ("#2a6f97", "#e07a5f", "#3d405b", "#6fae90", "#9c5a8f", "#c9a227")
MARKERS = ("o", "^", "s", "D", "v", "P")
LINES = ("-", "--", "-.", ":")
CHOSEN, REJECTED = SERIES[0], SERIES[1]
MOST_CHARACTERS = 36  # of a name in a figure
WIDE = 400  # points, above which a phone should scroll rather than shrink
# On a page, CSS decides what these colours are.
PAGE = {INK: "var(--ink)", QUIET: "var(--quiet)", GRID: "var(--grid)", LOST: "var(--lost)"}
PAGE |= {colour: f"var(--s{number})" for number, colour in enumerate(SERIES)}


@contextmanager
def styled() -> Iterator[None]:
    """Figures made and saved in the block have the style."""
    import matplotlib
    from cycler import cycler

    style: dict[Any, Any] = {
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.titlesize": "medium",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=SERIES),
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "lines.markersize": 4.5,
        "svg.fonttype": "none",
        "svg.hashsalt": "rapo_jax",
        "text.color": INK,
        "text.parse_math": False,  # a name may hold dollar signs
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a name in another script
        yield


def series(number: int) -> dict[str, Any]:
    """Colour, marker and line of the series of this number; the first 12 are different."""
    return {
        "color": SERIES[number % len(SERIES)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[(number + number // len(SERIES)) % len(LINES)],
    }


def short(name: str) -> str:
    """A name as a figure shows it: its end, and without the underscore that would hide it from a legend."""
    end = name if len(name) <= MOST_CHARACTERS else f"...{name[3 - MOST_CHARACTERS :]}"
    return f" {end}" if end.startswith("_") else end


def save_png(figure: Any, path: Path, *, dpi: int = 130) -> None:
    figure.savefig(path, dpi=dpi, format="png")


def as_svg(figure: Any, name: str) -> str:
    """The figure as an element for a page, whose ids begin with `name`. Groups called series-N become classes, so that a page
    can hide them; colours of the style become the page's. What the figure says stays as it is."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<defs>\s*</defs>|(?<=>)\n\s*(?=<)", "", text)
    text = re.sub("<[^>]*>", lambda tag: tag[0].replace("xlink:href=", "href="), text)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', "".join(re.findall("<[^>]*>", text))))

    def renamed(found: re.Match[str]) -> str:
        if found[1] in used:
            return f' id="{name}-{found[1]}"'
        return f' class="{found[1]}"' if found[1].startswith("series-") else ""

    def on_page(tag: re.Match[str]) -> str:
        markup = re.sub(r' id="([^"]*)"', renamed, tag[0])
        markup = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", markup)
        return re.sub(r"#[0-9a-f]{6}\b", lambda found: PAGE.get(found[0], found[0]), markup)

    text = re.sub(
        "<[^>]*>", on_page, text
    )  # text between the tags is what a reader sees: it may look like any of these
    (box,) = re.findall(r'^<svg [^>]*?viewBox="([^"]*)"', text)
    kind = ' class="wide"' if float(box.split()[2]) > WIDE else ""
    return f'<svg viewBox="{box}"{kind} aria-hidden="true">{text[text.index(">") + 1 :]}'
