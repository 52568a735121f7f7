"""The figure of notebook 13."""

import pandas as pd
from matplotlib.figure import Figure

from faithful_sae.paper.plots.style import COLOURS, WIDTH, grid, groups, styled


@styled
def nearest_cosines(data: pd.DataFrame) -> Figure:
    """Largest cosine of each latent to another of its SAE, cumulated over the latents of a corpus'
    SAEs; dashed: the mean of random directions.
    """
    figure, (ax,) = grid(1, 1, 2.5, WIDTH * 0.7)
    for ((corpus,), part), colour in zip(groups(data, "corpus"), COLOURS, strict=False):
        ax.plot(part.cosine, part.share, color=colour, label=corpus)
    ax.axvline(data.random.mean(), color="0.4", linestyle="--", linewidth=0.8, label="random")
    ax.set(
        xlabel="largest cosine to another latent of the same SAE",
        ylabel="share of latents",
        ylim=(0, 1.02),
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
