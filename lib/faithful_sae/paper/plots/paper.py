"""The figures of notebooks 01 to 07: one function each, which draws the DataFrame of its csv."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from pandas import DataFrame

from faithful_sae.features.vocabulary import visible
from faithful_sae.paper.plots.style import (
    COLOURS,
    WIDTH,
    colour_legend,
    corpus_colours,
    falling_curve,
    grid,
    groups,
    legend_below,
    styled,
)
from faithful_sae.runs.catalogue import HALF
from faithful_sae.runs.schema import BASELINES


@styled
def lm_training(data: DataFrame) -> Figure:
    """Cross-entropy of an embedded language model while it trains, against the best n-gram model's
    on the same held-out text.
    """
    figure, (ax,) = grid(1, 1, 2.2, WIDTH * 0.6)
    order, ce_ngram = data.ngram_order.iloc[0], data.ce_ngram.iloc[0]
    ax.plot(data.tokens / 1e6, data.train_ce, color="0.7", label="training batches")
    held = data.dropna(subset="heldout_ce")
    ax.plot(
        held.tokens / 1e6,
        held.heldout_ce,
        color=COLOURS[2],
        marker=".",
        markersize=4,
        label="held-out text",
    )
    ax.axhline(
        ce_ngram,
        color=COLOURS[0],
        linestyle="--",
        linewidth=0.9,
        label=f"interpolated {order}-gram, same tokens ({ce_ngram:.2f})",
    )
    ax.set(
        xlabel="tokens seen (millions)",
        ylabel="cross-entropy (nats per token)",
        title=data.model.iloc[0],
    )
    ax.set_ylim(top=min(ax.get_ylim()[1], data.train_ce.iloc[0] * 1.02))
    ax.legend()
    return figure


@styled
def first_token(data: DataFrame) -> Figure:
    """Appendix C: top-10 first tokens and whole sorted distributions, the model's (left) and the
    faithful dataset's (right).
    """
    figure, axes = grid(4, 2, 1.75)
    columns = (
        ("model", "the model's", "probability", COLOURS[2]),
        ("dataset", "faithful dataset", "frequency", COLOURS[0]),
    )
    for column, (name, title, ylabel, colour) in enumerate(columns):
        top = data.nlargest(10, name, keep="first")
        ax = axes[column]
        ax.bar(range(len(top)), top.loc[:, name], color=colour, width=0.75)
        ax.set_xticks(range(len(top)), [visible(str(t)) for t in top.token], rotation=0)
        ax.set(title=f"Top 10 first tokens: {title}", ylabel=ylabel)
        ax = axes[2 + column]
        falling_curve(ax, data.loc[:, name], color=colour)
        ax.set(
            yscale="log",
            xlabel="token rank",
            title=f"All tokens, sorted: {title}",
            ylabel=ylabel,
        )
    lowest = max(data.model[data.model > 0].min(), 1e-9)
    for ax in axes[2:]:
        ax.set(ylim=(lowest / 2, 1), xlim=(0, len(data)))
    return figure


@styled
def training(data: DataFrame) -> Figure:
    """Training curves of a run: FVU, L0, dead latents against tokens; a line and a band per corpus,
    mean and range over seeds.

    A dashed line is that of published SAEs, which have no curve: a row without tokens.
    """
    figure, axes = grid(3, 3, 2.3)
    colours = corpus_colours(data.corpus)
    published = data.tokens.isna()
    for (corpus,), curve in groups(data, "corpus"):
        style = {"color": colours[corpus], "linewidth": 0.8, "label": corpus}
        for ax, column in zip(axes, ("fvu", "l0", "dead"), strict=True):
            if curve.tokens.isna().all():
                ax.axhline(curve[column].iloc[0], linestyle="--", **style)
                continue
            tokens = curve.tokens / 1e6
            ax.plot(tokens, curve[column], **style)
            span = (curve[f"{column} least"], curve[f"{column} most"])
            ax.fill_between(tokens, *span, color=colours[corpus], alpha=0.2, linewidth=0)
    titles = ("fraction of variance unexplained", "L0 (active latents per token)", "dead latents")
    for ax, title in zip(axes, titles, strict=True):
        ax.set(title=title, xlabel="tokens (millions)")
        if published.all():
            ax.set(xlabel="published SAEs, on this run's text", xticks=[])
        elif published.any():
            ax.set(xlabel="tokens (millions); dashed: published")
    axes[0].set(yscale="log")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter("{x:.2g}")
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[1].set_ylim(0, data["l0 most"].max() * 1.15)
    axes[2].set_ylim(0, max(data["dead most"].max() * 1.1, 1))
    legend_below(figure, axes[0], min(5, len(colours)))
    return figure


@styled
def activation_norms(data: DataFrame) -> Figure:
    """Norm of the activation at each position of a row, the median of the rows and the largest, and
    how many activations have which norm, all in units of the median.
    """
    figure, (by_position, histogram) = grid(2, 2, 2.1)
    limit = data.max_norm.iloc[0]
    part = data.loc[data.kind == "position"]
    for name, colour in (("largest", COLOURS[0]), ("median", COLOURS[2])):
        by_position.plot(part.place, part[name], color=colour, marker=".", markersize=3, label=name)
    by_position.set(xlabel="position in the row (0: BOS)", ylabel="norm / median norm")
    part = data.loc[data.kind == "bin"]
    histogram.bar(part.place, part.tokens, part.width, align="edge", color=COLOURS[2])
    histogram.set(xlabel="norm / median norm, BOS left out", ylabel="tokens", xscale="log")
    histogram.set_yscale("symlog", linthresh=1)
    by_position.set_yscale("log")
    if np.isfinite(limit):
        by_position.axhline(limit, color="0.4", linestyle="--", linewidth=0.8, label="max_norm")
        histogram.axvline(limit, color="0.4", linestyle="--", linewidth=0.8)
    by_position.legend()
    return figure


@styled
def cosines(data: DataFrame) -> Figure:
    """Histogram of matched decoder cosines per corpus, latents per pair of seeds; those dead in
    either SAE are stacked in grey.
    """
    colours = corpus_colours(data.corpus)
    figure, axes = grid(len(colours), min(4, len(colours)), 1.55, sharex=True)
    for ax, (name, colour) in zip(axes, colours.items(), strict=True):
        part = data.loc[data.corpus == name]
        width = part.high - part.low
        ax.bar(part.low, part.alive, width, align="edge", color=colour)
        ax.bar(part.low, part.dead, width, align="edge", bottom=part.alive, color="0.75")
        ax.axvline(part.threshold.iloc[0], color="0.2", linewidth=0.8, linestyle="--")
        ax.set_title(f"{name}\nSFR {with_half(part.sfr.iloc[0], part.half_width.iloc[0])}")
    figure.supxlabel(
        "cosine of matched decoder rows (grey: dead in either SAE; dashed: threshold)", fontsize=7
    )
    figure.supylabel("latents", fontsize=7)
    return figure


def with_half(value: float, half: float, digits: int = 3) -> str:
    """A number with half of its interval, where there is one."""
    said = f"{value:.{digits}f}"
    return said if np.isnan(half) else f"{said} ± {half:.{digits}f}"


@styled
def sfr_curve(data: DataFrame) -> Figure:
    """SFR at every threshold, mean over pairs of seeds and its interval; dashed: the paper's."""
    figure, (ax,) = grid(1, 1, 2.5, WIDTH * 0.62)
    colours = corpus_colours(data.corpus)
    for (corpus,), part in groups(data, "corpus"):
        ax.plot(part.threshold, part.sfr, color=colours[corpus], linewidth=0.9, label=corpus)
        band = part.dropna(subset="half_width")
        ax.fill_between(
            band.threshold,
            band.sfr - band.half_width,
            band.sfr + band.half_width,
            color=colours[corpus],
            alpha=0.18,
            linewidth=0,
        )
    ax.axvline(data.chosen.iloc[0], color="0.2", linestyle="--", linewidth=0.8)
    ax.set(
        xlabel="least cosine of a shared latent",
        ylabel="shared feature ratio",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def mechanism(data: DataFrame) -> Figure:
    """The model's own cross-entropy on a corpus against the SFR of SAEs trained on it; hollow: the
    model's text as sampled, before it is packed into rows.
    """
    models = data.model.unique()
    figure, axes = grid(max(len(models), 1), max(min(3, len(models)), 1), 2.5, sharey=True)
    colours = corpus_colours(data.corpus)
    for ax, model in zip(axes, models, strict=False):
        for row in data.loc[data.model == model].itertuples():
            colour = colours[row.corpus]
            half = 0 if np.isnan(row.half_width) else row.half_width
            ax.errorbar(
                row.ce,
                row.sfr,
                xerr=1.96 * row.ce_error,
                yerr=half,
                fmt="o",
                color=colour,
                markersize=3.5,
                linewidth=0.8,
            )
            if not np.isnan(row.ce_as_sampled):
                ax.plot(row.ce_as_sampled, row.sfr, "o", color=colour, markerfacecolor="white")
        ax.set(title=model, xlabel="cross-entropy of the model (nats per token)")
    axes[0].set_ylabel("shared feature ratio")
    colour_legend(figure, colours)
    return figure


@styled
def firing(data: DataFrame) -> Figure:
    """Firing frequency of latents on uniformly random tokens, the most frequent first: mean and
    range over seeds; above the dashed line a latent is fake.
    """
    figure, (ax,) = grid(1, 1, 2.5, WIDTH * 0.62)
    colours = corpus_colours(data.corpus)
    for (corpus,), part in groups(data, "corpus"):
        shown = part.loc[part.frequency > 0]
        ax.plot(shown["rank"], shown.frequency, color=colours[corpus], linewidth=0.8, label=corpus)
        ax.fill_between(
            shown["rank"], shown.low, shown.high, color=colours[corpus], alpha=0.15, linewidth=0
        )
    ax.axhline(data.tau.iloc[0], color="0.2", linestyle="--", linewidth=0.8)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="latents, most frequent first",
        ylabel="share of random tokens it fires on",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def matrix(data: DataFrame, value: str, label: str, lower_is_better: bool = True) -> Figure:
    """Heat map of one measure: rows are what an SAE was trained on, columns what it is evaluated
    on. Baselines have no share in the range of colours. Where massive activations are left out of
    the training, the measure on moderate tokens alone stands below.

    Args:
        value: the column of `data` that is shown, above half of its interval (column `value ±`).
        label: the title.
        lower_is_better: the better, the lighter.
    """
    shown = {value: label}
    if f"{value}_moderate" in data:
        shown[f"{value}_moderate"] = "without massive activations"
    rows, columns = data.trained_on.nunique(), data.evaluated_on.nunique()
    figure = Figure(
        figsize=(1.9 + 0.78 * columns, (0.9 + 0.42 * rows) * len(shown)), layout="constrained"
    )
    axes = figure.subplots(len(shown), squeeze=False)[:, 0]
    for ax, (column, title) in zip(axes, shown.items(), strict=True):
        _matrix(figure, ax, data, column, lower_is_better)
        ax.set_title(title)
    return figure


def _matrix(figure, ax, data, value, lower_is_better):
    """One heat map."""
    table = data.pivot(index="trained_on", columns="evaluated_on", values=value)
    table = table.loc[list(dict.fromkeys(data.trained_on)), list(dict.fromkeys(data.evaluated_on))]
    halves = data.pivot(index="trained_on", columns="evaluated_on", values=f"{value}{HALF}")
    halves = halves.loc[table.index, table.columns].to_numpy()
    # what is lost without any training would leave no colours to tell the others apart
    among = table.drop(index=list(BASELINES), errors="ignore").to_numpy()
    low, high = np.nanmin(among), np.nanmax(among)
    colours = "viridis_r" if lower_is_better else "viridis"
    image = ax.imshow(table, cmap=colours, aspect="auto", vmin=low, vmax=high)
    for (row, column), number in np.ndenumerate(table.to_numpy()):
        position = (number - low) / (high - low) if high > low else 0.5
        dark = position > 0.5 if lower_is_better else position < 0.5
        ax.text(
            column,
            row,
            with_half(number, halves[row, column]).replace(" ±", "\n±"),
            ha="center",
            va="center",
            fontsize=6,
            color="white" if dark else "black",
        )
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=25, ha="right")
    ax.set_yticks(range(table.shape[0]), table.index)
    ax.set(xlabel="evaluated on", ylabel="trained on")
    ax.spines[:].set_visible(False)
    figure.colorbar(image, ax=ax, shrink=0.9).outline.set_visible(False)


