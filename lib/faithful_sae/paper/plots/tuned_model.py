"""The figures of notebook 20."""

import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from faithful_sae.paper.plots.style import OLIVE, VIOLET, Look, grid, groups, legend_below, styled

# by the model that an SAE is trained in
LOOKS = {
    **dict.fromkeys(("base", "the model"), Look(VIOLET, "-", "o")),
    "tuned": Look(OLIVE, (0, (4, 1.5)), "s"),
}
SEEDS = {"two seeds": ("0.6", None), "one seed": ("0.85", "///")}


@styled
def served(data: DataFrame) -> Figure:
    """EV and CE difference: a column per model and text that is measured, the text of training from
    left to right, a line for each model of training.
    """
    measures = list(dict.fromkeys(data.measure))
    places = list(groups(data, "measured_in", "evaluated_on"))
    figure, axes = grid(len(measures) * len(places), len(places), 1.9, sharex=True)
    axes = axes.reshape(len(measures), len(places))
    texts = list(dict.fromkeys(data.text))
    for column, ((model, text), part) in enumerate(places):
        for ax, measure in zip(axes[:, column], measures, strict=True):
            ax.sharey(axes[measures.index(measure), 0])
            for (trained_in,), cell in groups(part.loc[part.measure == measure], "model"):
                shift = 0.04 if trained_in == "tuned" else -0.04
                x = [texts.index(name) + shift for name in cell.text]
                look = LOOKS[trained_in]
                ax.plot(x, cell.value, **look.curve())
                label = f"SAEs trained in {trained_in}"
                ax.errorbar(x, cell.value, yerr=cell.half.fillna(0.0), label=label, **look.points())
            ax.set_xticks(range(len(texts)), texts)
            ax.set_xlim(-0.4, len(texts) - 0.6)
        axes[0, column].set_title(f"in {model},\non {text}")
        axes[-1, column].set_xlabel("trained on")
    for ax, measure in zip(axes[:, 0], measures, strict=True):
        ax.set_ylabel(measure)
    for ax in axes[:, 1:].flat:
        ax.tick_params(labelleft=False)
    legend_below(figure, axes[0, 0], 2, title="whiskers: 95 % intervals")
    return figure


@styled
def sharing(data: DataFrame) -> Figure:
    """SFR of SAEs of every two cells, with two seeds and with one."""
    names = [
        f"{a} / {b}" if a != b else a
        for a, b in zip(data["one SAE"], data["the other"], strict=True)
    ]
    figure, (ax,) = grid(1, 1, 0.9 + 0.27 * len(names))
    for i, (seeds, (colour, hatch)) in enumerate(SEEDS.items()):
        column = f"SFR, {seeds}"
        if column in data:
            at = np.arange(len(names)) + 0.38 * (i - 0.5)
            half = data[f"{column} ±"].fillna(0.0)
            look = {"color": colour, "hatch": hatch, "edgecolor": "0.2", "linewidth": 0.4}
            lines = {"linewidth": 0.9, "ecolor": "0.1"}
            ax.barh(at, data[column], 0.36, xerr=half, label=seeds, error_kw=lines, **look)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set(xlabel="SFR; whiskers: 95 % intervals", xlim=(0, None))
    legend_below(figure, ax, 2)
    return figure
