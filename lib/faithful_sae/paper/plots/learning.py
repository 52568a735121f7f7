"""The figures of notebook 16, drawn from their data alone (paper/learning.py)."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from pandas import DataFrame

from faithful_sae.paper.plots.style import (
    DOTTED,
    INK,
    LEVEL,
    OLIVE,
    VIOLET,
    Look,
    corpus_looks,
    grid,
    legend_below,
    styled,
)
from faithful_sae.runs.catalogue import HALF

# what two SAEs have in common, where its course is drawn
COURSES = {
    "initialisation + sample": Look(VIOLET, "-", "o"),
    "initialisation + order": Look(VIOLET, (0, (4, 1.5)), "D"),
    "initialisation": Look(VIOLET, DOTTED, "^"),
    "order + sample": Look(OLIVE, "-", "s"),
    "nothing": Look("0.45", (0, (6, 1.2, 1, 1.2)), "v"),
}


def _line(ax: Axes, part: DataFrame, x: str, y: str, look: Look, label: str) -> None:
    """A line with 95 % intervals of both numbers, of x if it has them."""
    xerr = part.get(f"{x}{HALF}")
    whiskers = {"elinewidth": 0.9, "capsize": 1.5, "marker": look.marker}
    ax.errorbar(part[x], part[y], part[f"{y}{HALF}"], xerr, label=label, **whiskers, **look.curve())


@styled
def curves(data: DataFrame) -> Figure:
    """SFR of every corpus against four yardsticks of how far training has come."""
    figure, axes = grid(4, 2, 2.1, sharey=True)
    panels = {
        "tokens": "training tokens →",
        "fvu_own": "FVU on held-out text of its own corpus →",
        "fvu_text": "FVU on the same held-out text →",
        "start": "cosine of decoder rows to their start →",
    }
    for ax, (x, xlabel) in zip(axes, panels.items(), strict=True):
        for corpus, look in corpus_looks(data.corpus).items():
            _line(ax, data.loc[data.corpus == corpus], x, "sfr", look, corpus)
        ax.set(xlabel=xlabel)
        if x == "tokens":
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        else:
            # so that training goes to the right everywhere
            ax.invert_xaxis()
    for ax in axes[::2]:
        ax.set_ylabel("SFR")
    legend_below(figure, axes[0], 4, title="whiskers: 95 % intervals over seeds")
    return figure


@styled
def in_common(data: DataFrame) -> Figure:
    """SFR after training by what two SAEs have in common, by the optimal matching and by number,
    and how their matched cosine came to that.
    """
    figure, (bars, course) = grid(2, 2, 2.6)
    last = data.loc[data.passes == data.passes.max()]
    places = range(len(last))
    bars.barh(places, last.SFR, 0.6, xerr=last[f"SFR{HALF}"], color="0.78", capsize=1.5)
    bars.plot(last["SFR by number"], places, "|", color=INK, markersize=9)
    bars.set(yticks=places, yticklabels=last["in common"], title="two SAEs have in common")
    bars.set(xlabel="SFR (bar: optimal matching, tick: by number)")
    for said, look in COURSES.items():
        _line(course, data.loc[data["in common"] == said], "passes", "cosine", look, said)
    floor = data.loc[(data.passes == 0) & (data["in common"] == "nothing"), "cosine"]
    course.axhline(floor.iloc[0], **LEVEL)
    course.set(xlabel="passes over the sample", ylabel="mean matched cosine", ylim=(0, 1.03))
    legend_below(figure, course, 3, title="in common; whiskers: 95 % intervals over replicates")
    return figure
