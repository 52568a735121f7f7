"""The figures of notebook 14."""

import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from faithful_sae.metrics.data_or_seed import BETWEEN, EVERYWHERE, KINDS, OWN_KIND, UNSTABLE
from faithful_sae.paper.plots.style import WIDTH, grid, legend_below, styled

SAID = {
    EVERYWHERE: "found on every text",
    BETWEEN: "found on some other text",
    OWN_KIND: "on no text of the other kind",
    UNSTABLE: "not found by most seeds of its own text",
}
# from what all share to what none does; light to dark in grey
SHADES = dict(zip(KINDS, ("#0072B2", "#8CC5E3", "#D55E00", "0.85"), strict=True))


@styled
def between_texts(data: DataFrame) -> Figure:
    """SFR between SAEs of two seeds, by the text of each."""
    matrix = data.pivot(index="row", columns="column", values="sfr")
    halves = data.pivot(index="row", columns="column", values="half")
    order = list(dict.fromkeys(data.row))
    matrix, halves = (table.loc[order, order].to_numpy() for table in (matrix, halves))
    figure, (ax,) = grid(1, 1, 0.9 + 0.42 * len(order), WIDTH)
    image = ax.imshow(matrix, cmap="viridis", aspect="auto", vmin=0, vmax=matrix.max())
    for (row, column), value in np.ndenumerate(matrix):
        half = halves[row, column]
        said = f"{value:.3f}" + ("" if np.isnan(half) else f"\n± {half:.3f}")
        colour = "white" if value < matrix.max() / 2 else "black"
        ax.text(column, row, said, ha="center", va="center", color=colour, fontsize=7)
    ax.set_xticks(range(len(order)), order, rotation=25, ha="right")
    ax.set_yticks(range(len(order)), order)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=ax, label="SFR of two seeds; ±: 95 % interval", shrink=0.9)
    bar.outline.set_visible(False)
    return figure


@styled
def kinds(data: DataFrame) -> Figure:
    """Where the latents of each corpus are found: shares with whiskers at the end of each."""
    corpora = list(dict.fromkeys(data.corpus))
    figure, (ax,) = grid(1, 1, 0.9 + 0.26 * len(corpora), WIDTH)
    places = np.arange(len(corpora))[::-1]
    table = data.pivot(index="corpus", columns="kind", values="share").loc[corpora]
    halves = data.pivot(index="corpus", columns="kind", values="half").loc[corpora]
    left = np.zeros(len(corpora))
    for kind, shade in SHADES.items():
        width = table[kind].to_numpy()
        look = {"color": shade, "edgecolor": "white", "linewidth": 0.5, "height": 0.7}
        ax.barh(places, width, left=left, label=SAID[kind], **look)
        for place, start, share, half in zip(places, left, width, halves[kind], strict=True):
            # narrower ones hold no number
            if share >= 0.09:
                said = f"{share:.0%}" + ("" if np.isnan(half) else f" ± {100 * half:.0f}")
                dark = shade == SHADES[EVERYWHERE]
                at = {"ha": "center", "va": "center", "fontsize": 7}
                ax.text(start + share / 2, place, said, color="white" if dark else "0.1", **at)
        left += width
    ax.set_yticks(places, corpora)
    ax.set(xlabel="share of latents; ±: 95 % interval", xlim=(0, 1))
    legend_below(figure, ax, 2)
    return figure
