"""The figures of notebook 10, drawn from their data alone (paper/architectures.py)."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from pandas import DataFrame

from faithful_sae.paper.plots.style import (
    INK,
    SMALLEST,
    WIDTH,
    corpus_looks,
    grid,
    groups,
    legend_below,
    styled,
)

BETTER = {"SFR": "more shared →", "FFR": "← better", "explained": "better →", "CE": "← better"}


@styled
def sharing(data: DataFrame) -> Figure:
    """A panel per measure, a row per variant, a dot per corpus with its 95 % interval over seeds
    (and, of EV and CE, rows of text).
    """
    variants = list(dict.fromkeys(data.variant))
    looks = corpus_looks(data.corpus)
    measures = list(dict.fromkeys(data.measure))
    figure, axes = grid(len(measures), 2, 0.35 + 0.19 * len(variants), sharey=True)
    for ax, measure in zip(axes, measures, strict=True):
        part = data.loc[data.measure == measure]
        for i, (corpus, look) in enumerate(looks.items()):
            here = part.loc[part.corpus == corpus]
            places = [variants.index(name) + 0.24 * (i - 0.5) for name in here.variant]
            half = here.half_width.fillna(0.0)
            ax.errorbar(
                here.value,
                places,
                xerr=half,
                label=corpus,
                **look.points(),
            )
        better = next(said for name, said in BETTER.items() if measure.startswith(name))
        ax.set(xlabel=f"{measure}, {better}", yticks=range(len(variants)), yticklabels=variants)
        ax.grid(axis="y", linewidth=0.3, color="0.9")
        ax.set_axisbelow(True)
    if variants:
        axes[0].set_ylim(len(variants) - 0.5, -0.5)
    legend_below(figure, axes[0], len(looks), title="whiskers: 95 % intervals")
    return figure


@styled
def curves(data: DataFrame) -> Figure:
    """Explained variance and CE difference against L0: a panel per variant and measure, its curve
    among those of the others; a dot where all are compared.
    """
    shown = data.loc[data.l0 > 0]
    variants = list(dict.fromkeys(shown.variant))
    measures = {
        "explained_variance": "explained variance\n(higher is better)",
        "ce_diff": "CE difference (nats)\n(lower is better)",
    }
    columns = min(6, len(variants))
    rows = -(-len(variants) // columns)
    figure = Figure(figsize=(WIDTH, 2.2 * rows + 0.4), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False, sharex=True)
    for block, (column, label) in zip(np.split(axes, 2), measures.items(), strict=True):
        for ax, variant in zip(block.flat, variants, strict=False):
            ax.sharey(block[0, 0])
            for (other,), part in groups(shown, "variant"):
                look = {"color": INK, "zorder": 3} if other == variant else {"color": "0.85"}
                ax.plot(part.l0, part[column], marker=".", markersize=2.5, **look)
            chosen = shown.loc[shown.compared & (shown.variant == variant)]
            ax.plot(chosen.l0, chosen[column], "o", color=INK, markersize=4.5, zorder=3)
            ax.set(title=variant, xscale="log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1,)))
            ax.xaxis.set_major_formatter("{x:.3g}")
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.label_outer()
        for ax in block.flat[len(variants) :]:
            ax.axis("off")
        block[rows // 2, 0].set_ylabel(label)
    figure.supxlabel("L0 (active latents per token, log)", fontsize=7.5)
    return figure


@styled
def spectra(data: DataFrame) -> Figure:
    """How often latents fire: a panel per variant, a line per corpus, mean over seeds; the share of
    those that never do beside it.
    """
    variants = list(dict.fromkeys(data.variant))
    looks = corpus_looks(data.corpus)
    columns = min(5, len(variants))
    figure, axes = grid(len(variants), columns, 1.3, sharex=True, sharey=True)
    for ax, variant in zip(axes, variants, strict=True):
        never = []
        for (corpus,), part in groups(data.loc[data.variant == variant], "corpus"):
            edges = np.append(part.low, part.high.iloc[-1])
            look = looks[corpus]
            line = {"color": look.colour, "linestyle": look.line}
            ax.stairs(part.share, edges, label=corpus, linewidth=1, **line)
            never.append(f"{100 * part.never.iloc[0]:.0f} %")
        said = "never: " + ", ".join(never)
        ax.text(0.04, 0.98, said, transform=ax.transAxes, va="top", fontsize=SMALLEST)
        ax.set_title(variant)
    for ax in axes[::columns]:
        ax.set_ylabel("share of latents")
    # under the middle one of the last row
    axes[len(variants) - 1 - (len(variants) - 1) % columns + (columns - 1) // 2].set_xlabel(
        "log10 of the share of tokens on which a latent fires"
    )
    legend_below(figure, axes[0], len(looks), title="never: latents that never fire, in this order")
    return figure
