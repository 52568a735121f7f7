"""One function per figure, one style. Each takes the DataFrame of the figure's csv and returns a
matplotlib Figure.
"""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from faithful_sae.features.vocabulary import visible

WIDTH = 6.8  # inches, a page's text width
STYLE = {
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "legend.frameon": False,
    "font.family": "DejaVu Sans",
}
# the faithful corpora stand out; the others keep one colour through all figures (Okabe and Ito's
# palette, colour-blind safe)
COLOURS = (
    "#D55E00",
    "#E69F00",
    "#0072B2",
    "#009E73",
    "#56B4E9",
    "#CC79A7",
    "#8C6D31",
    "#7F7F7F",
    "#332288",
)
FAITHFUL = COLOURS[:2]


def _styled(draw):
    def styled(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()  # lays it out while the style is in force
        return figure

    styled.__doc__ = draw.__doc__
    styled.__name__ = draw.__name__
    return styled


def _colours(names):
    """{corpus: colour}: faithful text in the two warm ones, the others in order of appearance."""
    names = list(dict.fromkeys(names))
    faithful = [n for n in names if str(n).lower().startswith("faithful")]
    others = [n for n in names if n not in faithful]
    return {n: FAITHFUL[i % 2] for i, n in enumerate(faithful)} | {
        n: COLOURS[2 + i % (len(COLOURS) - 2)] for i, n in enumerate(others)
    }


def _grid(n, columns, height, width=WIDTH, **kwargs):
    """A figure with n axes in rows of `columns`, the empty places of the last row left blank."""
    rows = -(-n // columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs).ravel()
    for ax in axes[n:]:
        ax.axis("off")
    return figure, axes[:n]


@_styled
def method(data):
    """The paper's overview diagram: boxes and arrows from a table (kind, x, y, width, text, x2,
    y2).
    """
    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(0, 10), ylim=(0, 3.7))
    ax.axis("off")
    for row in data.itertuples():
        if row.kind == "box":
            colour = {"model": "#DCE9F5", "text": "#FBE3D3", "sae": "#E3F1E5", "metric": "#F1F1F1"}[
                row.group
            ]
            ax.add_patch(
                FancyBboxPatch(
                    (row.x, row.y),
                    row.width,
                    row.height,
                    boxstyle="round,pad=0.04,rounding_size=0.08",
                    facecolor=colour,
                    edgecolor="0.35",
                    linewidth=0.7,
                )
            )
            ax.text(
                row.x + row.width / 2,
                row.y + row.height / 2,
                row.text.replace("|", "\n"),
                ha="center",
                va="center",
                fontsize=6.6,
            )
        else:
            ax.annotate(
                "",
                (row.x2, row.y2),
                (row.x, row.y),
                arrowprops={
                    "arrowstyle": "-|>",
                    "linewidth": 0.8,
                    "color": "0.25",
                    "shrinkA": 1,
                    "shrinkB": 1,
                },
            )
            if isinstance(row.text, str) and row.text:
                ax.text(
                    (row.x + row.x2) / 2,
                    (row.y + row.y2) / 2 + 0.1,
                    row.text.replace("|", "\n"),
                    ha="center",
                    fontsize=6,
                    color="0.25",
                    style="italic",
                )
    return figure


@_styled
def lm_training(data):
    """Cross-entropy of an embedded language model while it trains, against the 5-gram model's on
    the same held-out text.
    """
    figure, (ax,) = _grid(1, 1, 2.2, WIDTH * 0.6)
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
        data.ce_5gram.iloc[0],
        color=COLOURS[0],
        linestyle="--",
        linewidth=0.9,
        label=f"interpolated 5-gram, same tokens ({data.ce_5gram.iloc[0]:.2f})",
    )
    ax.set(
        xlabel="tokens seen (millions)",
        ylabel="cross-entropy (nats per token)",
        title=data.model.iloc[0],
    )
    ax.set_ylim(top=min(ax.get_ylim()[1], data.train_ce.iloc[0] * 1.02))
    ax.legend()
    return figure


