"""The figures of notebooks 01 to 07: one function each, which draws the DataFrame of its csv."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from pandas import DataFrame

from faithful_sae.features.vocabulary import visible
from faithful_sae.paper.plots.style import (
    INK,
    LEVEL,
    LOOKS,
    VIOLET,
    WIDTH,
    Look,
    corpus_looks,
    falling_curve,
    grid,
    groups,
    highlighted,
    label_ends,
    marker_legend,
    styled,
)
from faithful_sae.runs.catalogue import HALF
from faithful_sae.runs.schema import BASELINES


@styled
def lm_training(data: DataFrame) -> Figure:
    """Cross-entropy of an embedded language model while it trains, between that of a guess among
    all N tokens and the best n-gram model's on the same held-out text.
    """
    figure, (ax,) = grid(1, 1, 2.3, WIDTH * 0.7)
    order, ce_ngram, n = (data[name].iloc[0] for name in ("ngram_order", "ce_ngram", "vocab_size"))
    held = data.dropna(subset="heldout_ce")
    ax.plot(data.tokens / 1e6, data.train_ce, color="0.7", label="training batches")
    ax.plot(held.tokens / 1e6, held.heldout_ce, color=INK, marker="o", label="held-out text")
    for height, line, name in (
        (np.log(n), "--", f"guess, 1/N each: ln {n} = {np.log(n):.2f}"),
        (ce_ngram, ":", f"interpolated {order}-gram, same tokens: {ce_ngram:.2f}"),
    ):
        ax.axhline(height, color=VIOLET, linestyle=line, label=name)
    ax.set(
        xlabel="tokens seen (millions)", ylabel="cross-entropy (nats per token)\nlower is better"
    )
    ax.set_ylim(top=np.log(n) * 1.04)
    ax.legend(loc="upper right", bbox_to_anchor=(1, 0.93))
    return figure


@styled
def first_token(data: DataFrame) -> Figure:
    """Appendix C: top-10 first tokens and whole sorted distributions, the model's (left) and the
    faithful dataset's (right), each beside one in which all N tokens are as likely.
    """
    figure, axes = grid(4, 2, 1.9)
    uniform = 1 / len(data)
    columns = (
        ("model", "the model's", "probability", INK),
        ("dataset", "faithful dataset's", "frequency", LOOKS["faithful"].colour),
    )
    for column, (name, title, ylabel, colour) in enumerate(columns):
        top = data.nlargest(10, name, keep="first")
        ax = axes[column]
        ax.bar(range(len(top)), top.loc[:, name], color=colour, width=0.75)
        ax.set_xticks(range(len(top)), [visible(str(t)) for t in top.token])
        ax.set(title=f"Top 10 first tokens: {title}", ylabel=ylabel)
        ax = axes[2 + column]
        falling_curve(ax, data.loc[:, name], color=colour)
        ax.set(
            yscale="log",
            xlabel="token rank",
            title=f"All {len(data)} tokens, sorted: {title}",
            ylabel=f"{ylabel} (log)",
        )
    for ax in axes:
        ax.axhline(uniform, label=f"1/N = {uniform:.2g}", **LEVEL)
        ax.legend(loc="upper right")
    lowest = max(data.model[data.model > 0].min(), 1e-9)
    for ax in axes[2:]:
        ax.set(ylim=(lowest / 2, 1), xlim=(0, len(data)))
    return figure


@styled
def training(data: DataFrame) -> Figure:
    """Training of a run's SAEs: FVU against tokens, and at the end dead latents and, where it is
    not the same for all, L0; mean and range over seeds.

    A dashed line is that of published SAEs, which have no curve: a row without tokens.
    """
    looks = corpus_looks(data.corpus)
    ends = data.groupby("corpus", sort=False).tail(1).set_index("corpus")
    measures = {"dead": "dead latents, last batch"}
    if data.l0.round(6).nunique() > 1:
        measures |= {"l0": "L0, last batch"}
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    ratios = (2.2, *(1 for _ in measures))
    ax, *others = figure.subplots(1, 1 + len(measures), width_ratios=ratios)
    for (corpus,), curve in groups(data, "corpus"):
        look = looks[corpus]
        if curve.tokens.isna().all():
            ax.axhline(curve.fvu.iloc[0], color=look.colour, linestyle="--")
            continue
        tokens = curve.tokens / 1e6
        ax.plot(tokens, curve.fvu, label=corpus, **look.curve())
        span = curve["fvu least"], curve["fvu most"]
        ax.fill_between(tokens, *span, color=look.colour, alpha=0.2, linewidth=0)
    ax.set(ylabel="fraction of variance unexplained (log)\nlower is better", yscale="log")
    ax.set(xlabel="tokens (millions); band: range over seeds")
    published = data.tokens.isna()
    if published.all():
        ax.set(xlabel="published SAEs, on this run's text", xticks=[])
    elif published.any():
        ax.set(xlabel="tokens (millions); dashed: published")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:.2g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.margins(x=0)
    label_ends(figure, ax, ends.fvu.to_dict(), looks, ax.get_xlim()[1])
    for place, (measure, title) in zip(others, measures.items(), strict=True):
        for y, (corpus, row) in enumerate(ends.iterrows()):
            span = [
                [row[measure] - row[f"{measure} least"]],
                [row[f"{measure} most"] - row[measure]],
            ]
            place.errorbar(row[measure], y, xerr=span, **looks[str(corpus)].points())
        place.set_yticks(range(len(ends)), ends.index)
        place.set_ylim(len(ends) - 0.5, -0.5)
        place.set(xlabel=f"{title}\n(mean, range)")
        place.set_xlim(0, max(ends[f"{measure} most"].max() * 1.1, 1))
    return figure


@styled
def activation_norms(data: DataFrame) -> Figure:
    """Norm of the activation at each position of a row, the median of the rows and the largest, and
    how many activations have which norm, all in units of the median.
    """
    figure, (by_position, histogram) = grid(2, 2, 2.2)
    limit = data.max_norm.iloc[0]
    part = data.loc[data.kind == "position"]
    for name, line in (("largest", "--"), ("median", "-")):
        look = {"color": INK, "linestyle": line, "marker": ".", "markersize": 3}
        by_position.plot(part.place, part[name], label=name, **look)
    by_position.set(xlabel="position in the row (0: BOS)", ylabel="norm / median norm (log)")
    part = data.loc[data.kind == "bin"]
    histogram.bar(part.place, part.tokens, part.width, align="edge", color=INK)
    histogram.set(xlabel="norm / median norm (log), BOS left out", xscale="log")
    histogram.set(ylabel="tokens (log above 1)")
    histogram.set_yscale("symlog", linthresh=1)
    by_position.set_yscale("log")
    if np.isfinite(limit):
        by_position.axhline(limit, label=f"max_norm = {limit:g}", **LEVEL)
        histogram.axvline(limit, **LEVEL)
    by_position.legend()
    return figure


@styled
def cosines(data: DataFrame) -> Figure:
    """Histogram of matched decoder cosines per corpus, latents per pair of seeds; those dead in
    either SAE are stacked in white. All corpora have one vertical axis, and baselines, whose
    latents are all in few bins, another.
    """
    looks = corpus_looks(data.corpus)
    columns = min(4, len(looks))
    figure, axes = grid(len(looks), columns, 1.55, sharex=True)
    first: dict[bool, Axes] = {}
    for i, (ax, (name, look)) in enumerate(zip(axes, looks.items(), strict=True)):
        part = data.loc[data.corpus == name]
        width = part.high - part.low
        ax.bar(part.low, part.alive, width, align="edge", color=look.colour)
        dead = {"facecolor": "white", "edgecolor": "0.4", "linewidth": 0.3, "hatch": "//////"}
        ax.bar(part.low, part.dead, width, align="edge", bottom=part.alive, **dead)
        ax.axvline(part.threshold.iloc[0], **LEVEL)
        untrained = name in BASELINES
        ax.sharey(first.setdefault(untrained, ax))
        ax.tick_params(labelleft=i % columns == 0 or ax is first[untrained])
        scale = "\nits own scale" if untrained else ""
        ax.set_title(f"{name}{scale}\nSFR {with_half(part.sfr.iloc[0], part.half_width.iloc[0])}")
        last_of_column = i + columns >= len(looks)
        ax.tick_params(labelbottom=last_of_column)
    for ax in first.values():
        ax.autoscale(axis="y")
        ax.set_ylim(bottom=0)
    figure.supxlabel(
        f"cosine of matched decoder rows; dashed: threshold {data.threshold.iloc[0]:g}, "
        "right of it shared; hatched: dead in either SAE",
        fontsize=7.5,
    )
    figure.supylabel("latents per pair of seeds", fontsize=7.5)
    return figure


def with_half(value: float, half: float, digits: int = 3) -> str:
    """A number with half of its interval, where there is one."""
    said = f"{value:.{digits}f}"
    return said if np.isnan(half) else f"{said} ± {half:.{digits}f}"


@styled
def sfr_curve(data: DataFrame) -> Figure:
    """SFR at every threshold, mean over pairs of seeds and its interval; the legend is in the order
    of SFR at the threshold that is used.
    """
    figure, (ax,) = grid(1, 1, 2.7, WIDTH * 0.8)
    looks = corpus_looks(data.corpus)
    chosen = data.chosen.iloc[0]
    there: dict[str, float] = {}
    for (corpus,), part in groups(data, "corpus"):
        look = looks[corpus]
        there[corpus] = np.interp(chosen, part.threshold, part.sfr)
        ax.plot(part.threshold, part.sfr, label=f"{corpus}: {there[corpus]:.3f}", **look.curve())
        band = part.dropna(subset="half_width")
        edges = band.sfr - band.half_width, band.sfr + band.half_width
        ax.fill_between(band.threshold, *edges, color=look.colour, alpha=0.18, linewidth=0)
    ax.axvline(chosen, **LEVEL)
    ax.set(
        xlabel="least cosine of a shared latent; band: 95 % interval over seeds",
        ylabel="shared feature ratio\nhigher: more shared",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    handles = dict(zip(there, ax.get_legend_handles_labels()[0], strict=True))
    falling = sorted(there, key=lambda name: -there[name])
    ax.legend(
        handles=[handles[name] for name in falling],
        title=f"SFR at {chosen:g} (dashed)",
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )
    return figure


@styled
def mechanism(data: DataFrame) -> Figure:
    """The model's own cross-entropy on a corpus against the SFR of SAEs trained on it; hollow: the
    model's text as sampled, before it is packed into rows.
    """
    models = data.model.unique()
    figure, axes = grid(max(len(models), 1), max(min(3, len(models)), 1), 2.6, sharey=True)
    looks = corpus_looks(data.corpus)
    for ax, model in zip(axes, models, strict=False):
        for row in data.loc[data.model == model].itertuples():
            look = looks[row.corpus]
            half = 0 if np.isnan(row.half_width) else row.half_width
            ax.errorbar(row.ce, row.sfr, yerr=half, xerr=1.96 * row.ce_error, **look.points())
            if not np.isnan(row.ce_as_sampled):
                hollow = {"color": look.colour, "markerfacecolor": "white"}
                ax.plot(row.ce_as_sampled, row.sfr, look.marker, **hollow)
        ax.set(title=model, xlabel="cross-entropy of the model (nats per token)")
    axes[0].set_ylabel("shared feature ratio\nhigher: more shared")
    marker_legend(figure, looks, "whiskers: 95 % intervals; hollow: the text as sampled")
    return figure


@styled
def firing(data: DataFrame) -> Figure:
    """Firing frequency of latents on uniformly random tokens, the most frequent first: mean and
    range over seeds of each corpus among the others; above the dashed line a latent is fake.
    """
    # on a logarithmic axis there is no 0
    shown = data.assign(frequency=data.frequency.where(data.frequency > 0))
    figure, axes = highlighted(shown, "rank", "frequency", ("low", "high"), 4, 1.35)
    tau = data.tau.iloc[0]
    for ax in axes:
        ax.axhline(tau, **LEVEL)
        ax.set(xscale="log", yscale="log")
    at = {"va": "bottom", "ha": "right", "transform": axes[0].get_yaxis_transform()}
    axes[0].text(1, tau, f"fake above {tau:g}", **at)
    figure.supxlabel(
        "latents, most frequent first (log); grey: the other corpora; band: range over seeds",
        fontsize=7.5,
    )
    figure.supylabel("share of random tokens it fires on (log)", fontsize=7.5)
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
        figsize=(min(1.9 + 0.8 * columns, WIDTH), (0.9 + 0.42 * rows) * len(shown)),
        layout="constrained",
    )
    axes = figure.subplots(len(shown), squeeze=False)[:, 0]
    for ax, (column, title) in zip(axes, shown.items(), strict=True):
        _matrix(figure, ax, data, column, lower_is_better)
        ax.set_title(f"{title}; {'lower' if lower_is_better else 'higher'} is better")
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
            fontsize=7,
            color="white" if dark else "black",
        )
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=25, ha="right")
    ax.set_yticks(range(table.shape[0]), table.index)
    ax.set(xlabel="evaluated on; ±: 95 % interval", ylabel="trained on")
    ax.spines[:].set_visible(False)
    # baselines lie beyond it
    numbers = table.to_numpy()
    beyond = {(False, False): "neither", (True, False): "min", (False, True): "max"}
    ends = beyond.get((np.nanmin(numbers) < low, np.nanmax(numbers) > high), "both")
    bar = figure.colorbar(image, ax=ax, shrink=0.9, extend=ends)
    bar.outline.set_visible(False)


@styled
def bars(data: DataFrame) -> Figure:
    """SFR as grouped bars: one group per model, one bar per corpus; measured here on the left, the
    paper's on the right. Whiskers are 95 % intervals over seeds, which the paper has not.
    """
    sources = [source for source in ("here", "paper") if (data.source == source).any()]
    models = data.groupby("source").model.nunique()
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    axes = figure.subplots(
        1, len(sources), sharey=True, squeeze=False, width_ratios=models[sources]
    )[0]
    looks = corpus_looks(data.corpus)
    # of the model that has most
    width = 0.86 / data.groupby(["source", "model"]).size().max()
    for ax, source in zip(axes, sources, strict=True):
        of_models = list(groups(data.loc[data.source == source], "model"))
        for i, (_, part) in enumerate(of_models):
            _model_bars(ax, i, part, width, looks)
        ax.set_xticks(range(len(of_models)), [model for (model,), _ in of_models])
        ax.set_title("measured here" if source == "here" else "the paper, one pair of seeds")
        handles = {bar.get_label(): bar for bar in ax.containers if isinstance(bar, BarContainer)}
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "handlelength": 1.2}
        ax.legend(handles.values(), handles.keys(), ncols=2 if source == "here" else 3, **below)
    axes[0].set_ylabel("shared feature ratio\nhigher: more shared")
    # numbers stand above the bars
    axes[0].set_ylim(0, 1.2 * (data.sfr + data.half_width.fillna(0)).max())
    return figure


def _model_bars(ax, i, data, width, looks):
    """The bars of the model at place i, each under its number."""
    for j, row in enumerate(data.itertuples()):
        x = i + (j - (len(data) - 1) / 2) * width
        half = 0 if np.isnan(row.half_width) else row.half_width
        ax.bar(
            x,
            row.sfr,
            0.92 * width,
            yerr=half or None,
            color=looks[row.corpus].colour,
            hatch="////" if row.source == "paper" else None,
            edgecolor="white",
            linewidth=0.3,
            error_kw={"ecolor": INK, "elinewidth": 0.8},
            label=row.corpus,
        )
        number = f" {row.sfr:.2f}".replace("0.", ".")
        at = {"ha": "center", "va": "bottom", "rotation": 90, "fontsize": 7}
        ax.text(x, row.sfr + half, number, **at)


@styled
def probing(data: DataFrame) -> Figure:
    """Accuracy of probes on the activations (dotted, with its interval), on SAE latents and on the
    reconstruction; mean over seeds and 95 % interval. F1, in the csv beside it, says the same.
    """
    if data.empty:
        figure = Figure(figsize=(WIDTH, 0.6))
        figure.text(0.5, 0.5, "nothing measured yet", ha="center", va="center", color="0.35")
        return figure
    tasks, models = data.task.unique(), data.model.unique()
    looks = corpus_looks(data.corpus.dropna())
    figure = Figure(figsize=(WIDTH, 1.7 * len(models) + 0.5), layout="constrained")
    axes = figure.subplots(len(models), len(tasks), squeeze=False, sharex=True, sharey="row")
    for (row, column), ax in np.ndenumerate(axes):
        part = data.loc[(data.model == models[row]) & (data.task == tasks[column])]
        if part.empty:
            ax.axis("off")
            continue
        _probe_dots(ax, part, looks)
        if row == 0:
            ax.set_title(str(tasks[column]).replace(" (", "\n("))
        if column == 0:
            ax.set_ylabel(f"{models[row]}\naccuracy, higher is better")
    title = "dotted: probe on the activations; whiskers and band: 95 % intervals"
    marker_legend(figure, looks, title)
    return figure


def _probe_dots(ax, data, looks):
    """One model's probes on one task."""
    without = data.loc[data.representation == "baseline"].iloc[0]
    if not np.isnan(half := without[f"accuracy{HALF}"]):
        ax.axhspan(without.accuracy - half, without.accuracy + half, color="0.93", linewidth=0)
    ax.axhline(without.accuracy, color="0.35", linewidth=0.8, linestyle=":")
    for place, kind in enumerate(("sae", "reconstruction")):
        for j, (name, look) in enumerate(looks.items()):
            part = data.loc[(data.representation == kind) & (data.corpus == name)]
            if len(part):
                x = place + 0.7 * ((j + 0.5) / len(looks) - 0.5)
                half = part[f"accuracy{HALF}"].fillna(0)
                ax.errorbar(x, part.accuracy, yerr=half, **look.points())
    ax.set(xlim=(-0.5, 1.5))
    ax.set_xticks(range(2), ["latents", "reconstr."])


