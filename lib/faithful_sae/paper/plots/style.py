"""What all figures have in common: colours, sizes, fonts, and the panels they are laid out in."""

import contextlib
import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, ParamSpec

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.typing import RcKeyType
from pandas import DataFrame, Series
from scipy.optimize import isotonic_regression

from faithful_sae.paper.names import role_of
from faithful_sae.runs.schema import BASELINES

FONT = "DejaVu Sans"
# gid of a text that is one
FORMULA = "formula"
WIDTH = 6.8  # inches, a page's text width
DPI = 200  # of a png
SMALLEST = 7  # points, of any text: figures are as wide on paper as they say
STYLE: dict[RcKeyType, Any] = {
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "legend.fontsize": SMALLEST,
    "legend.title_fontsize": SMALLEST,
    "xtick.labelsize": SMALLEST,
    "ytick.labelsize": SMALLEST,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "hatch.linewidth": 0.6,
    "font.family": FONT,
    # on a dark page, too
    "figure.facecolor": "white",
    "savefig.transparent": False,
}


class Look(NamedTuple):
    """How a corpus is drawn: the line and the marker tell it apart in grey."""

    colour: str
    line: Any = "-"
    marker: str = "o"

    def curve(self) -> dict[str, Any]:
        """Keywords of Axes.plot, for a line."""
        return {"color": self.colour, "linestyle": self.line}

    def points(self) -> dict[str, Any]:
        """Keywords of Axes.errorbar, for dots with whiskers."""
        return {"color": self.colour, "fmt": self.marker, "elinewidth": 0.9, "capsize": 1.5}


DOTTED = (0, (1, 1.2))
# the one map of colours, by the role a corpus plays: Okabe and Ito's, colour-blind safe, and three
# dark ones. Faithful text is warm, web text is blue
LOOKS = {
    "faithful": Look("#D55E00"),
    "faithful-other": Look("#E69F00", (0, (4, 1.5)), "D"),
    "pile": Look("#0072B2", (0, (9, 1.5)), "s"),
    "fineweb": Look("#56B4E9", DOTTED, "^"),
    "openwebtext": Look("#332288", (0, (9, 1.5, 2, 1.5)), "P"),
    "tinystories": Look("#8C6D31", (0, (4, 1.5, 4, 1.5, 1, 1.5)), "X"),
    "alpaca": Look("#009E73", (0, (6, 1.2, 1, 1.2)), "v"),
    "open-instruct": Look("#CC79A7", (0, (2, 1)), "<"),
    "flan": Look("#882255", (0, (4, 1, 1, 1, 1, 1)), ">"),
}
# of corpora that play no role, in the order in which a profile names them
OTHERS = (
    Look("#8550E6", (0, (5, 1, 2, 1)), "*"),
    Look("#80A65B", (0, (3, 1, 3, 3)), "p"),
    Look("#801300", (0, (1, 2.5)), "x"),
    Look("#335931", (0, (7, 3)), "+"),
    Look("#802D77", (0, (3, 1, 1, 3)), "8"),
)
# these, while a figure is drawn
_WITHOUT_ROLE: ContextVar[tuple[str, ...]] = ContextVar("corpora without a role", default=())
# untrained baselines, in every figure
GREYS = ("0.75", "0.5")
OF_BASELINES = {
    name: Look(grey, line, marker)
    for name, grey, line, marker in zip(BASELINES, GREYS, ("-", DOTTED), "dh", strict=True)
}
# what is no corpus has no corpus's colour: one of these, or a grey
INK, VIOLET, OLIVE = "0.1", "#7B3FA0", "#A0A030"
# a limit or a chance level
LEVEL: dict[str, Any] = {"color": "0.35", "linewidth": 0.8, "linestyle": (0, (2, 1.5))}
# one note says it, of all figures
warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorator: what `draw` draws is drawn, and laid out, in the common style."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            as_written(figure.findobj(Text))
            # texts are wider or narrower by the resolution
            figure.set_dpi(DPI)
            # lays it out while the style is in force, and once: not again for each file
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        return figure

    return drawn


def as_written(texts: Iterable[Any]) -> None:
    """Let texts of a figure say what they say: a dollar sign begins no formula, and characters that
    the font lacks come from another that is installed; a note names those that none has.
    """
    for text in texts:
        said = text.get_text()
        # empty: the number at a tick, which may become a formula
        if said and text.get_gid() != FORMULA:
            text.set_parse_math(False)
        if unlike := frozenset(said) - characters(font_manager.findfont(FONT)) - {"\n"}:
            text.set_fontfamily([FONT, *fallbacks(unlike)])


