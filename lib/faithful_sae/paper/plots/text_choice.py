"""The figures of notebook 18, drawn from their data alone (paper/text_choice.py)."""

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from pandas import DataFrame

from faithful_sae.paper.plots.style import LOOKS, SMALLEST, WIDTH, grid, groups, spread, styled

# all are text of the model's own
LOOK = LOOKS["faithful"].points()
AXES = {
    "temperature": "temperature",
    "size": "size (1: as the others; log)",
}


@styled
def ways(data: DataFrame) -> Figure:
    """A panel per measure, a row per way of sampling, with 95 % intervals; a line at plain text."""
    texts = list(dict.fromkeys(data.text))
    measures = list(dict.fromkeys(data.measure))
    figure, axes = grid(len(measures), len(measures), 0.55 + 0.2 * len(texts), sharey=True)
    for ax, (measure, part) in zip(axes, data.groupby("measure", sort=False), strict=True):
        ax.axvline(part.value.iloc[0], color="0.7", linewidth=0.8)
        ax.errorbar(part.value, range(len(part)), xerr=part.half.fillna(0.0), **LOOK)
        ax.set(xlabel=measure, yticks=range(len(texts)), yticklabels=texts)
        ax.grid(axis="y", linewidth=0.3, color="0.9")
        ax.set_axisbelow(True)
    axes[0].set_ylim(len(texts) - 0.5, -0.5)
    figure.supxlabel("whiskers: 95 % intervals; line: plain text", fontsize=SMALLEST)
    return figure


@styled
def curves(data: DataFrame) -> Figure:
    """A row of panels against the temperature, and one against the size of plain text."""
    measures = list(dict.fromkeys(data.measure))
    panels = list(groups(data, "against", "measure"))
    figure, axes = grid(len(panels), len(measures), 1.75)
    for ax, ((against, measure), part) in zip(axes, panels, strict=True):
        ax.errorbar(part.x, part.value, yerr=part.half.fillna(0.0), **(LOOK | {"fmt": "o-"}))
        ax.set(xlabel=AXES[against], ylabel=measure)
        if against == "size":
            ax.set_xscale("log", base=2)
            ax.set_xticks(part.x, [f"{x:g}" for x in part.x])
            ax.xaxis.set_minor_locator(NullLocator())
    return figure


@styled
def coverage(data: DataFrame) -> Figure:
    """SFR and CE difference against coverage, each way of sampling with its name."""
    measures = list(dict.fromkeys(data.measure))
    figure, axes = grid(len(measures), len(measures), 2.4, WIDTH)
    for ax, (measure, part) in zip(axes, data.groupby("measure", sort=False), strict=True):
        ax.errorbar(part.coverage, part.value, yerr=part.half.fillna(0.0), **LOOK)
        ax.set(xlabel=f"% of {part.of.iloc[0]} covered", ylabel=measure)
        # names are placed in them
        ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
        place = ax.transData + ax.transAxes.inverted()
        ends = place.transform(part[["coverage", "value"]].to_numpy(float))
        heights = spread(list(ends[:, 1]), 1.25 * SMALLEST / 72 / (0.75 * figure.get_figheight()))
        for (x, y), height, name in zip(ends, heights, part.text, strict=True):
            line = {"transform": ax.transAxes, "clip_on": False, "zorder": 1}
            ax.plot((x, 1.03), (y, height), color="0.8", linewidth=0.5, **line)
            ax.text(1.04, height, name, va="center", fontsize=SMALLEST, transform=ax.transAxes)
    return figure