@styled
def reanalysis(data: DataFrame) -> Figure:
    """Each printed comparison in the direction that the paper claims, with its 95 % interval under
    low (thick) and high (thin) noise; filled where Holm's p is below 0.05 under both.
    """
    units = {"SFR": "share of latents", "FFR": "fake latents", "probes": "share of sentences"}
    figure, axes = grid(len(units), len(units), 3.9)
    readings = {"for": Look(INK), "against": Look(VIOLET, "-", "s"), "open": Look("0.6", "-", "D")}
    for ax, (measure, unit) in zip(axes, units.items(), strict=True):
        part = data[data.measure == measure].iloc[::-1].reset_index(drop=True)
        for y, row in part.iterrows():
            look = readings[row.reading_low]
            for error, width in ((row.se_high, 0.7), (row.se_low, 2.2)):
                ends = row.claimed - 1.96 * error, row.claimed + 1.96 * error
                ax.plot(ends, (y, y), color=look.colour, linewidth=width, solid_capstyle="butt")
            face = look.colour if row.reading_low == row.reading_high else "white"
            ax.plot(row.claimed, y, look.marker, color=look.colour, markerfacecolor=face)
        ax.set_yticks(range(len(part)), [_compared(row) for row in part.itertuples()])
        ax.axvline(0, color=INK, linewidth=0.6)
        ax.set(title=f"{measure} ({unit})", xlabel="as the paper claims →")
    title = "for or against the claim under low noise (thick); filled: under high noise (thin) too"
    marker_legend(figure, readings, title)
    return figure


def _compared(row):
    """A comparison in few words: model, and what faithful text is compared with."""
    other = row.compared_with.replace("Faithful, other model's", "other model's")
    return f"{row.model}: {other.removeprefix('best other on ').partition(' (')[0]}"