@_styled
def first_token(data):
    """Appendix C: top-10 first tokens and whole sorted distributions, the model's (left) and the
    faithful dataset's (right).
    """
    figure, axes = _grid(4, 2, 1.75)
    for column, (name, title, colour) in enumerate(
        (("model", "model, after BOS", COLOURS[2]), ("dataset", "faithful dataset", COLOURS[0]))
    ):
        top = data.nlargest(10, name, keep="first")
        ax = axes[column]
        ax.bar(range(len(top)), top[name], color=colour, width=0.75)
        # a dollar sign would begin a formula
        names = [visible(str(token)).replace("$", r"\$") for token in top.token]
        ax.set_xticks(range(len(top)), names, rotation=0)
        ax.set(
            title=f"Top 10 first tokens: {title}",
            ylabel="probability" if name == "model" else "frequency",
        )
        ax = axes[2 + column]
        values = np.sort(data[name].to_numpy())[::-1]
        ax.plot(np.arange(1, len(values) + 1), np.where(values > 0, values, np.nan), color=colour)
        ax.set(
            yscale="log",
            xlabel="token rank",
            title=f"All tokens, sorted: {title}",
            ylabel="probability" if name == "model" else "frequency",
        )
    lowest = max(data.model[data.model > 0].min(), 1e-9)
    for ax in axes[2:]:
        ax.set(ylim=(lowest / 2, 1), xlim=(0, len(data)))
    return figure


@_styled
def training(data):
    """Training curves of all SAEs of a run: FVU, L0, dead latents against tokens; one colour per
    corpus, one line per seed.

    A dashed line is a published SAE's, which has no curve: a row without tokens.
    """
    figure, axes = _grid(3, 3, 2.3)
    colours = _colours(data.corpus)
    trained = data.tokens.notna().any()
    for (corpus, seed), curve in data.groupby(["corpus", "seed"], sort=False):
        style = {
            "color": colours[corpus],
            "linewidth": 0.8,
            "alpha": 0.9,
            "label": corpus if seed == data.seed.iloc[0] else None,
        }
        for ax, column in zip(axes, ("fvu", "l0", "dead")):
            if curve.tokens.isna().all():
                ax.axhline(curve[column].iloc[0], linestyle="--", **style)
            else:
                ax.plot(curve.tokens / 1e6, curve[column], **style)
    for ax, title in zip(
        axes, ("fraction of variance unexplained", "L0 (active latents per token)", "dead latents")
    ):
        ax.set(
            title=title,
            xlabel="tokens (millions); dashed: published"
            if data.tokens.isna().any()
            else "tokens (millions)",
        )
        if not trained:
            ax.set(xlabel="published SAEs, on this run's text", xticks=[])
    axes[0].set(yscale="log")
    axes[0].yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter("{x:.2g}")
    axes[0].yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    for ax, top in zip(axes[1:], (data.l0.max() * 1.15, max(data.dead.max() * 1.1, 1))):
        ax.set_ylim(0, top)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(5, len(colours))
    )
    return figure


@_styled
def cosines(data):
    """Histogram of matched decoder cosines per corpus; latents dead in either SAE are stacked in
    grey.
    """
    names = list(dict.fromkeys(data.corpus))
    figure, axes = _grid(len(names), min(4, len(names)), 1.55, sharex=True)
    bins = np.linspace(min(0.0, data.decoder_cosine.min()), 1, 41)
    colours = _colours(names)
    for ax, name in zip(axes, names):
        part = data[data.corpus == name]
        alive = part.alive_both.astype(bool)
        ax.hist(
            [part.decoder_cosine[alive], part.decoder_cosine[~alive]],
            bins,
            stacked=True,
            color=[colours[name], "0.75"],
        )
        ax.axvline(data.threshold.iloc[0], color="0.2", linewidth=0.8, linestyle="--")
        ax.set_title(f"{name}\nSFR {(part.decoder_cosine >= data.threshold.iloc[0]).mean():.3f}")
    figure.supxlabel(
        "cosine of matched decoder rows (grey: dead in either SAE; dashed: threshold)", fontsize=7
    )
    figure.supylabel("latents", fontsize=7)
    return figure


@_styled
def firing(data):
    """Sorted firing frequency of every latent on uniformly random tokens; above the dashed line a
    latent is fake.
    """
    figure, (ax,) = _grid(1, 1, 2.5, WIDTH * 0.62)
    colours = _colours(data.corpus)
    for (corpus, seed), part in data.groupby(["corpus", "seed"], sort=False):
        values = np.sort(part.frequency.to_numpy())[::-1]
        ax.plot(
            np.arange(1, len(values) + 1),
            np.where(values > 0, values, np.nan),
            color=colours[corpus],
            linewidth=0.8,
            label=corpus if seed == data.seed.iloc[0] else None,
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


@_styled
def matrix(data, value, label, digits=3, lower_is_better=True):
    """Heat map of one measure: rows are what an SAE was trained on, columns what it is evaluated
    on.
    """
    table = data.pivot(index="trained_on", columns="evaluated_on", values=value)
    table = table.loc[list(dict.fromkeys(data.trained_on)), list(dict.fromkeys(data.evaluated_on))]
    figure = Figure(
        figsize=(1.9 + 0.72 * table.shape[1], 0.9 + 0.36 * table.shape[0]), layout="constrained"
    )
    ax = figure.subplots()
    image = ax.imshow(table, cmap="viridis_r" if lower_is_better else "viridis", aspect="auto")
    low, high = image.get_clim()
    for (row, column), number in np.ndenumerate(table.to_numpy()):
        position = (number - low) / (high - low) if high > low else 0.5
        dark = position > 0.5 if lower_is_better else position < 0.5
        ax.text(
            column,
            row,
            f"{number:.{digits}f}",
            ha="center",
            va="center",
            fontsize=6.5,
            color="white" if dark else "black",
        )
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=25, ha="right")
    ax.set_yticks(range(table.shape[0]), table.index)
    ax.set(xlabel="evaluated on", ylabel="trained on", title=label)
    ax.spines[:].set_visible(False)
    figure.colorbar(image, ax=ax, shrink=0.9).outline.set_visible(False)
    return figure


