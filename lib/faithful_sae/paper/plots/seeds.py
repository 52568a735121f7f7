"""The figures of notebook 08, after those of Paulo and Belrose (2025), in the style of plots.py.
Each takes its csv's DataFrame.
"""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from faithful_sae.paper.plots.paper import COLOURS, WIDTH, _grid, _styled

AGREE, DISAGREE = COLOURS[2], COLOURS[1]
AXES = {"d_sae": "latents", "k": "active latents, k", "tokens": "training tokens", "layer": "layer"}
DEFINITIONS = {
    "shared": "encoder and decoder",
    "shared_decoder": "decoder alone (SFR)",
    "shared_maximum": "nearest instead of matched latents",
}


def _joint(width=WIDTH * 0.75, height=WIDTH * 0.55):
    """A figure with a square of points, and one histogram above and one to the right of it."""
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(4, 1), height_ratios=(1, 4))
    ax = figure.add_subplot(grid[1, 0])
    top = figure.add_subplot(grid[0, 0], sharex=ax)
    right = figure.add_subplot(grid[1, 1], sharey=ax)
    top.tick_params(labelbottom=False)
    right.tick_params(labelleft=False)
    top.set_ylabel("latents")
    right.set_xlabel("latents")
    return figure, ax, top, right


def _contours(ax, x, y):
    """Lines of equal density, by kernel density estimation; none where the points lie on a line."""
    if len(x) < 5 or np.linalg.matrix_rank(np.cov(x, y), tol=1e-8) < 2:
        return
    gx, gy = np.meshgrid(*(np.linspace(*limits, 80) for limits in (ax.get_xlim(), ax.get_ylim())))
    density = gaussian_kde(np.vstack([x, y]))(np.vstack([gx.ravel(), gy.ravel()])).reshape(gx.shape)
    ax.contour(
        gx,
        gy,
        density,
        levels=density.max() * np.array([0.1, 0.25, 0.5, 0.75, 0.9]),
        colors="0.25",
        linewidths=0.6,
    )


@_styled
def matched_cosines(data):
    """Figure 1: matched encoder against matched decoder cosine of every latent, by whether both
    matchings agree.
    """
    figure, ax, top, right = _joint()
    agree = data.agree.astype(bool)
    limit = data.threshold.iloc[0]
    low = min(0.0, data.decoder_cosine.min(), data.encoder_cosine.min())
    ax.set(
        xlim=(low - 0.03, 1.03),
        ylim=(low - 0.03, 1.03),
        xlabel="cosine of matched decoder rows",
        ylabel="cosine of matched encoder columns",
    )
    groups = ((agree, AGREE, "matchings agree"), (~agree, DISAGREE, "matchings disagree"))
    for mask, colour, label in groups:
        mean = (data.decoder_cosine[mask].mean() + data.encoder_cosine[mask].mean()) / 2
        ax.scatter(
            data.decoder_cosine[mask],
            data.encoder_cosine[mask],
            5,
            color=colour,
            alpha=0.6,
            linewidths=0,
            label=f"{label}: {mask.sum()} latents" + (f", mean {mean:.2f}" if mask.any() else ""),
        )
    _contours(ax, data.decoder_cosine, data.encoder_cosine)
    bins = np.linspace(low, 1, 41)
    for axis, column, orientation in (
        (top, "decoder_cosine", "vertical"),
        (right, "encoder_cosine", "horizontal"),
    ):
        axis.hist(
            [data[column][mask] for mask, *_ in groups],
            bins,
            stacked=True,
            color=[AGREE, DISAGREE],
            orientation=orientation,
        )
    for line in (ax.axvline, ax.axhline):
        line(limit, color="0.4", linewidth=0.7, linestyle="--")
    figure.legend(
        *ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, markerscale=2
    )
    return figure


@_styled
def firing(data):
    """Figure 2: mean matched cosine over all seeds against firing frequency, by the number of other
    seeds that share the latent.
    """
    figure, ax, top, right = _joint()
    fires = data.firing > 0
    others = int(data.others.iloc[0])
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, others + 1))
    for count in range(others + 1):
        part = data[fires & (data.seeds_sharing == count)]
        ax.scatter(
            part.firing,
            part.mean_cosine,
            6,
            color=colours[count],
            alpha=0.75,
            linewidths=0,
            label=str(count),
        )
    shown = data[fires]
    low = min(0.0, data.mean_cosine.min())
    parts = [shown[shown.seeds_sharing == count] for count in range(others + 1)]
    if len(shown):
        edges = np.geomspace(shown.firing.min() * 0.99, shown.firing.max() * 1.01, 31)
        top.hist([part.firing for part in parts], edges, stacked=True, color=colours)
    right.hist(
        [part.mean_cosine for part in parts],
        np.linspace(low, 1, 41),
        stacked=True,
        color=colours,
        orientation="horizontal",
    )
    ax.axhline(data.threshold.iloc[0], color="0.4", linewidth=0.7, linestyle="--")
    silent = f"; {(~fires).sum()} never fired" if not fires.all() else ""
    ax.set(
        xscale="log" if fires.any() else "linear",
        xlabel=f"share of training tokens the latent fires on{silent}",
        ylim=(low - 0.03, 1.03),
        ylabel=f"cosine of matched decoder rows,\nmean over {others} seeds",
    )
    figure.legend(
        *ax.get_legend_handles_labels(),
        loc="outside right center",
        title="seeds that\nshare it",
        markerscale=2,
    )
    return figure