@styled
def bars(data: DataFrame) -> Figure:
    """SFR as grouped bars: one group per model, one bar per corpus; measured here on the left, the
    paper's on the right. Whiskers are 95 % intervals over seeds, which the paper has not.
    """
    sources = [source for source in ("here", "paper") if (data.source == source).any()]
    models = data.groupby("source").model.nunique()
    figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
    axes = figure.subplots(
        1, len(sources), sharey=True, squeeze=False, width_ratios=models[sources]
    )[0]
    colours = corpus_colours(data.corpus)
    width = 0.8 / len(colours)
    for ax, source in zip(axes, sources, strict=True):
        of_models = list(groups(data.loc[data.source == source], "model"))
        for i, (_, part) in enumerate(of_models):
            mine = part.set_index("corpus").sfr.reindex(colours).dropna()
            halves = part.set_index("corpus").half_width
            for j, (name, height) in enumerate(mine.items()):
                x = i + (j - (len(mine) - 1) / 2) * width
                ax.bar(
                    x,
                    height,
                    0.95 * width,
                    color=colours[name],
                    hatch="////" if source == "paper" else None,
                    edgecolor="white",
                    linewidth=0.3,
                )
                half = 0 if np.isnan(halves[name]) else halves[name]
                if half:
                    ax.errorbar(x, height, half, fmt="none", ecolor="0.15", elinewidth=0.7)
                ax.text(
                    x,
                    height + half,
                    f"{height:.2f}".removeprefix("0"),
                    ha="center",
                    va="bottom",
                    fontsize=5,
                )
        ax.set_xticks(range(len(of_models)), [model for (model,), _ in of_models])
        ax.set_title("measured here" if source == "here" else "the paper")
    axes[0].set_ylabel("shared feature ratio")
    axes[0].set_ylim(bottom=0)
    colour_legend(figure, colours)
    return figure


