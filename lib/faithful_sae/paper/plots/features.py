"""The figures of notebook 09: one function each, which draws the DataFrame of its csv."""

import itertools

import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from faithful_sae.paper.plots.style import (
    INK,
    OLIVE,
    VIOLET,
    WIDTH,
    grid,
    groups,
    legend_below,
    styled,
)

OF_GROUP = {"shared": INK, "orphan": VIOLET, "not fake": INK, "fake": OLIVE}
STYLES = ("-", "--", ":", "-.")


@styled
def histograms(data: DataFrame) -> Figure:
    """Activations of some latents: one row of data per latent and bin (group, latent, low, high,
    tokens), bins by powers of two.
    """
    panels = list(groups(data, "group", "latent"))
    figure, axes = grid(len(panels), min(3, len(panels)), 1.35, sharex=True)
    for ax, ((group, latent), part) in zip(axes, panels, strict=True):
        ax.bar(
            part.low,
            part.tokens,
            width=part.high - part.low,
            align="edge",
            color=OF_GROUP[group],
            linewidth=0,
        )
        ax.set(xscale="log", title=f"{group}: latent {latent}")
    figure.supxlabel("activation (log)", fontsize=7.5)
    figure.supylabel("tokens; each latent has its own scale", fontsize=7.5)
    return figure


@styled
def agreement(data: DataFrame) -> Figure:
    """Share of each latent's MutInfo tokens that VocabProj lists too, cumulated over latents;
    dashed: with another latent's VocabProj.
    """
    parts = list(groups(data, "group"))
    n = max(len(parts), 1)
    figure, axes = grid(n, n, 2.2, sharex=True, sharey=True)
    lines = {"agreement": ("its own VocabProj", "-"), "by_chance": ("another latent's", "--")}
    # of no latent there is one panel with nothing in it
    for ax, ((group,), part) in zip(axes, parts, strict=False):
        for column, (label, style) in lines.items():
            values = np.sort(part[column].to_numpy())
            share = np.arange(1, len(part) + 1) / len(part)
            # the steps begin at the left edge, and go on to the right one
            x, y = np.array([-0.02, *values, 1.0]), np.array([0, *share, 1])
            ax.step(x, y, style, where="post", color=OF_GROUP[group], label=label)
        ax.set(title=f"{group}: {len(part)} latents", ylim=(0, 1.02), xlim=(-0.02, 1))
        ax.set_xlabel("share of MutInfo tokens\nthat VocabProj lists too")
    axes[0].set_ylabel("share of latents, cumulated\nlower: more agreement")
    legend_below(figure, axes[0], 2)
    return figure


@styled
def steering(data: DataFrame) -> Figure:
    """KL of the next-token distribution and probability of the VocabProj tokens against the dose: a
    column per group, a line per latent.
    """
    parts = list(groups(data, "group"))
    measures = {
        "kl": "KL from the model as it is\n(nats per token)",
        "probability": "probability of the tokens\nVocabProj lists",
    }
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    axes = figure.subplots(2, max(len(parts), 1), squeeze=False, sharex=True, sharey="row")
    for column, ((group,), part) in zip(axes.T, parts, strict=False):
        for style, ((latent,), line) in zip(itertools.cycle(STYLES), groups(part, "latent")):
            for ax, measure in zip(column, measures, strict=True):
                look = {"color": OF_GROUP[group], "marker": ".", "label": f"latent {latent}"}
                ax.plot(line.dose, line[measure], style, **look)
        column[0].set_title(group)
        column[0].legend()
    for ax, label in zip(axes[:, 0], measures.values(), strict=True):
        ax.set(ylabel=label, ylim=(0, None))
    figure.supxlabel("added, in units of the latent's largest activation", fontsize=7.5)
    return figure
