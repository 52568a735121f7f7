"""The figures of notebook 08, after those of Paulo and Belrose (2025): one function each, which
draws the DataFrame of its csv.
"""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from pandas import DataFrame
from scipy.stats import gaussian_kde

from faithful_sae.paper.plots.style import (
    FORMULA,
    INK,
    LEVEL,
    OLIVE,
    VIOLET,
    WIDTH,
    grid,
    groups,
    legend_below,
    styled,
)

AXES = {"d_sae": "latents", "k": "active latents, k", "tokens": "training tokens", "layer": "layer"}
DEFINITIONS = {  # of sharing: label, colour, line style
    "shared": ("encoder and decoder", INK, "-"),
    "shared_decoder": ("decoder alone (SFR)", VIOLET, "-."),
    "shared_maximum": ("nearest instead of matched latents", OLIVE, "--"),
}
BAND = "95 % interval over seeds"


def _joint():
    """A figure with a square of points, and one histogram above and one to the right of it."""
    figure = Figure(figsize=(WIDTH * 0.75, WIDTH * 0.55), layout="constrained")
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
    gx, gy = np.meshgrid(np.linspace(*ax.get_xlim(), num=80), np.linspace(*ax.get_ylim(), num=80))
    density = gaussian_kde(np.vstack([x, y]))(np.vstack([gx.ravel(), gy.ravel()])).reshape(gx.shape)
    ax.contour(
        gx,
        gy,
        density,
        levels=density.max() * np.array([0.1, 0.25, 0.5, 0.75, 0.9]),
        colors="0.25",
        linewidths=0.6,
    )


def _by_agreement(data):
    """(latents, their colour, marker and label), by whether both matchings of two SAEs agree on
    them.
    """
    agree = data.agree.astype(bool)
    return [
        (data.loc[agree], INK, "o", "matchings agree"),
        (data.loc[~agree], VIOLET, "^", "matchings disagree"),
    ]


@styled
def matched_cosines(data: DataFrame) -> Figure:
    """Figure 1: matched encoder against matched decoder cosine of every latent, by whether both
    matchings agree.
    """
    figure, ax, top, right = _joint()
    limit = data.threshold.iloc[0]
    low = min(0.0, data.decoder_cosine.min(), data.encoder_cosine.min())
    ax.set(
        xlim=(low - 0.03, 1.03),
        ylim=(low - 0.03, 1.03),
        xlabel="cosine of matched decoder rows",
        ylabel="cosine of matched encoder columns",
    )
    parts = _by_agreement(data)
    for part, colour, marker, label in parts:
        mean = (part.decoder_cosine.mean() + part.encoder_cosine.mean()) / 2
        ax.scatter(
            part.decoder_cosine,
            part.encoder_cosine,
            7,
            color=colour,
            marker=marker,
            alpha=0.5,
            linewidths=0,
            label=f"{label}: {len(part)} latents" + (f", mean {mean:.2f}" if len(part) else ""),
        )
    _contours(ax, data.decoder_cosine, data.encoder_cosine)
    bins = np.linspace(low, 1, 41).tolist()
    stacked = {"stacked": True, "color": [colour for _, colour, *_ in parts]}
    top.hist([part.decoder_cosine for part, *_ in parts], bins, **stacked)
    right.hist(
        [part.encoder_cosine for part, *_ in parts], bins, orientation="horizontal", **stacked
    )
    ax.axhline(limit, label=f"threshold {limit:g}", **LEVEL)
    ax.axvline(limit, **LEVEL)
    if ax.collections[len(parts) :]:
        ax.plot([], [], color="0.25", linewidth=0.6, label="lines of equal density")
    legend_below(figure, ax, 2, markerscale=1.5)
    return figure