@functools.cache
def characters(file: str) -> frozenset[str]:
    """Those that a font has; none where the file cannot be read."""
    try:
        return frozenset(map(chr, font_manager.get_font(file).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


@functools.cache
def fallbacks(wanted: frozenset[str]) -> tuple[str, ...]:
    """Names of installed fonts that together have some characters, as far as any has."""
    found = []
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: entry.name):
        # matplotlib's own: boxes for all characters, and parts of formulas
        if entry.name.startswith(("Last Resort", "STIX", "cm")):
            continue
        if wanted & characters(entry.fname):
            found.append(entry.name)
            wanted -= characters(entry.fname)
    if wanted:
        print(
            f"note: no font here has {' '.join(sorted(wanted))}: figures show a box for each; "
            "install one that has them"
        )
    return tuple(found)


def grid(
    n: int, columns: int, height: float, width: float = WIDTH, **kwargs: Any
) -> tuple[Figure, np.ndarray]:
    """A figure and its n axes in rows of `columns`, the empty places of the last row left blank.

    Args:
        height: of one row, in inches.
        width: of the figure, in inches.
        kwargs: passed to Figure.subplots.
    """
    rows = -(-n // columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs).ravel()
    for ax in axes[n:]:
        ax.axis("off")
    return figure, axes[:n]


def corpus_looks(names: Iterable[str]) -> dict[str, Look]:
    """{corpus: its look} in order of appearance, in each figure of a profile the same. What plays
    no role and is none of the profile's (corpora_without_role) stands behind these.

    Args:
        names: as paper.names calls them.
    """
    shown = list(dict.fromkeys(names))
    known = OF_BASELINES | {name: LOOKS[role] for name in shown if (role := role_of(name)) in LOOKS}
    others = dict.fromkeys(name for name in (*_WITHOUT_ROLE.get(), *shown) if name not in known)
    known |= dict(zip(others, itertools.cycle(OTHERS), strict=False))
    return {name: known[name] for name in shown}


@contextlib.contextmanager
def corpora_without_role(names: Iterable[str]) -> Iterator[None]:
    """Figures drawn meanwhile are of a profile whose corpora without a role are these."""
    before = _WITHOUT_ROLE.set(tuple(names))
    try:
        yield
    finally:
        _WITHOUT_ROLE.reset(before)


def groups(data: DataFrame, *columns: str) -> Iterator[tuple[Any, DataFrame]]:
    """(values of the columns, rows that have them), in order of appearance."""
    yield from data.groupby([*columns], sort=False)


def legend_below(figure: Figure, ax: Axes, ncols: int, **kwargs: Any) -> None:
    """The legend of one of the axes, below all of them."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, **kwargs)


def marker_legend(figure: Figure, looks: dict[str, Look], title: str = "") -> None:
    """A legend of markers with their lines, below all axes."""
    handles = [
        Line2D([], [], color=look.colour, linestyle="", marker=look.marker, label=name)
        for name, look in looks.items()
    ]
    ncols = min(4, len(handles))
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols, title=title)


def label_ends(
    figure: Figure, ax: Axes, ends: dict[str, float], looks: dict[str, Look], x: float
) -> None:
    """Names beside the right ends of curves, in the order of the curves and apart from each other,
    each with a sample of its line.

    Args:
        ax: the axes of a figure with one row.
        ends: {name: height of its curve at x}; limits and scale of the axes are final.
        x: where the curves end, in data.
    """
    place = ax.transData + ax.transAxes.inverted()
    wanted = {name: place.transform((x, y))[1] for name, y in ends.items()}
    # of a line of text; axes are about three quarters of the figure
    step = 1.25 * SMALLEST / 72 / (0.75 * figure.get_figheight())
    heights = spread(list(wanted.values()), step)
    for (name, start), height in zip(wanted.items(), heights, strict=True):
        line = {"transform": ax.transAxes, "clip_on": False}
        ax.plot((1.01, 1.04), (start, height), color="0.6", linewidth=0.5, **line)
        ax.plot((1.04, 1.11), (height, height), **looks[name].curve(), **line)
        at = {"va": "center", "fontsize": SMALLEST, "transform": ax.transAxes}
        ax.text(1.13, height, name, **at)


def spread(places: Sequence[float], step: float) -> list[float]:
    """Places at least a step apart, in their order, and as near to the given ones as can be."""
    order = np.argsort(places, kind="stable")
    # least squares of places in order: each less its share of the steps below it
    shifted = np.asarray(places, dtype=float)[order] - step * np.arange(len(order))
    moved = isotonic_regression(shifted).x + step * np.arange(len(order)) if len(order) else shifted
    found = np.empty(len(order))
    found[order] = moved
    return found.tolist()


def highlighted(
    data: DataFrame, x: str, y: str, band: tuple[str, str] | None, columns: int, height: float
) -> tuple[Figure, np.ndarray]:
    """A panel per corpus: its curve among those of all others, which are thin and grey.

    Args:
        band: columns of the lower and upper edge of what surrounds the curve.
        height: of a row of panels, in inches.
    """
    looks = corpus_looks(data.corpus)
    curves = {corpus: part for (corpus,), part in groups(data, "corpus")}
    figure, axes = grid(len(looks), min(columns, len(looks)), height, sharex=True, sharey=True)
    for ax, (corpus, look) in zip(axes, looks.items(), strict=True):
        for part in curves.values():
            ax.plot(part[x], part[y], color="0.85", linewidth=0.6, zorder=1)
        part = curves[corpus]
        ax.plot(part[x], part[y], color=look.colour, label=corpus)
        if band:
            edges = (part[edge] for edge in band)
            ax.fill_between(part[x], *edges, color=look.colour, alpha=0.25, linewidth=0)
        ax.set_title(corpus)
    return figure, axes


def falling_curve(ax: Axes, values: Series, **kwargs: Any) -> None:
    """Values against their rank, the largest first; those that are 0 are left out."""
    falling = np.sort(values.to_numpy())[::-1]
    ranks = np.arange(1, len(falling) + 1)
    ax.plot(ranks, np.where(falling > 0, falling, np.nan), **kwargs)
