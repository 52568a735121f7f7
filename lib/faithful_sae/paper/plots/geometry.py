"""The figure of notebook 13."""

import pandas as pd
from matplotlib.figure import Figure

from faithful_sae.paper.plots.style import LEVEL, WIDTH, corpus_looks, grid, groups, styled


@styled
def nearest_cosines(data: pd.DataFrame) -> Figure:
    """Largest cosine of each latent to another of its SAE, cumulated over the latents of a corpus'
    SAEs; dashed: the mean of random directions.
    """
    figure, (ax,) = grid(1, 1, 2.6, WIDTH * 0.8)
    looks = corpus_looks(data.corpus)
    for (corpus,), part in groups(data, "corpus"):
        ax.plot(part.cosine, part.share, label=corpus, **looks[corpus].curve())
    ax.axvline(data.random.mean(), label="random directions", **LEVEL)
    ax.set(
        xlabel="largest cosine to another latent of the same SAE",
        ylabel="share of latents with at most that",
        ylim=(0, 1.02),
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
