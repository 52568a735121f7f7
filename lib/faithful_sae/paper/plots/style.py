"""What all figures have in common: colours, sizes, fonts, and the panels they are laid out in."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.typing import RcKeyType
from pandas import DataFrame, Series

WIDTH = 6.8  # inches, a page's text width
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
    "font.family": "DejaVu Sans",
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
P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorator: what `draw` draws is drawn, and laid out, in the common style."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            # lays it out while the style is in force
            figure.draw_without_rendering()
        return figure

    return drawn


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
    """{corpus: colour} in order of appearance: faithful text in the two warm ones."""
    warm = itertools.cycle(COLOURS[:2])
    others = itertools.cycle(COLOURS[2:])
    return {
        name: next(warm if str(name).lower().startswith("faithful") else others)
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
