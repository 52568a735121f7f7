"""What all figures have in common: colours, sizes, fonts, and the panels they are laid out in."""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.typing import RcKeyType
from pandas import DataFrame, Series

from faithful_sae.runs.schema import BASELINES

FONT = "DejaVu Sans"
# gid of a text that is one
FORMULA = "formula"
WIDTH = 6.8  # inches, a page's text width
DPI = 200  # of a png
STYLE: dict[RcKeyType, Any] = {
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "legend.frameon": False,
    "font.family": FONT,
}
# Okabe and Ito's palette, colour-blind safe: the first two are warm, and faithful text stands out
COLOURS = (
    "#D55E00",
    "#E69F00",
    "#0072B2",
    "#009E73",
    "#56B4E9",
    "#CC79A7",
    "#8C6D31",
    "#7F7F7F",
    "#332288",
)
# of untrained baselines
GREYS = ("0.8", "0.6")
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


def corpus_colours(names: Iterable[str]) -> dict[str, str]:
    """{corpus: colour} in order of appearance: faithful text in the two warm ones, untrained
    baselines in greys.
    """
    warm = itertools.cycle(COLOURS[:2])
    others = itertools.cycle(COLOURS[2:])
    greys = dict(zip(BASELINES, GREYS, strict=True))
    return {
        name: greys.get(name) or next(warm if str(name).lower().startswith("faithful") else others)
        for name in dict.fromkeys(names)
    }


def groups(data: DataFrame, *columns: str) -> Iterator[tuple[Any, DataFrame]]:
    """(values of the columns, rows that have them), in order of appearance."""
    yield from data.groupby([*columns], sort=False)


def legend_below(figure: Figure, ax: Axes, ncols: int, **kwargs: Any) -> None:
    """The legend of one of the axes, below all of them."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, **kwargs)


def colour_legend(figure: Figure, colours: dict[str, str], **kwargs: Any) -> None:
    """A legend of patches of colour, below all axes."""
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), **kwargs)


def falling_curve(ax: Axes, values: Series, **kwargs: Any) -> None:
    """Values against their rank, the largest first; those that are 0 are left out."""
    falling = np.sort(values.to_numpy())[::-1]
    ranks = np.arange(1, len(falling) + 1)
    ax.plot(ranks, np.where(falling > 0, falling, np.nan), **kwargs)