@_styled
def only_in_base(data):
    """Figure A1: share of latents found in the base SAE alone against the number of seeds, with
    both fitted power laws.
    """
    figure, (ax,) = _grid(1, 1, 2.4, WIDTH * 0.75)
    seen = data[data.series == "measured"]
    bars = np.array([seen.only_in_base - seen.low, seen.high - seen.only_in_base])
    ax.errorbar(
        seen.seeds,
        seen.only_in_base,
        bars,
        fmt="o",
        markersize=3.5,
        color="0.15",
        elinewidth=0.8,
        capsize=2,
        zorder=3,
        label="mean over bases and sets of seeds; bars: lowest and highest base",
    )
    laws = data[data.series != "measured"].groupby("series", sort=False)
    for (_, part), style, colour in zip(laws, ("--", "-"), (COLOURS[0], COLOURS[2])):
        ax.plot(part.seeds, part.only_in_base, style, color=colour, label=part.label.iloc[0])
    ax.set(xlabel="seeds", ylabel="latents only in the base (share)", ylim=(0, 1))
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    ax.legend(loc="upper right" if seen.high.iloc[-1] < 0.6 else "lower left")
    return figure


@_styled
def thresholds(data):
    """Figure A2: share of shared latents against the threshold, mean over pairs of seeds, band from
    lowest to highest pair.
    """
    figure, (ax,) = _grid(1, 1, 2.4, WIDTH * 0.75)
    for (name, label), colour, style in zip(
        DEFINITIONS.items(), (COLOURS[2], COLOURS[3], COLOURS[0]), ("-", "-", "--")
    ):
        part = data[data.definition == name]
        ax.plot(part.threshold, part["mean"], style, color=colour, label=label)
        ax.fill_between(
            part.threshold, part["min"], part["max"], color=colour, alpha=0.15, linewidth=0
        )
    ax.axvline(data.chosen.iloc[0], color="0.4", linewidth=0.7, linestyle="--")
    ax.set(
        xlabel="threshold on the cosine",
        ylabel="share of latents shared",
        ylim=(0, 1.02),
        xlim=(0, 1),
    )
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@_styled
def maximum_cosines(data):
    """Figure A3: matched against largest cosine of every latent; on the diagonal they are one."""
    figure, (ax,) = _grid(1, 1, 3.2, WIDTH * 0.75)
    agree = data.agree.astype(bool)
    low = min(0.0, data.decoder_cosine.min(), data.max_cosine.min())
    ax.plot([low, 1], [low, 1], color="0.6", linewidth=0.6)
    for mask, colour, label in (
        (agree, AGREE, "matchings agree"),
        (~agree, DISAGREE, "matchings disagree"),
    ):
        same = (data.match == data.maximum)[mask].mean() if mask.any() else np.nan
        ax.scatter(
            data.decoder_cosine[mask],
            data.max_cosine[mask],
            6,
            color=colour,
            alpha=0.6,
            linewidths=0,
            label=f"{label}: {same:.0%} matched with their nearest",
        )
    ax.set(
        xlabel="matched decoder cosine",
        ylabel="largest decoder cosine",
        xlim=(low - 0.03, 1.03),
        ylim=(low - 0.03, 1.03),
    )
    ax.legend(loc="lower right", markerscale=2)  # no point can lie below the diagonal
    return figure


def _sweeps(data, series, ylabel):
    """One panel per swept number; a dot per pair of seeds, a line through their means; the plain
    SAEs' value in bold.
    """
    sweeps = [name for name in AXES if (data.sweep == name).any()]
    figure, axes = _grid(max(len(sweeps), 1), max(len(sweeps), 1), 2.2, sharey=True)
    for ax, sweep in zip(axes, sweeps):
        part = data[data.sweep == sweep]
        for column, (label, colour, style) in series.items():
            mean = part.groupby("value")[column].mean()
            ax.plot(mean.index, mean, style, color=colour, label=label)
            ax.plot(
                part.value,
                part[column],
                "o",
                markersize=2.2,
                color=colour,
                alpha=0.6,
                markeredgewidth=0,
            )
        values = sorted(part.value.unique())
        if sweep != "layer":
            ax.set_xscale("log", base=2)
        ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        ax.set_xticks(values, [_short(value) for value in values])
        for tick, value in zip(ax.get_xticklabels(), values):
            tick.set_fontweight("bold" if value == part.plain.iloc[0] else "normal")
        ax.set_xlabel(AXES[sweep])
    axes[0].set_ylabel(ylabel)
    axes[0].set_ylim(0, 1)
    if sweeps:
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(series)
        )
    return figure


def _short(value):
    value = int(value)
    return (
        f"{value / 1e6:g}M"
        if value >= 10**6
        else f"{value // 1000}k"
        if value >= 10**4 and value % 1000 == 0
        else str(value)
    )


@_styled
def sweeps(data):
    """Figures 4 and 5: share of shared latents against d_sae, k, training tokens and layer."""
    return _sweeps(
        data,
        {
            "shared": (DEFINITIONS["shared"], COLOURS[2], "-"),
            "shared_decoder": (DEFINITIONS["shared_decoder"], COLOURS[3], "-"),
            "dead": ("dead latents, share", "0.55", ":"),
        },
        "share of latents shared",
    )


@_styled
def mean_cosines(data):
    """Figure A4: mean matched and mean maximum cosine of the decoders against the same numbers."""
    return _sweeps(
        data,
        {
            "mmcs": ("mean maximum cosine (MMCS)", COLOURS[0], "--"),
            "matched_cosine": ("mean matched cosine", COLOURS[2], "-"),
        },
        "decoder cosine",
    )