@_styled
def bars(data, value="sfr", ylabel="shared feature ratio"):
    """Grouped bars: one group per model, one bar per corpus; measured here on the left, the paper's
    on the right.
    """
    sources = [s for s in ("here", "paper") if (data.source == s).any()]
    groups = [data[data.source == s].model.nunique() for s in sources]
    figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
    axes = figure.subplots(1, len(sources), sharey=True, squeeze=False, width_ratios=groups)[0]
    names = list(dict.fromkeys(data.corpus))
    colours = _colours(data.corpus)
    for ax, source in zip(axes, sources):
        part = data[data.source == source]
        models = list(dict.fromkeys(part.model))
        for i, model in enumerate(models):
            mine = part[part.model == model].set_index("corpus")[value].reindex(names).dropna()
            for j, (name, height) in enumerate(mine.items()):
                x = i + (j - (len(mine) - 1) / 2) * 0.8 / len(names)
                ax.bar(
                    x,
                    height,
                    0.76 / len(names),
                    color=colours[name],
                    hatch="////" if source == "paper" else None,
                    edgecolor="white",
                    linewidth=0.3,
                )
                ax.text(
                    x,
                    height,
                    f"{height:.2f}".removeprefix("0"),
                    ha="center",
                    va="bottom",
                    fontsize=5,
                )
        ax.set_xticks(range(len(models)), models)
        ax.set_title("measured here" if source == "here" else "the paper")
    axes[0].set_ylabel(ylabel)
    handles = [matplotlib.patches.Patch(color=colours[name], label=name) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(names)))
    return figure


@_styled
def probing(data):
    """Accuracy and F1 of probes on the activations (baseline), the SAE latents and the
    reconstruction; mean over seeds.
    """
    if data.empty:
        figure = Figure(figsize=(WIDTH, 0.6))
        figure.text(0.5, 0.5, "nothing measured yet", ha="center", va="center", color="0.35")
        return figure
    models, tasks = list(dict.fromkeys(data.model)), list(dict.fromkeys(data.task))
    corpora = [c for c in dict.fromkeys(data.corpus.dropna())]
    colours = _colours(corpora)
    metrics = ("accuracy", "f1")
    figure = Figure(figsize=(WIDTH, 1.35 * len(models) * len(metrics) + 0.3), layout="constrained")
    axes = figure.subplots(len(models) * len(metrics), len(tasks), squeeze=False, sharex=True)
    for (row, column), ax in np.ndenumerate(axes):
        model = models[row // 2]
        metric = metrics[row % 2]
        task = tasks[column]
        part = data[(data.model == model) & (data.task == task)]
        if part.empty:
            ax.axis("off")
            continue
        base = part[part.representation == "baseline"][metric].iloc[0]
        ax.bar(0, base, 0.5, color="0.55")
        for group, kind in enumerate(("sae", "reconstruction"), 1):
            for j, name in enumerate(corpora):
                height = part[(part.representation == kind) & (part.corpus == name)][metric]
                if len(height):
                    ax.bar(
                        group + (j - (len(corpora) - 1) / 2) * 0.8 / len(corpora),
                        height.iloc[0],
                        0.76 / len(corpora),
                        color=colours[name],
                    )
        ax.axhline(base, color="0.4", linewidth=0.5, linestyle=":")
        values = part[metric]
        ax.set_ylim(max(values.min() - 0.12, 0), min(values.max() + 0.04, 1.0))
        ax.set_xticks(range(3), ["baseline", "SAE", "recon."])
        if row == 0:
            ax.set_title(task)
        if column == 0:
            ax.set_ylabel(f"{model}\n{metric.replace('f1', 'F1')}")
    handles = [matplotlib.patches.Patch(color=colours[name], label=name) for name in corpora]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(5, len(corpora)),
        title="vertical axes do not start at 0",
        title_fontsize=6,
    )
    return figure