@styled
def probing(data: DataFrame) -> Figure:
    """Accuracy and F1 of probes on the activations (baseline), the SAE latents and the
    reconstruction; mean over seeds.
    """
    if data.empty:
        figure = Figure(figsize=(WIDTH, 0.6))
        figure.text(0.5, 0.5, "nothing measured yet", ha="center", va="center", color="0.35")
        return figure
    tasks = data.task.unique()
    colours = corpus_colours(data.corpus.dropna())
    panels = [(model, metric) for model in data.model.unique() for metric in ("accuracy", "f1")]
    figure = Figure(figsize=(WIDTH, 1.35 * len(panels) + 0.3), layout="constrained")
    axes = figure.subplots(len(panels), len(tasks), squeeze=False, sharex=True)
    for (row, column), ax in np.ndenumerate(axes):
        model, metric = panels[row]
        part = data.loc[(data.model == model) & (data.task == tasks[column])]
        if part.empty:
            ax.axis("off")
            continue
        _probe_bars(ax, part, metric, colours)
        if row == 0:
            ax.set_title(tasks[column])
        if column == 0:
            ax.set_ylabel(f"{model}\n{metric.replace('f1', 'F1')}")
    colour_legend(figure, colours, title="vertical axes do not start at 0", title_fontsize=6)
    return figure


