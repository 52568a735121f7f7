"""The figures of notebook 09."""

import numpy as np

from faithful_sae.paper.plots.paper import COLOURS, WIDTH, _grid, _styled

OF_GROUP = {"shared": COLOURS[2], "orphan": COLOURS[0], "fake": COLOURS[5]}


@_styled
def histograms(data):
    """Activations of some latents: one row of data per latent and bin (group, latent, low, high,
    tokens), bins by powers of two.
    """
    panels = list(data.groupby(["group", "latent"], sort=False))
    figure, axes = _grid(len(panels), min(3, len(panels)), 1.35, sharex=True)
    for ax, ((group, latent), part) in zip(axes, panels):
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


@_styled
def agreement(data):
    """Share of each latent's MutInfo tokens that VocabProj lists too, cumulated over latents;
    dashed: with another latent's VocabProj.
    """
    figure, (ax,) = _grid(1, 1, 2.3, WIDTH * 0.6)
    for group, part in data.groupby("group", sort=False):
        for column, style in (("agreement", "-"), ("by_chance", "--")):
            values = np.sort(part[column].to_numpy())
            ax.step(
                values,
                np.arange(1, len(values) + 1) / len(values),
                style,
                where="post",
                color=OF_GROUP[group],
                linewidth=1.1 if style == "-" else 0.8,
                label=f"{group} ({len(values)})" if style == "-" else None,
            )
    ax.set(
        xlabel="share of MutInfo tokens among those of VocabProj",
        ylabel="share of latents",
        ylim=(0, 1.02),
        xlim=(-0.02, 1),
    )
    ax.legend(loc="lower right")
    return figure


@_styled
def steering(data):
    """KL of the next-token distribution and probability of the VocabProj tokens against the dose,
    one line per latent.
    """
    figure, axes = _grid(2, 2, 2.4)
    for (group, latent), part in data.groupby(["group", "latent"], sort=False):
        for ax, column in zip(axes, ("kl", "probability")):
            ax.plot(
                part.dose,
                part[column],
                color=OF_GROUP[group],
                marker=".",
                markersize=3,
                linewidth=0.8,
                alpha=0.9,
            )
    for ax, title in zip(
        axes,
        (
            "KL from the model as it is (nats per token)",
            "probability of the tokens VocabProj lists",
        ),
    ):
        ax.set(
            title=title, xlabel="added, in units of the latent's largest activation", ylim=(0, None)
        )
    groups = list(dict.fromkeys(data.group))
    axes[0].legend([axes[0].plot([], [], color=OF_GROUP[g])[0] for g in groups], groups)
    return figure