@styled
def firing(data: DataFrame) -> Figure:
    """Figure 2: mean matched cosine over all seeds against firing frequency, by the number of other
    seeds that share the latent.
    """
    figure, ax, top, right = _joint()
    fires = data.firing > 0
    others = int(data.others.iloc[0])
    colours = list(matplotlib.colormaps["viridis"](np.linspace(0, 0.95, others + 1)))
    shown = data.loc[fires]
    parts = [shown.loc[shown.seeds_sharing == count] for count in range(others + 1)]
    for count, part in enumerate(parts):
        ax.scatter(
            part.firing,
            part.mean_cosine,
            6,
            color=colours[count],
            alpha=0.75,
            linewidths=0,
            label=str(count),
        )
    low = min(0.0, data.mean_cosine.min())
    stacked = {"stacked": True, "color": colours}
    if len(shown):
        edges = np.geomspace(shown.firing.min() * 0.99, shown.firing.max() * 1.01, 31).tolist()
        top.hist([part.firing for part in parts], edges, **stacked)
    bins = np.linspace(low, 1, 41).tolist()
    right.hist([part.mean_cosine for part in parts], bins, orientation="horizontal", **stacked)
    limit = data.threshold.iloc[0]
    ax.axhline(limit, **LEVEL)
    ax.text(0, limit, f" threshold {limit:g}", va="bottom", transform=ax.get_yaxis_transform())
    silent = f"; {(~fires).sum()} never fired" if not fires.all() else ""
    ax.set(
        xscale="log" if fires.any() else "linear",
        xlabel=f"share of training tokens the latent fires on (log){silent}",
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


@styled
def only_in_base(data: DataFrame) -> Figure:
    """Figure A1: share of latents found in the base SAE alone against the number of seeds, with
    three laws fitted to it, which go on to a hundred; bars and bands are 95 % intervals over seeds.
    """
    figure, (ax,) = grid(1, 1, 2.8, WIDTH * 0.75)
    seen = data.loc[data.series == "measured"]
    ax.errorbar(
        seen.seeds,
        seen.only_in_base,
        np.array([seen.only_in_base - seen.low, seen.high - seen.only_in_base]),
        fmt="o",
        markersize=3.5,
        color=INK,
        elinewidth=0.8,
        capsize=2,
        zorder=3,
        label=seen.label.iloc[0],
    )
    laws = groups(data.loc[data.series != "measured"], "series")
    styles = zip(("--", "-", "-."), (VIOLET, INK, OLIVE), strict=True)
    for (_, part), (style, colour) in zip(laws, styles, strict=True):
        ax.plot(part.seeds, part.only_in_base, style, color=colour, label=part.label.iloc[0])
        ax.fill_between(part.seeds, part.low, part.high, color=colour, alpha=0.12, linewidth=0)
    ax.axvline(seen.seeds.max(), **LEVEL)
    ax.set(
        xscale="log",
        xlabel="seeds (log); right of the dashed line extrapolated",
        ylabel="latents only in the base (share)\nlower: more shared",
        ylim=(0, 1),
    )
    ax.xaxis.set_minor_locator(NullLocator())
    ticks = [2, 3, 4, 6, 8, 12, 20, 40, 100]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    # what was measured first
    *of_laws, measured = zip(*ax.get_legend_handles_labels(), strict=True)
    note = ax.fill_between([], [], color="0.8"), f"bars and bands: {BAND}"
    legend = ax.legend(*zip(measured, *of_laws, note, strict=True), loc="upper right")
    for text in legend.get_texts()[:-1]:
        text.set_gid(FORMULA)
    return figure


@styled
def thresholds(data: DataFrame) -> Figure:
    """Figure A2: share of shared latents against the threshold, mean over pairs of seeds, with its
    95 % interval over seeds.
    """
    figure, (ax,) = grid(1, 1, 2.4, WIDTH * 0.75)
    for name, (label, colour, style) in DEFINITIONS.items():
        part = data.loc[data.definition == name]
        ax.plot(part.threshold, part.share, style, color=colour, label=label)
        ax.fill_between(
            part.threshold, part.share_low, part.share_high, color=colour, alpha=0.2, linewidth=0
        )
    chosen = data.chosen.iloc[0]
    ax.axvline(chosen, label=f"threshold that is used: {chosen:g}", **LEVEL)
    ax.set(
        xlabel="threshold on the cosine",
        ylabel="share of latents shared",
        ylim=(0, 1.02),
        xlim=(0, 1),
    )
    ax.fill_between([], [], color="0.8", label=f"band: {BAND}")
    legend_below(figure, ax, 3)
    return figure


@styled
def maximum_cosines(data: DataFrame) -> Figure:
    """Figure A3: matched against largest cosine of every latent; on the diagonal they are one."""
    figure, (ax,) = grid(1, 1, 3.2, WIDTH * 0.75)
    low = min(0.0, data.decoder_cosine.min(), data.max_cosine.min())
    ax.plot([low, 1], [low, 1], label="the match is the nearest", **LEVEL)
    for part, colour, marker, label in _by_agreement(data):
        same = (part.match == part.maximum).mean()
        ax.scatter(
            part.decoder_cosine,
            part.max_cosine,
            8,
            color=colour,
            marker=marker,
            alpha=0.5,
            linewidths=0,
            label=f"{label}: {same:.0%} matched with their nearest",
        )
    ax.set(
        xlabel="matched decoder cosine",
        ylabel="largest decoder cosine",
        xlim=(low - 0.03, 1.03),
        ylim=(low - 0.03, 1.03),
    )
    # no point can lie below the diagonal
    ax.legend(loc="lower right", markerscale=1.5)
    return figure


def _sweeps(data, series, ylabel):
    """One panel per swept number; a dot per pair of seeds, a line through their means, with 95 %
    intervals over seeds; the plain SAEs' value in bold.

    Args:
        series: {column of `data`: (label, colour, line style)}; of each there is its mean at the
            swept value too, <column>_mean, with <column>_low and <column>_high.
    """
    sweeps = [name for name in AXES if (data.sweep == name).any()]
    panels = max(len(sweeps), 1)
    figure, axes = grid(panels, panels, 2.2, sharey=True)
    # without a sweep there is one empty panel
    for ax, sweep in zip(axes, sweeps, strict=False):
        part = data.loc[data.sweep == sweep]
        for column, (label, colour, style) in series.items():
            at = part.drop_duplicates("value").sort_values("value")
            mean = at[f"{column}_mean"]
            bars = np.array([mean - at[f"{column}_low"], at[f"{column}_high"] - mean])
            ax.plot(at.value, mean, style, color=colour, label=label)
            ax.errorbar(at.value, mean, bars, fmt="none", color=colour, elinewidth=0.7, capsize=1.5)
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
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(values, [_short(value) for value in values])
        for tick, value in zip(ax.get_xticklabels(), values, strict=True):
            tick.set_fontweight("bold" if value == part.plain.iloc[0] else "normal")
        ax.set_xlabel(AXES[sweep] + ("" if sweep == "layer" else " (log)"))
    axes[0].set_ylabel(ylabel)
    axes[0].set_ylim(0, 1)
    if sweeps:
        title = f"dots: pairs of seeds; bars: {BAND}; bold: as in the plain SAEs"
        legend_below(figure, axes[0], len(series), title=title)
    return figure


def _short(value):
    """1500000 as 1.5M, 12000 as 12k."""
    if value >= 10**6:
        return f"{int(value) / 1e6:g}M"
    if value >= 10**4 and value % 1000 == 0:
        return f"{int(value) // 1000}k"
    return str(int(value))


@styled
def sweeps(data: DataFrame) -> Figure:
    """Figures 4 and 5: share of shared latents against d_sae, k, training tokens and layer."""
    return _sweeps(
        data,
        {
            "shared": DEFINITIONS["shared"],
            "shared_decoder": DEFINITIONS["shared_decoder"],
            "dead": ("dead latents, share", "0.55", ":"),
        },
        "share of latents shared",
    )


@styled
def mean_cosines(data: DataFrame) -> Figure:
    """Figure A4: mean matched and mean maximum cosine of the decoders against the same numbers."""
    return _sweeps(
        data,
        {
            "mmcs": ("mean maximum cosine (MMCS)", OLIVE, "--"),
            "matched_cosine": ("mean matched cosine", INK, "-"),
        },
        "decoder cosine",
    )
