"""The figures of notebook 12, drawn from their data alone (paper/evaluation.py)."""

import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from faithful_sae.paper.plots.style import (
    LEVEL,
    WIDTH,
    corpus_looks,
    grid,
    groups,
    legend_below,
    styled,
)


@styled
def sharing(data: DataFrame) -> Figure:
    """Detection against the number of other seeds that share a latent (Paulo and Belrose 2025,
    Figure 3): median and quartiles over latents of all seeds, and below how many latents there are.
    """
    looks = corpus_looks(data.corpus)
    figure, (ax, below) = grid(2, 1, 1.5, WIDTH * 0.7, sharex=True, height_ratios=(2, 1))
    for i, ((corpus,), part) in enumerate(groups(data, "corpus")):
        places = part.seeds_sharing + 0.3 * (i / max(len(looks) - 1, 1) - 0.5)
        spread = np.abs(part[["lower", "upper"]].to_numpy().T - part["median"].to_numpy())
        ax.errorbar(
            places,
            part["median"],
            yerr=spread,
            label=corpus,
            **looks[corpus].points(),
        )
        below.bar(places, part.latents, width=0.28, color=looks[corpus].colour)
    ax.axhline(0.5, label="chance", **LEVEL)
    ax.set(ylabel="detection\nhigher is better")
    below.set(ylabel="latents", xlabel="other seeds in which the latent is found")
    if len(data):
        below.set_xticks(range(int(data.seeds_sharing.max()) + 1))
        legend_below(figure, ax, 3, title="medians, and quartiles over latents")
    return figure


@styled
def pairs(data: DataFrame) -> Figure:
    """Detection of a latent against that of its match in another seed, coloured by how well they
    are aligned: a panel per corpus.
    """
    panels = list(groups(data, "corpus"))
    # of one seed there are no pairs, and the axes stay empty
    figure, axes = grid(max(len(panels), 1), 2, 2.7, sharex=True, sharey=True)
    points = None
    for ax, ((corpus,), part) in zip(axes, panels, strict=False):
        # the best aligned lie on top
        part = part.sort_values("alignment", kind="stable")
        points = ax.scatter(
            part.score_1,
            part.score_2,
            c=part.alignment,
            s=3,
            vmin=0,
            vmax=1,
            cmap="viridis",
            linewidths=0,
            rasterized=True,
        )
        ax.axline((0.5, 0.5), slope=1, **LEVEL)
        ax.set(title=corpus, xlabel="detection, first seed; dashed: both alike", aspect="equal")
    if points is not None:
        axes[0].set_ylabel("detection, second seed")
        figure.colorbar(points, ax=list(axes), label="alignment (cosine)", shrink=0.8)
    return figure
