"""The figures of notebook 17, drawn from their data alone (paper/consensus.py)."""

from matplotlib.figure import Figure
from pandas import DataFrame

from faithful_sae.paper.plots.style import (
    INK,
    OLIVE,
    VIOLET,
    WIDTH,
    Look,
    corpus_looks,
    grid,
    groups,
    legend_below,
    styled,
)
from faithful_sae.runs.catalogue import HALF

# in their order of appearance: the consensus, what is trained with as many latents, what is cut
# down, and what is whole
LOOKS = (
    Look(INK, "-", "o"),
    Look("#0072B2", "", "s"),
    Look(VIOLET, "--", "^"),
    Look(OLIVE, ":", "v"),
    Look("0.45", "", "D"),
    Look("#D55E00", "", "P"),
)
INTERVAL = "whiskers: 95 % intervals"


@styled
def found(data: DataFrame) -> Figure:
    """How many features at least so many seeds find: a curve per corpus."""
    figure, (ax,) = grid(1, 1, 2.4, WIDTH * 0.55)
    looks = corpus_looks(data.corpus)
    for i, ((corpus,), part) in enumerate(groups(data, "corpus")):
        look = looks[corpus]
        places = part.least + 0.06 * (i - 0.5)
        half = part[f"features{HALF}"].fillna(0.0)
        ax.errorbar(
            places, part.features, yerr=half, label=corpus, linestyle=look.line, **_bars(look)
        )
    ax.set(xlabel="seeds that find a feature, at least", ylabel="features")
    ax.set_xticks(sorted({*data.least}))
    ax.set_ylim(bottom=0)
    legend_below(figure, ax, len(looks), title=INTERVAL)
    return figure


@styled
def variance(data: DataFrame) -> Figure:
    """EV against the number of latents: a panel per corpus, a curve or a point per kind of SAE."""
    corpora = list(dict.fromkeys(data.corpus))
    looks = dict(zip(dict.fromkeys(data.kind), LOOKS, strict=False))
    figure, axes = grid(len(corpora), len(corpora), 2.6, sharey=True)
    for ax, corpus in zip(axes, corpora, strict=True):
        for (kind,), part in groups(data.loc[data.corpus == corpus], "kind"):
            part = part.sort_values("latents")
            look = looks[kind]
            half = part[f"EV{HALF}"].fillna(0.0)
            ax.errorbar(
                part.latents, part.EV, yerr=half, label=kind, linestyle=look.line, **_bars(look)
            )
        ax.set(title=corpus, xlabel="latents")
    axes[0].set_ylabel("explained variance\n(higher is better)")
    legend_below(figure, axes[0], 3, title=INTERVAL)
    return figure


def _bars(look):
    return {"color": look.colour, "marker": look.marker, "elinewidth": 0.9, "capsize": 1.5}
