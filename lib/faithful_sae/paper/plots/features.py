"""The figures of notebook 09: one function each, which draws the DataFrame of its csv."""

import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from faithful_sae.paper.plots.style import COLOURS, WIDTH, grid, groups, styled

OF_GROUP = {"shared": COLOURS[2], "orphan": COLOURS[0], "not fake": COLOURS[2], "fake": COLOURS[5]}


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
        ax.set(xscale="log", title=f"{group} {latent}")
    figure.supxlabel("activation", fontsize=7)
    figure.supylabel("tokens", fontsize=7)
    return figure


@styled
def agreement(data: DataFrame) -> Figure:
    """Share of each latent's MutInfo tokens that VocabProj lists too, cumulated over latents;
    dashed: with another latent's VocabProj.
    """
    figure, (ax,) = grid(1, 1, 2.3, WIDTH * 0.6)
    for (group,), part in groups(data, "group"):
        for column, style, width, label in (
            ("agreement", "-", 1.1, f"{group} ({len(part)})"),
            ("by_chance", "--", 0.8, None),
        ):
            ax.step(
                np.sort(part[column].to_numpy()),
                np.arange(1, len(part) + 1) / len(part),
                style,
                where="post",
                color=OF_GROUP[group],
                linewidth=width,
                label=label,
            )
    ax.set(
        xlabel="share of MutInfo tokens among those of VocabProj",
        ylabel="share of latents",
        ylim=(0, 1.02),
        xlim=(-0.02, 1),
    )
    ax.legend(loc="lower right")
    return figure


@styled
def steering(data: DataFrame) -> Figure:
    """KL of the next-token distribution and probability of the VocabProj tokens against the dose,
    one line per latent.
    """
    figure, axes = grid(2, 2, 2.4)
    for (group, _), part in groups(data, "group", "latent"):
        for ax, values in zip(axes, (part.kl, part.probability), strict=True):
            ax.plot(
                part.dose,
                values,
                color=OF_GROUP[group],
                marker=".",
                markersize=3,
                linewidth=0.8,
                alpha=0.9,
            )
    axes[0].set_title("KL from the model as it is (nats per token)")
    axes[1].set_title("probability of the tokens VocabProj lists")
    for ax in axes:
        ax.set(xlabel="added, in units of the latent's largest activation", ylim=(0, None))
    lines = {name: axes[0].plot([], [], color=OF_GROUP[name])[0] for name in data.group.unique()}
    axes[0].legend(lines.values(), lines.keys())
    return figure