def _probe_bars(ax, data, metric, colours):
    """One model's probes on one task."""
    whisker = {"fmt": "none", "ecolor": "0.15", "elinewidth": 0.6}
    width = 0.8 / len(colours)

    def bar(x, width, row, colour):
        ax.bar(x, row[metric], width, color=colour)
        if not np.isnan(half := row[f"{metric}{HALF}"]):
            ax.errorbar(x, row[metric], half, **whisker)

    without = data.loc[data.representation == "baseline"].iloc[0]
    bar(0, 0.5, without, "0.55")
    baseline = without[metric]
    for group, kind in enumerate(("sae", "reconstruction"), 1):
        for j, name in enumerate(colours):
            part = data.loc[(data.representation == kind) & (data.corpus == name)]
            if len(part):
                x = group + (j - (len(colours) - 1) / 2) * width
                bar(x, 0.95 * width, part.iloc[0], colours[name])
    ax.axhline(baseline, color="0.4", linewidth=0.5, linestyle=":")
    values, half = data[metric], data[f"{metric}{HALF}"].fillna(0)
    # bars are some height, and whiskers whole
    low = min(values.min() - 0.12, (values - half).min() - 0.01)
    ax.set_ylim(max(low, 0), min((values + half).max() + 0.01, 1.0))
    ax.set_xticks(range(3), ["baseline", "SAE", "recon."])


@styled
def reanalysis(data: DataFrame) -> Figure:
    """Each printed comparison in the direction that the paper claims, with its 95 % interval under
    low (thick) and high (thin) noise; filled where Holm's p is below 0.05 under both.
    """
    units = {"SFR": "share of latents", "FFR": "fake latents", "probes": "share of sentences"}
    figure, axes = grid(len(units), len(units), 3.6)
    readings = {"for": COLOURS[2], "against": COLOURS[0], "open": "0.55"}
    for ax, (measure, unit) in zip(axes, units.items(), strict=True):
        part = data[data.measure == measure].iloc[::-1].reset_index(drop=True)
        for y, row in part.iterrows():
            colour = readings[row.reading_low]
            for error, width in ((row.se_high, 0.7), (row.se_low, 2.2)):
                ends = row.claimed - 1.96 * error, row.claimed + 1.96 * error
                ax.plot(ends, (y, y), color=colour, linewidth=width, solid_capstyle="butt")
            face = colour if row.reading_low == row.reading_high else "white"
            ax.plot(row.claimed, y, "o", color=colour, markerfacecolor=face, markersize=3.4)
        names = [_compared(row) for row in part.itertuples()]
        ax.set_yticks(range(len(part)), names, fontsize=5.3)
        ax.axvline(0, color="0.2", linewidth=0.6)
        ax.set(title=f"{measure} ({unit})", xlabel="difference, as the paper claims →")
    title = "for or against the claim under low noise; filled: under high noise too"
    colour_legend(figure, readings, title=title)
    return figure


def _compared(row):
    """A comparison in few words: model, and what faithful text is compared with."""
    other = row.compared_with.replace("Faithful, other model's", "other model's")
    section = f" ({row.section})" if row.measure == "SFR" else ""
    return f"{row.model}: {other.removeprefix('best other on ').partition(' (')[0]}{section}"
