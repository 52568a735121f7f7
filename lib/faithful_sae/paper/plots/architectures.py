"""The figures of notebook 10, drawn from their data alone (paper/architectures.py)."""

import itertools

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from pandas import DataFrame

from faithful_sae.paper.plots.style import (
    COLOURS,
    corpus_colours,
    grid,
    groups,
    legend_below,
    styled,
)

STYLES = ("-", "--", ":")


@styled
def sharing(data: DataFrame) -> Figure:
    """A panel per measure, a row per variant, a dot per corpus with its 95 % interval over seeds
    (and, of EV and CE, rows of text).
    """
    variants = list(dict.fromkeys(data.variant))
    colours = corpus_colours(data.corpus)
    measures = list(dict.fromkeys(data.measure))
    figure, axes = grid(len(measures), 2, 0.35 + 0.19 * len(variants), sharey=True)
    for ax, measure in zip(axes, measures, strict=True):
        part = data.loc[data.measure == measure]
        for i, (corpus, colour) in enumerate(colours.items()):
            here = part.loc[part.corpus == corpus]
            places = [variants.index(name) + 0.24 * (i - 0.5) for name in here.variant]
            half = here.half_width.fillna(0.0)
            ax.errorbar(
                here.value,
                places,
                xerr=half,
                fmt="o",
                markersize=2.8,
                color=colour,
                elinewidth=0.8,
                capsize=1.5,
                label=corpus,
            )
        ax.set(xlabel=measure, yticks=range(len(variants)), yticklabels=variants)
        ax.grid(axis="y", linewidth=0.3, color="0.9")
        ax.set_axisbelow(True)
    if variants:
        axes[0].set_ylim(len(variants) - 0.5, -0.5)
    legend_below(figure, axes[0], len(colours))
    return figure


@styled
def curves(data: DataFrame) -> Figure:
    """Explained variance and CE difference against L0, a line per variant; a dot where all are
    compared.
    """
    figure, axes = grid(2, 2, 2.6)
    looks = itertools.cycle(itertools.product(STYLES, COLOURS))
    for ((variant,), part), (style, colour) in zip(groups(data, "variant"), looks, strict=False):
        some = part.loc[part.l0 > 0]
        for ax, column in zip(axes, ("explained_variance", "ce_diff"), strict=True):
            ax.plot(
                some.l0, some[column], style, marker=".", markersize=3, color=colour, label=variant
            )
            chosen = some.loc[some.compared]
            ax.plot(chosen.l0, chosen[column], "o", markersize=4.5, color=colour)
    axes[0].set(ylabel="explained variance")
    axes[1].set(ylabel="CE difference (nats per token)")
    for ax in axes:
        ax.set(xlabel="L0 (active latents per token)", xscale="log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:.3g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    legend_below(figure, axes[0], 5)
    return figure


@styled
def spectra(data: DataFrame) -> Figure:
    """How often latents fire: a panel per variant, a line per corpus, mean over seeds; the share of
    those that never do beside it.
    """
    variants = list(dict.fromkeys(data.variant))
    colours = corpus_colours(data.corpus)
    columns = min(5, len(variants))
    figure, axes = grid(len(variants), columns, 1.3, sharex=True, sharey=True)
    for ax, variant in zip(axes, variants, strict=True):
        for (corpus,), part in groups(data.loc[data.variant == variant], "corpus"):
            edges = np.append(part.low, part.high.iloc[-1])
            never = part.never.iloc[0]
            ax.stairs(part.share, edges, color=colours[corpus], label=corpus, linewidth=1)
            ax.text(
                0.04,
                0.93 - 0.13 * list(colours).index(corpus),
                f"never: {100 * never:.0f} %",
                transform=ax.transAxes,
                va="top",
                fontsize=5.5,
                color=colours[corpus],
            )
        ax.set_title(variant)
    for ax in axes[::columns]:
        ax.set_ylabel("share of latents")
    # under the middle one of the last row
    axes[len(variants) - 1 - (len(variants) - 1) % columns + (columns - 1) // 2].set_xlabel(
        "log10 of the share of tokens on which a latent fires"
    )
    legend_below(figure, axes[0], len(colours))
    return figure
